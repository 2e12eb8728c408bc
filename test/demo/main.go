// Command demo shows on one machine what Darter is for: a registry, a supernode and five
// dfdaemons, an image pulled through all five at once, and what the registry sent.
//
// It needs neither root nor a package besides Go, binds loopback addresses only, and never leaves anything but the
// programs in bin/ and the figures in out/demo.json. It uses 1.4 GB of the temporary directory while it runs. Its
// imports are few, because the first make demo compiles them before it can print. Start at [run].
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/results"
)

// layers are the compressed sizes of the image's layers: a few large ones and small ones, as
// real images have them; 200 MB in all.
var layers = []int64{70e6, 50e6, 35e6, 25e6, 12e6, 6e6, 1500e3, 400e3, 80e3, 20e3}

// ratioMax is what the demo promises: the registry's bytes over the image's.
const ratioMax = 1.02

const (
	repository = "demo/app"
	tag        = "v1"
)

func main() {
	nodes := flag.Int("nodes", 5, "how many dfdaemons pull at once")
	out := flag.String("out", "out/demo.json", "file for the figures, below the module's directory")
	ldflags := flag.String("ldflags", "", "linker flags of the programs, which stamp their version")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *nodes, *out, *ldflags)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err != nil && interrupted:
		fmt.Fprintln(os.Stderr, "\nstopped; everything is cleaned up")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// enoughSpace checks that the temporary directory has space for the image and the copies of the supernode and of each
