package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/results"
)

const repository = "bench/app"

// cluster is a registry in this process, and a supernode and dfdaemons as programs.
type cluster struct {
	registry  *registrytest.Registry
	layers    []registrytest.Object
	supernode *program
	nodes     []*program
	mirrors   []string // of each node

	// The first node, where one is enough.
	mirror   string
	dfdaemon *program
}

// setup is what cluster to start.
type setup struct {
	layers []int64 // their sizes
	nodes  int     // default 1
	secure bool    // whether the members have a secret, and with it TLS
}

// program is a process that was started.
type program struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

func start(log, path string, args ...string) (*program, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &program{name: filepath.Base(path), cmd: exec.Command(path, args...), log: log, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // its exit code does not matter
		close(p.ended)
	}()
	return p, nil
}

// stop asks the process to end and waits; it is killed when it does not.
func (p *program) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(10 * time.Second):
	}
	err := p.cmd.Process.Kill()
	<-p.ended
	return errors.Join(fmt.Errorf("%s did not end within 10 s of SIGTERM and was killed", p.name), err)
}

// tail is the end of what the program wrote.
func (p *program) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// withCluster builds the programs, starts them around a registry that holds the layers, and
// ends all when f has.
func (b *bench) withCluster(ctx context.Context, want setup, f func(c *cluster) error) (err error) {
	bin := filepath.Join(b.dir, "bin")
	if err := programs.Build(ctx, bin, "./cmd/supernode", "./cmd/dfdaemon"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "cluster-")
	if err != nil {
		return err
	}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	undo = append(undo, func() error { return os.RemoveAll(dir) })

	c := &cluster{}
	if c.registry, err = registrytest.Listen(registrytest.Config{Dir: filepath.Join(dir, "registry")}); err != nil {
		return err
	}
	serving, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.registry.Run(serving) }()
	undo = append(undo, func() error {
		cancel()
		return <-ended
	})
	img, err := registrytest.NewImage(uint64(len(want.layers)), want.layers)
	if err != nil {
		return err
	}
	pushed, err := c.registry.Push(ctx, repository, "v1", img)
	if err != nil {
		return err
	}
	c.layers = pushed.Layers()

	count := max(1, want.nodes)
	addrs, err := programs.FreeAddrs(3 + 3*count)
	if err != nil {
		return err
	}
	secret := ""
	if want.secure {
		secret = filepath.Join(dir, "secret")
		if err := os.WriteFile(secret, []byte("5f0c3a1e9b7d48264ac1d3e5f7092b8d"), 0o600); err != nil {
			return err
		}
	}
	super := programs.Supernode{
		Name: "supernode", DataDir: filepath.Join(dir, "supernode"), API: addrs[0], Peer: addrs[1], Admin: addrs[2],
		Registry: c.registry.Host(), RegistryBase: c.registry.URL(), SecretFile: secret,
	}
	run := func(name, log, admin string, args []string) (*program, error) {
		p, err := start(filepath.Join(dir, log), filepath.Join(bin, name), args...)
		if err != nil {
			return nil, err
		}
		undo = append(undo, p.stop)
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := programs.WaitReady(ctx, http.DefaultClient, admin, p.ended); err != nil {
			return nil, fmt.Errorf("starting %s: %w\n%s", name, err, p.tail())
		}
		return p, nil
	}
	if c.supernode, err = run("supernode", "supernode.log", super.Admin, super.Args()); err != nil {
		return err
	}
	for i := range count {
		at := addrs[3+3*i:]
		node := programs.Dfdaemon{
			Name: fmt.Sprintf("node%d", i), DataDir: filepath.Join(dir, fmt.Sprintf("node%d", i)), Mirror: at[0],
			API: at[1], Peer: at[2],
			Supernode: super.API, Registry: c.registry.Host(), RegistryBase: c.registry.URL(), SecretFile: secret,
		}
		p, err := run("dfdaemon", node.Name+".log", node.API, node.Args())
		if err != nil {
			return err
		}
		c.nodes, c.mirrors = append(c.nodes, p), append(c.mirrors, node.Mirror)
	}
	c.mirror, c.dfdaemon = c.mirrors[0], c.nodes[0]
	return f(c)
}

