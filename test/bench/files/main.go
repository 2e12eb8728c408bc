// Command files measures what 1,000 small files cost through a dfdaemon and a supernode, next to wget and curl.
//
// It only prints: seconds of a loaded machine prove nothing, so each row also has counts (requests at the origin,
// announces, syncs) and CPU time per file. The programs are real processes on loopback. Start at [round].
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/darter-io/darter/test/programs"
)

func main() {
	count := flag.Int("files", 1000, "number of files, of 1 to 20 KiB")
	rounds := flag.Int("rounds", 2, "rounds, in which all downloads take turns")
	bin := flag.String("bin", "", "directory with the built programs; empty builds them")
	trace := flag.Bool("strace", false, "count the syncs of each program by strace, which makes everything slow")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, options{*count, *rounds, *bin, *trace})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "files:", err)
		os.Exit(1)
	}
}

type options struct {
	files, rounds int
	bin           string
	trace         bool
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "darter-files-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.bin == "" {
		o.bin = filepath.Join(dir, "bin")
		if err := programs.Build(ctx, o.bin, "./cmd/supernode", "./cmd/dfdaemon", "./cmd/dfget"); err != nil {
			return err
		}
	}
	from, err := newOrigin(o.files)
	if err != nil {
		return err
	}
	defer from.server.Close()
	fmt.Println("| what | seconds | CPU ms a file: client | dfdaemon | supernode | " +
		"HEADs, GETs a file | announces, entries a file | most requests at once |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for n := range o.rounds {
		if err := round(ctx, o, from, filepath.Join(dir, strconv.Itoa(n))); err != nil {
			return err
		}
	}
	return nil
}