// node. The error names the remedy.
func enoughSpace(dir string, nodes int) error {
	var image int64
	for _, size := range layers {
		image += size
	}
	need := image * int64(nodes+2)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("the temporary directory %s: %w; set TMPDIR to another one", dir, err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < need {
		return fmt.Errorf("the demo needs %s in the temporary directory %s, which has %s: free some space, set TMPDIR to "+
			"another directory, or run fewer nodes (go run ./test/demo -nodes 2)", amount(need), dir, amount(free))
	}
	fmt.Printf("• it needs %s in the temporary directory %s while it runs\n", amount(need), dir)
	return nil
}

func run(ctx context.Context, nodes int, out, ldflags string) (err error) {
	if nodes < 1 || nodes > 50 {
		return fmt.Errorf("-nodes %d: 1 to 50 fit on one machine", nodes)
	}
	root, err := programs.Root()
	if err != nil {
		return err
	}
	if err := enoughSpace(os.TempDir(), nodes); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "darter-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fmt.Println("• building supernode and dfdaemon into bin/")
	begin := time.Now()
	bin := filepath.Join(root, "bin")
	if err := build(ctx, root, bin, ldflags); err != nil {
		return err
	}
	fmt.Printf("  built after %.1f s\n", time.Since(begin).Seconds())

	done := step("making an image and serving it from a registry")
	origin, err := startRegistry(filepath.Join(dir, "registry"), repository, tag, layers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, origin.stop()) }()
	done(fmt.Sprintf("%s in %d layers at %s", amount(origin.size), len(layers), origin.Host()))

	done = step(fmt.Sprintf("starting a supernode and %d dfdaemons", nodes))
	c, err := startCluster(ctx, bin, dir, origin, nodes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	done("")

	fmt.Printf("• pulling the image through all %d at once\n", nodes)
	origin.sent.Store(0)
	begin = time.Now()
	pulls := make([]*pull, nodes)
	var g errgroup.Group
	for i, n := range c.nodes {
		pulls[i] = &pull{mirror: n.mirror, registry: origin.Host(), repository: repository, tag: tag}
		g.Go(func() error {
			if err := pulls[i].run(ctx); err != nil {
				return fmt.Errorf("pulling through node %d: %w\n%s", i+1, err, n.tail())
			}
			return nil
		})
	}
	stopBars := showBars(os.Stdout, pulls, origin.size)
	err = g.Wait()
	stopBars()
	if err != nil {
		return err
	}
	took := time.Since(begin)

	f := figures{image: origin.size, sent: origin.sent.Load(), took: took}
	for i, n := range c.nodes {
		s, err := programs.Status(ctx, http.DefaultClient, n.api)
		if err != nil {
			return fmt.Errorf("asking node %d what it received: %w", i+1, err)
		}
		f.nodes = append(f.nodes, nodeFigures{took: pulls[i].took, received: s.Received})
	}
	f.print(os.Stdout, root, out)
	if err := f.write(filepath.Join(root, out)); err != nil {
		return err
	}
	if ratio := f.ratio(); ratio > ratioMax {
		return fmt.Errorf("the registry sent %.3f times the image; it should have been at most %.2f", ratio, ratioMax)
	}
	return nil
}

// step says what begins; the function it returns says how it ended.
func step(what string) func(note string) {
	fmt.Printf("• %s … ", what)
	begin := time.Now()
	return func(note string) {
		if note != "" {
			note = ": " + note
		}
		fmt.Printf("%.1f s%s\n", time.Since(begin).Seconds(), note)
	}
}

// amount of bytes, for people.
func amount(n int64) string { return humanize.Bytes(uint64(max(0, n))) }

// node is one running dfdaemon.
type node struct {
	*child
	mirror, api string
}

// cluster is the supernode and the dfdaemons.
type cluster struct {
	children []*child
	nodes    []node
}

// startTimeout is how long a program may need until it is ready.
const startTimeout = 30 * time.Second

func startCluster(ctx context.Context, bin, dir string, origin *registry, nodes int) (_ *cluster, err error) {
	c := &cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	addrs, err := programs.FreeAddrs(3 + 3*nodes)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not within %v", startTimeout))
	defer cancel()

	super := programs.Supernode{
		Name: "supernode", DataDir: filepath.Join(dir, "supernode"), API: addrs[0], Peer: addrs[1], Admin: addrs[2],
		Registry: origin.Host(), RegistryBase: origin.URL(),
	}
	if _, err := c.start(ctx, bin, dir, super.Name, "supernode", super.Admin, super.Args()); err != nil {
		return nil, err
	}
	for i := range nodes {
		a := addrs[3+3*i:]
		d := programs.Dfdaemon{
			Name: fmt.Sprintf("node%d", i+1), Mirror: a[0], API: a[1], Peer: a[2], Supernode: super.API,
			Registry: origin.Host(), RegistryBase: origin.URL(),
		}
		d.DataDir = filepath.Join(dir, d.Name)
		p, err := c.start(ctx, bin, dir, d.Name, "dfdaemon", d.API, d.Args())
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, node{child: p, mirror: d.Mirror, api: d.API})
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context, bin, dir, name, program, apiAddr string, args []string) (*child, error) {
	p, err := startChild(name, filepath.Join(dir, name+".log"), filepath.Join(bin, program), args...)
	if err != nil {
		return nil, err
	}
	c.children = append(c.children, p)
	if err := programs.WaitReady(ctx, http.DefaultClient, apiAddr, p.ended); err != nil {
		return nil, fmt.Errorf("starting %s: %w\n%s", name, err, p.tail())
	}
	return p, nil
}

// stop ends all programs at once, dfdaemons first in no order.
func (c *cluster) stop() error {
	errs := make([]error, len(c.children))
	var g errgroup.Group
	for i, p := range c.children {
		g.Go(func() error {
			errs[i] = p.stop()
			return nil
		})
	}
	g.Wait()
	return errors.Join(errs...)
}

// child is a process that the demo started.
type child struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // of its end; to be read after ended
}

