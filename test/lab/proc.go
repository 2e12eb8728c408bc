//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// forker starts processes from one thread that lives as long as the lab: the kernel sends the parent's death signal at
// the end of the forking thread, not of the process.
type forker struct{ work chan func() }

func newForker() *forker {
	f := &forker{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for do := range f.work {
			do()
		}
	}()
	return f
}

func (f *forker) start(cmd *exec.Cmd) (err error) {
	done := make(chan struct{})
	f.work <- func() {
		err = cmd.Start()
		close(done)
	}
	<-done
	return err
}

func (f *forker) close() { close(f.work) }

// Proc is a process in a node.
type Proc struct {
	// Name is the test's name for it; its output is in the node's Dir, as Name.log.
	Name string

	cmd  *exec.Cmd
	log  string
	hup  func() error
	done chan struct{} // closed at its end
	err  error         // of its end; read it after done
}

// Start starts a program in the node. The end of the lab kills it.
func (n *Node) Start(name, program string, args ...string) (*Proc, error) {
	cmd := exec.Command("nsenter", n.enter(program, args)...)
	p, err := n.lab.start(n, name, cmd, nil)
	if err != nil {
		return nil, fmt.Errorf("starting %s on %s: %w", name, n.Name, err)
	}
	return p, nil
}

func (l *Lab) start(n *Node, name string, cmd *exec.Cmd, hup func() error) (*Proc, error) {
	p := &Proc{Name: name, cmd: cmd, log: filepath.Join(n.Dir, name+".log"), hup: hup, done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	// The lab's end removes the temporary files of killed programs.
	cmd.Env = append(cmd.Environ(), "TMPDIR="+n.Dir)
	// An own process group keeps the terminal's Ctrl-C from the children: the lab ends them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := l.forker.start(cmd); err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.procs = append(n.procs, p)
	n.mu.Unlock()
	go p.wait()
	return p, nil
}

func (p *Proc) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// Pid returns the process ID in the test's namespace.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed at the end of the process.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Err returns the error of the process's end, nil while it runs.
func (p *Proc) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Log returns the output so far.
func (p *Proc) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b))
}

// Signal sends a signal, unless the process has ended.
func (p *Proc) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Kill ends the process at once (SIGKILL) and waits for its end.
func (p *Proc) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing %s (process %d): %w", p.Name, p.Pid(), err)
	}
	if p.hup != nil {
		p.hup()
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("%s (process %d) did not die of SIGKILL within a minute", p.Name, p.Pid())
	}
}

// Stop sends SIGTERM and waits for the end of the process. An end by that signal is no error. After limit, Stop kills
// the process and returns an error.
func (p *Proc) Stop(limit time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping %s (process %d): %w", p.Name, p.Pid(), err)
	}
	select {
	case <-p.done:
	case <-time.After(limit):
		err := fmt.Errorf("%s (process %d) did not end within %v of SIGTERM", p.Name, p.Pid(), limit)
		return errors.Join(err, p.Kill())
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return p.err
}