// direct and swarm are the URLs of a layer at the registry and at the mirror.
func (c *cluster) direct(i int) string {
	return fmt.Sprintf("%s/v2/%s/blobs/%s", c.registry.URL(), repository, c.layers[i].Digest)
}

func (c *cluster) swarm(i int) string { return c.at(c.mirror, i) }

func (c *cluster) at(mirror string, i int) string {
	return fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", mirror, repository, c.layers[i].Digest, c.registry.Host())
}

// get reads a URL to its end over a connection of its own, drops the bytes and says how long
// that took.
func get(ctx context.Context, url string, want int64) (time.Duration, error) {
	t := &http.Transport{DisableCompression: true}
	defer t.CloseIdleConnections()
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	buf := make([]byte, 256<<10)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	took := time.Since(begun)
	switch {
	case err != nil:
		return 0, fmt.Errorf("reading %s: %w", url, err)
	case resp.StatusCode != http.StatusOK:
		return 0, fmt.Errorf("%s answers %s", url, resp.Status)
	case n != want:
		return 0, fmt.Errorf("%s has %d bytes, not %d", url, n, want)
	}
	return took, nil
}

// layer pulls new layers of 1 MB, each through the swarm and directly.
func (b *bench) layer(ctx context.Context) error {
	sizes := make([]int64, b.pickInt(41, 21))
	for i := range sizes {
		sizes[i] = 1e6
	}
	return b.withCluster(ctx, setup{layers: sizes}, func(c *cluster) error {
		var direct, swarm, more []float64
		for i, l := range c.layers {
			urls := []string{c.direct(i), c.swarm(i)}
			var took [2]time.Duration
			for k := range urls {
				k = (k + i) % 2 // by turns: the second finds the registry's file in memory
				var err error
				if took[k], err = get(ctx, urls[k], l.Size); err != nil {
					return fmt.Errorf("%w\n%s", err, c.dfdaemon.tail())
				}
			}
			if i == 0 {
				continue // connections of the programs are made then, once in their lives
			}
			ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
			direct, swarm = append(direct, ms(took[0])), append(swarm, ms(took[1]))
			more = append(more, ms(took[1]-took[0]))
		}
		b.out.Add(
			results.Median("layer/1-MB-cold", "direct", direct, "ms"),
			results.Median("layer/1-MB-cold", "swarm", swarm, "ms"),
			results.Median("layer/1-MB-cold", "swarm_over_direct", more, "ms").AtMost(30),
		)
		return nil
	})
}