// round measures each way once, with an empty cluster.
func round(ctx context.Context, o options, from *origin, dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	list := filepath.Join(dir, "list")
	if err := os.WriteFile(list, []byte(strings.Join(from.urls, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	curl := filepath.Join(dir, "curl.list")
	text := "remote-name-all\nurl=" + strings.Join(from.urls, "\nurl=") + "\n"
	if err := os.WriteFile(curl, []byte(text), 0o600); err != nil {
		return err
	}
	for _, other := range []struct {
		name, program string
		args          []string
	}{
		{"wget", "wget", []string{"-q", "-i", list}},
		{"curl", "curl", []string{"-s", "-S", "-K", curl}},
		{"curl, 16 at once", "curl", []string{"-s", "-S", "--parallel", "--parallel-max", "16", "-K", curl}},
	} {
		if _, err := exec.LookPath(other.program); err != nil {
			fmt.Printf("| %s | not installed |\n", other.name)
			continue
		}
		if err := measure(ctx, other.name, o, from, nil, dir, other.program, other.args...); err != nil {
			return err
		}
	}
	c, err := start(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, name := range []string{"dfget, cold", "dfget, warm"} {
		args := append([]string{"--daemon", c.daemonAPI, "-o", filepath.Join(dir, name) + "/"}, from.urls...)
		if err := measure(ctx, name, o, from, c, dir, filepath.Join(o.bin, "dfget"), args...); err != nil {
			return err
		}
	}
	return nil
}

// measure runs one client in a directory of its own and prints a row.
func measure(ctx context.Context, name string, o options, from *origin, c *cluster, dir, program string,
	args ...string) error {
	into := filepath.Join(dir, name)
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	before, err := c.counts(ctx)
	if err != nil {
		return err
	}
	from.reset()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = into
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out.Bytes()[max(0, out.Len()-2000):])
	}
	took := time.Since(began)
	after, err := c.counts(ctx)
	if err != nil {
		return err
	}
	if err := from.check(into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	per := func(n float64) string { return strconv.FormatFloat(n/float64(o.files), 'f', 2, 64) }
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	row := []string{name, strconv.FormatFloat(took.Seconds(), 'f', 2, 64), per(float64(cpu.Milliseconds())),
		per(1000 * (after.daemonCPU - before.daemonCPU)), per(1000 * (after.superCPU - before.superCPU)),
		per(float64(from.heads.Load())) + ", " + per(float64(from.gets.Load())),
		per(after.posts-before.posts) + ", " + per(after.entries-before.entries),
		strconv.FormatInt(from.most.Load(), 10)}
	fmt.Println("| " + strings.Join(row, " | ") + " |")
	return nil
}

// origin serves the files and counts the requests.
type origin struct {
	server *http.Server
	urls   []string
	bodies map[string][]byte
	// heads and gets are the requests since reset, most is the largest number at one time.
	heads, gets, running, most atomic.Int64
}

func newOrigin(n int) (*origin, error) {
	o := &origin{bodies: map[string][]byte{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		body := make([]byte, 1<<10+random.IntN(19<<10))
		for j := range body {
			body[j] = byte(random.Uint32())
		}
		path := fmt.Sprintf("/models/file-%04d", i)
		o.bodies[path] = body
		o.urls = append(o.urls, "http://"+l.Addr().String()+path)
	}
	o.server = &http.Server{Handler: o, ReadHeaderTimeout: time.Minute}
	go func() { _ = o.server.Serve(l) }() // until Close
	return o, nil
}

func (o *origin) reset() {
	for _, n := range []*atomic.Int64{&o.heads, &o.gets, &o.most} {
		n.Store(0)
	}
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := o.running.Add(1)
	defer o.running.Add(-1)
	for most := o.most.Load(); now > most && !o.most.CompareAndSwap(most, now); most = o.most.Load() {
	}
	if r.Method == http.MethodHead {
		o.heads.Add(1)
	} else {
		o.gets.Add(1)
	}
	body, ok := o.bodies[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"`+filepath.Base(r.URL.Path)+`"`)
	http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), bytes.NewReader(body))
}

// check compares the files in a directory.
func (o *origin) check(dir string) error {
	for path, want := range o.bodies {
		got, err := os.ReadFile(filepath.Join(dir, filepath.Base(path)))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s has other bytes", path)
		}
	}
	return nil
}

// cluster is a supernode and a dfdaemon.
type cluster struct {
	daemonAPI, superAdmin string
	processes             []*exec.Cmd
	pids                  []int
	traces                []string
}

func start(ctx context.Context, o options, dir string) (c *cluster, err error) {
	addrs, err := programs.FreeAddrs(6)
	if err != nil {
		return nil, err
	}
	c = &cluster{daemonAPI: addrs[3], superAdmin: addrs[2]}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	supernode := programs.Supernode{Name: "super", DataDir: filepath.Join(dir, "super"), API: addrs[0],
		Peer: addrs[1], Admin: addrs[2], Registry: "registry.test", RegistryBase: "http://127.0.0.1:1"}
	daemon := programs.Dfdaemon{Name: "node", DataDir: filepath.Join(dir, "node"), API: addrs[3], Peer: addrs[4],
		Mirror: addrs[5], Supernode: addrs[0], Registry: "registry.test", RegistryBase: "http://127.0.0.1:1"}
	for _, p := range []struct {
		name, ready string
		args        []string
	}{
		{"supernode", addrs[2], supernode.Args()}, {"dfdaemon", addrs[3], daemon.Args()},
	} {
		log, err := os.Create(filepath.Join(dir, p.name+".log"))
		if err != nil {
			return c, err
		}
		args := append(p.args, "--files-allow-addresses=127.0.0.0/8")
		path := filepath.Join(o.bin, p.name)
		if o.trace {
			out := filepath.Join(dir, p.name+".strace")
			c.traces = append(c.traces, out)
			args = append([]string{"-f", "--seccomp-bpf", "-c", "-o", out,
				"-e", "trace=fsync,fdatasync,syncfs,openat,mkdirat,renameat,renameat2,fallocate", path}, args...)
			path = "strace"
		}
		cmd := exec.Command(path, args...)
		cmd.Stdout, cmd.Stderr = log, log
		err = cmd.Start()
		log.Close()
		if err != nil {
			return c, err
		}
		c.processes = append(c.processes, cmd)
		pid := cmd.Process.Pid
		if err := programs.WaitReady(ctx, http.DefaultClient, p.ready, nil); err != nil {
			return c, err
		}
		if o.trace {
			if pid, err = child(pid); err != nil {
				return c, err
			}
		}
		c.pids = append(c.pids, pid)
	}
	return c, nil
}

// child returns the process that strace runs.
func child(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// stop ends the programs and prints what strace counted.
func (c *cluster) stop() error {
	for i := len(c.pids) - 1; i >= 0; i-- {
		_ = syscall.Kill(c.pids[i], syscall.SIGTERM)
	}
	var errs error
	for _, p := range c.processes {
		errs = errors.Join(errs, p.Wait())
	}
	for _, path := range c.traces {
		b, err := os.ReadFile(path)
		errs = errors.Join(errs, err)
		fmt.Printf("\n%s\n%s\n", filepath.Base(path), b)
	}
	return errs
}

// counts are what the programs have used and done so far.
type counts struct {
	daemonCPU, superCPU float64 // seconds
	posts, entries      float64 // announces at the supernode, and the tasks in them
}

func (c *cluster) counts(ctx context.Context) (n counts, err error) {
	if c == nil {
		return n, nil
	}
	for _, from := range []struct {
		addr string
		add  func(name string, v float64)
	}{
		{c.daemonAPI, func(name string, v float64) {
			if name == "process_cpu_seconds_total" {
				n.daemonCPU = v
			}
		}},
		{c.superAdmin, func(name string, v float64) {
			switch {
			case name == "process_cpu_seconds_total":
				n.superCPU = v
			case name == "darter_announce_seconds_count":
				n.posts = v
			case strings.HasPrefix(name, "darter_announces_total"):
				n.entries += v
			}
		}},
	} {
		body, err := get(ctx, "http://"+from.addr+"/metrics")
		if err != nil {
			return n, err
		}
		lines := bufio.NewScanner(bytes.NewReader(body))
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), " ")
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				from.add(name, v)
			}
		}
	}
	return n, nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}