func startChild(name, log, program string, args ...string) (*child, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &child{name: name, cmd: exec.Command(program, args...), log: log, ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = f, f
	c.cmd.SysProcAttr = ownGroup()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// stopTimeout is how long a program may take to end well.
const stopTimeout = 10 * time.Second

// stop asks the process to end and waits for it; it is killed when it does not. A process
// that ended by itself before is an error: it should have lived.
func (c *child) stop() error {
	select {
	case <-c.ended:
		return fmt.Errorf("%s ended too early: %w\n%s", c.name, c.err, c.tail())
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.name, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(stopTimeout):
		c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("%s did not end within %v of SIGTERM and was killed", c.name, stopTimeout)
	}
}

// tail is the end of what the process wrote.
func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return c.name + " wrote at last:\n  " + strings.Join(lines[max(0, len(lines)-15):], "\n  ")
}

// figures are what the demo found.
type figures struct {
	image, sent int64 // bytes
	took        time.Duration
	nodes       []nodeFigures
}

type nodeFigures struct {
	took     time.Duration
	received api.Sources
}

func (f *figures) ratio() float64 { return float64(f.sent) / float64(f.image) }

// print writes the table for people.
func (f *figures) print(w io.Writer, root, out string) {
	n := int64(len(f.nodes))
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "node\ttime\tfrom peers\tfrom the supernode\tfrom the registry\t")
	for i, x := range f.nodes {
		fmt.Fprintf(tw, "%d\t%.1f s\t%s\t%s\t%s\t\n", i+1, x.took.Seconds(), amount(x.received.Peers),
			amount(x.received.Seeds), amount(x.received.Origin))
	}
	tw.Flush()
	fmt.Fprintf(w, "\n%d nodes have an image of %s after %.1f s.\n\n", n, amount(f.image), f.took.Seconds())
	tw = tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(tw, "The registry sent\t%s\t= %.3f × the image\n", amount(f.sent), f.ratio())
	fmt.Fprintf(tw, "%d plain pulls cost\t%s\t= %.3f × the image\n", n, amount(f.image*n), float64(n))
	tw.Flush()
	if f.ratio() <= ratioMax {
		fmt.Fprint(w, "\nEach byte left the registry once: the supernode fetched it, and the nodes gave it to each "+
			"other.")
	}
	fmt.Fprintf(w, `
The figures are in %s too.

To pull through Darter with your own containerd:

  1. On one machine:    bin/supernode --cluster-secret-file=SECRET
     on every node:     bin/dfdaemon --supernodes=SUPERNODE:65000 --cluster-secret-file=SECRET
     SECRET is a file with the same 32 characters or more on all of them. One machine
     needs no supernode and no secret: plain bin/dfdaemon is a mirror that keeps what it pulled.
  2. On every node:     bin/dfdaemon configure containerd
     It writes a hosts.toml for each registry and says whether containerd has to be restarted;
     --dry-run shows what it would write, --remove undoes it.
  3. Pull: through Kubernetes, or with
       ctr images pull --hosts-dir /etc/containerd/certs.d docker.io/library/alpine:latest

`, out)
}

// write leaves the figures as data.
func (f *figures) write(path string) error {
	r := results.New()
	scenario := fmt.Sprintf("demo/%d-nodes", len(f.nodes))
	r.Promised(scenario, "registry_egress_ratio", f.ratio(), "ratio", ratioMax)
	r.Lower(scenario, "registry_egress", float64(f.sent), "bytes")
	r.Lower(scenario, "plain_pulls_egress", float64(f.image)*float64(len(f.nodes)), "bytes")
	r.Lower(scenario, "image_size", float64(f.image), "bytes")
	r.Lower(scenario, "last_node_time", f.took.Seconds(), "seconds")
	for i, n := range f.nodes {
		s := fmt.Sprintf("%s/node-%d", scenario, i+1)
		r.Lower(s, "time", n.took.Seconds(), "seconds")
		r.Higher(s, "received_from_peers", float64(n.received.Peers), "bytes")
		r.Lower(s, "received_from_supernode", float64(n.received.Seeds), "bytes")
		r.Lower(s, "received_from_registry", float64(n.received.Origin), "bytes")
	}
	return r.Write(path)
}