// memory reads what dfdaemons take, idle and at most while all pull 1 GiB from a supernode and
// from each other, over TLS.
func (b *bench) memory(ctx context.Context) error {
	want := setup{layers: []int64{1 << 30}, nodes: b.pickInt(4, 2), secure: true}
	var idle, most, super []float64
	for range b.pickInt(5, 1) { // each with new processes: what they take at most is for their lives
		err := b.withCluster(ctx, want, func(c *cluster) error {
			add := func(list *[]float64, p *program, line string) error {
				n, err := p.memory(line)
				*list = append(*list, float64(n)/1e6)
				return err
			}
			for _, p := range c.nodes {
				if err := add(&idle, p, "VmRSS"); err != nil {
					return err
				}
			}
			g, pulling := errgroup.WithContext(ctx)
			for i, p := range c.nodes {
				g.Go(func() error {
					if _, err := get(pulling, c.at(c.mirrors[i], 0), c.layers[0].Size); err != nil {
						return fmt.Errorf("%w\n%s", err, p.tail())
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				return err
			}
			for _, p := range c.nodes {
				if err := add(&most, p, "VmHWM"); err != nil {
					return err
				}
			}
			return add(&super, c.supernode, "VmHWM")
		})
		if err != nil {
			return err
		}
	}
	b.out.Add(
		results.Median("memory/dfdaemon", "rss_idle", idle, "MB").AtMost(40),
		results.Median("memory/dfdaemon", "rss_pull_most", most, "MB").AtMost(80),
		results.Median("memory/supernode", "rss_pull_most", super, "MB"),
	)
	return nil
}

// memory reads a line of /proc/PID/status, in bytes.
func (p *program) memory(line string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("%w: there is no /proc that tells a program's memory", errMissing)
	}
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s in the status of %s", line, p.name)
}

// cpu is how long the threads of the program have run.
func (p *program) cpu() (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("%w: there is no /proc that tells a program's CPU", errMissing)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// warm reads a blob that dfdaemon has, and the same file from nginx.
func (b *bench) warm(ctx context.Context) error {
	nginx, err := findNginx()
	if err != nil {
		return err
	}
	return b.withCluster(ctx, setup{layers: []int64{b.pick(1<<30, 256<<20)}}, func(c *cluster) error {
		size := c.layers[0].Size
		dir, err := os.MkdirTemp(b.dir, "nginx-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := download(ctx, c.direct(0), filepath.Join(dir, "blob")); err != nil {
			return err
		}
		if _, err := get(ctx, c.swarm(0), size); err != nil {
			return fmt.Errorf("%w\n%s", err, c.dfdaemon.tail())
		}
		addr, server, err := startNginx(ctx, nginx, dir)
		if err != nil {
			return err
		}
		err = b.compareWarm(ctx, c, server, "http://"+addr+"/blob", size)
		return errors.Join(err, server.stop())
	})
}

func (b *bench) compareWarm(ctx context.Context, c *cluster, nginx *program, url string, size int64) error {
	const reads = 4
	// measure reads the blob some times over.
	measure := func(p *program, url string) (wall, cpu float64, err error) {
		before, err := p.cpu()
		if err != nil {
			return 0, 0, err
		}
		for range reads {
			d, err := get(ctx, url, size)
			if err != nil {
				return 0, 0, err
			}
			wall += d.Seconds()
		}
		after, err := p.cpu()
		gib := reads * float64(size) / (1 << 30)
		return wall / gib, (after - before).Seconds() / gib, err
	}
	var ours, theirs, ratio, cpuOurs, cpuTheirs, cpuRatio []float64
	for range b.rounds() {
		w1, c1, err := measure(nginx, url)
		if err != nil {
			return err
		}
		w2, c2, err := measure(c.dfdaemon, c.swarm(0))
		if err != nil {
			return err
		}
		theirs, ours, ratio = append(theirs, w1), append(ours, w2), append(ratio, w2/w1)
		cpuTheirs, cpuOurs, cpuRatio = append(cpuTheirs, c1), append(cpuOurs, c2), append(cpuRatio, c2/c1)
	}
	b.out.Add(
		results.Median("warm/mirror", "time_over_nginx", ratio, "ratio"),
		results.Median("warm/mirror", "cpu_over_nginx", cpuRatio, "ratio"),
		results.Median("warm/mirror", "time_per_gib", ours, "seconds/GiB"),
		results.Median("warm/mirror", "cpu_per_gib", cpuOurs, "CPU-s/GiB"),
		results.Median("warm/nginx", "time_per_gib", theirs, "seconds/GiB"),
		results.Median("warm/nginx", "cpu_per_gib", cpuTheirs, "CPU-s/GiB"),
	)
	return nil
}

func findNginx() (string, error) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		return "", fmt.Errorf("%w: nginx is not installed (Debian's package nginx-light or nginx)", errMissing)
	}
	return nginx, nil
}

// startNginx serves a directory with sendfile, by one process.
func startNginx(ctx context.Context, nginx, dir string) (addr string, p *program, err error) {
	addrs, err := programs.FreeAddrs(1)
	if err != nil {
		return "", nil, err
	}
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 512; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type application/octet-stream;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[2]s; root %[1]s; }
}
`, dir, addrs[0])
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return "", nil, err
	}
	if p, err = start(filepath.Join(dir, "nginx.log"), nginx, "-e", filepath.Join(dir, "error.log"), "-p", dir, "-c",
		conf); err != nil {
		return "", nil, err
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+addrs[0]+"/blob", nil)
		if err != nil {
			return "", nil, errors.Join(err, p.stop())
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			return addrs[0], p, nil
		}
		select {
		case <-p.ended:
			return "", nil, fmt.Errorf("%w: nginx does not start: %s", errMissing, p.tail())
		case <-ctx.Done():
			return "", nil, errors.Join(context.Cause(ctx), p.stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// download keeps what a URL gives.
func download(ctx context.Context, url, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
