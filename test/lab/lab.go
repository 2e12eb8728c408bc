//go:build linux

// Package lab builds test machines: network namespaces on a bridge, with shaped links, processes and a real containerd
// inside.
//
// A lab never outlives the process that built it: its namespaces have no name, and the kernel kills the processes that
// hold them together with the builder. So two labs never meet, and a crash leaves only a directory, which the next lab
// removes. It needs root. Start at [New].
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Config of a lab.
type Config struct {
	// Nodes is the number of nodes in addition to the registry. At most 250.
	Nodes int
	// NodeRate and RegistryRate limit each link in both directions, in bits per second; 0 means no limit.
	NodeRate, RegistryRate int64
}

// Lab is a switch, a registry's machine and nodes, each in its own namespaces. The switch has no other links, so no
// packet leaves a lab.
type Lab struct {
	// Dir holds the lab's files, with one directory per node. It is removed at the end.
	Dir string
	// Registry is the machine of the origin.
	Registry *Node
	Nodes    []*Node

	wire   *Node // the namespace of the bridge
	forker *forker
	stop   func() // ends the watch for signals

	once sync.Once
}

// Node is one machine: a network namespace and a mount namespace. It sees the host's files.
type Node struct {
	Name string
	// Addr is its only address.
	Addr string
	// Dir holds its files.
	Dir string

	lab    *Lab
	holder *Proc

	// mu guards procs.
	mu    sync.Mutex
	procs []*Proc
}

// dirPrefix is followed by the builder's process ID and a random part.
const dirPrefix = "darter-lab-"

// New builds a lab for a test. If the machine cannot build one, it skips the test, or fails it if CI=true. The lab ends
// with the test; a failed test prints the output of the lab's processes.
func New(t testing.TB, cfg Config) *Lab {
	t.Helper()
	Need(t, Network)
	l, err := Build(cfg)
	if err != nil {
		t.Fatalf("building the lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.dump(t)
		}
		if err := l.Close(); err != nil {
			t.Errorf("removing the lab: %v", err)
		}
	})
	return l
}

// Build builds a lab. The caller closes it; SIGINT and SIGTERM close it, too, before they end the process.
func Build(cfg Config) (_ *Lab, err error) {
	if cfg.Nodes < 0 || cfg.Nodes > 250 {
		return nil, fmt.Errorf("a lab of %d nodes: want 0 to 250", cfg.Nodes)
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("making the lab's directory: %w", err)
	}
	l := &Lab{Dir: dir, forker: newForker()}
	l.watchSignals()
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()

	if l.wire, err = l.node("switch", ""); err != nil {
		return nil, err
	}
	if err := l.wire.script("ip link add br0 type bridge && ip link set br0 up"); err != nil {
		return nil, err
	}
	if l.Registry, err = l.attach("registry", "10.77.0.2", cfg.RegistryRate); err != nil {
		return nil, err
	}
	for i := range cfg.Nodes {
		n, err := l.attach("node"+strconv.Itoa(i+1), "10.77.1."+strconv.Itoa(i+1), cfg.NodeRate)
		if err != nil {
			return nil, err
		}
		l.Nodes = append(l.Nodes, n)
	}
	return l, nil
}

// node makes the namespaces of a node, without a link.
func (l *Lab) node(name, addr string) (*Node, error) {
	n := &Node{Name: name, Addr: addr, Dir: filepath.Join(l.Dir, name), lab: l}
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of %s: %w", name, err)
	}
	// cat also ends at the end of its standard input.
	cmd := exec.Command("unshare", "--net", "--mount", "--propagation", "private", "--uts",
		"sh", "-c", "hostname "+name+" 2>/dev/null; ip link set lo up && echo ready && exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if n.holder, err = l.start(n, "holder", cmd, in.Close); err != nil {
		return nil, fmt.Errorf("making the namespaces of %s: %w", name, err)
	}
	buf := make([]byte, 6)
	if _, err := out.Read(buf); err != nil || string(buf) != "ready\n" {
		return nil, fmt.Errorf("making the namespaces of %s: %w: %s", name, errors.Join(err, n.holder.Kill()),
			n.holder.Log())
	}
	return n, nil
}

// attach makes a node and links it to the switch.
func (l *Lab) attach(name, addr string, rate int64) (*Node, error) {
	n, err := l.node(name, addr)
	if err != nil {
		return nil, err
	}
	port := "p" + name
	if err := l.wire.script(fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d && ip link set %s master "+
		"br0 up",
		port, n.holder.Pid(), port)); err != nil {
		return nil, err
	}
	if err := n.script(fmt.Sprintf("ip addr add %s/16 dev eth0 && ip link set eth0 up", addr)); err != nil {
		return nil, err
	}
	if rate > 0 {
		// The bucket holds about 10 ms, so that even the shortest pull meets the rate. The queue of half a second slows
		// a sender down before it loses packets.
		shape := fmt.Sprintf("root tbf rate %d burst %d latency 500ms", rate, max(64<<10, rate/8/100))
		if err := l.wire.script("tc qdisc add dev " + port + " " + shape); err != nil {
			return nil, err
		}
		if err := n.script("tc qdisc add dev eth0 " + shape); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Close ends every process of the lab and removes its files. Closing twice is no error.
func (l *Lab) Close() (err error) {
	l.once.Do(func() {
		l.stop()
		all := append([]*Node{}, l.Nodes...)
		if l.Registry != nil {
			all = append(all, l.Registry)
		}
		if l.wire != nil {
			all = append(all, l.wire)
		}
		for _, n := range all {
			n.mu.Lock()
			procs := append([]*Proc{}, n.procs...)
			n.mu.Unlock()
			// Kill in reverse order: a program before its containerd, and all before the holder of their namespaces.
			for i := len(procs) - 1; i >= 0; i-- {
				err = errors.Join(err, procs[i].Kill())
			}
		}
		l.forker.close()
		err = errors.Join(err, os.RemoveAll(l.Dir))
	})
	return err
}

// watchSignals closes the lab at SIGINT and SIGTERM.
func (l *Lab) watchSignals() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	l.stop = sync.OnceFunc(func() {
		signal.Stop(signals)
		close(done)
	})
	go func() {
		select {
		case <-done:
		case s := <-signals:
			l.Close()
			signal.Reset(s)
			syscall.Kill(os.Getpid(), s.(syscall.Signal))
		}
	}()
}

// dump prints the end of every process's output.
func (l *Lab) dump(t testing.TB) {
	for _, n := range append([]*Node{l.Registry}, l.Nodes...) {
		if n == nil {
			continue
		}
		n.mu.Lock()
		for _, p := range n.procs[1:] {
			text := p.Log()
			if len(text) > 4<<10 {
				text = "…" + text[len(text)-4<<10:]
			}
			t.Logf("%s of %s wrote:\n%s", p.Name, n.Name, text)
		}
		n.mu.Unlock()
	}
}

// Sweep removes the directories of labs whose builder has ended.
func Sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), dirPrefix), "-")
		pid, err := strconv.Atoi(text)
		if err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			continue
		}
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("removing the directory of an ended lab: %w", err)
		}
	}
	return nil
}

// script runs shell commands in the node's network.
func (n *Node) script(commands string) error {
	out, err := n.Command(context.Background(), "sh", "-c", commands).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %s: %w: %s", n.Name, commands, err, out)
	}
	return nil
}

// Command is like [exec.CommandContext], in the node's namespaces. Use it for short commands and [Node.Start] for
// long-running programs.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", n.enter(name, args)...)
}

func (n *Node) enter(name string, args []string) []string {
	pid := strconv.Itoa(n.holder.Pid())
	return append([]string{"--target", pid, "--net", "--mount", "--uts", "--wd=/", "--", name}, args...)
}

// Path returns the path at which the test sees the node's path, mounts included.
func (n *Node) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.holder.Pid()), "root", path)
}

// Traffic counts the bytes of a link from the node's side, frames included.
type Traffic struct{ Received, Sent int64 }

// Traffic reads the counters of the node's link.
func (n *Node) Traffic() (Traffic, error) {
	file := fmt.Sprintf("/proc/%d/net/dev", n.holder.Pid())
	b, err := os.ReadFile(file)
	if err != nil {
		return Traffic{}, fmt.Errorf("reading the counters of %s: %w", n.Name, err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "eth0:"); ok {
			f := strings.Fields(rest)
			if len(f) < 9 {
				break
			}
			received, err1 := strconv.ParseInt(f[0], 10, 64)
			sent, err2 := strconv.ParseInt(f[8], 10, 64)
			return Traffic{received, sent}, errors.Join(err1, err2)
		}
	}
	return Traffic{}, fmt.Errorf("reading the counters of %s: no eth0 in %s", n.Name, file)
}

// inside calls f on a thread in the node's network, in which the sockets of f stay.
func (n *Node) inside(f func() error) error {
	result := make(chan error)
	go func() {
		// The goroutine ends locked, so its thread ends, too, and no other goroutine runs in the wrong network.
		runtime.LockOSThread()
		result <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.holder.Pid()))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("in the network of %s: %w", n.Name, err)
	}
	return nil
}

// Listen listens on a TCP address of the node, for a server in the test's process.
func (n *Node) Listen(addr string) (l net.Listener, err error) {
	err = n.inside(func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// Dial connects from the node to an address, which is an IP address and a port.
func (n *Node) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = n.inside(func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Client returns an HTTP client on the node. It keeps no connections.
func (n *Node) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}}
}

// WaitFor requests a URL on the node until it answers 200, or fails after limit.
func (n *Node) WaitFor(ctx context.Context, url string, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("%s did not answer on %s within %v", url, n.Name, limit))
	defer cancel()
	var last error
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := n.Client().Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("it answers %s", resp.Status)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
