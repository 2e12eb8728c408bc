// Command machine measures what Darter costs and how close it comes to what the machine
// allows, and prints every figure with its target.
//
// It only prints: a missed target never fails, because figures of a loaded machine prove nothing. Compared systems run
// by turns within the same minute, and the figure is a median with its spread. Start at [scenarios].
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/results"
)

// bench is one run of this program.
type bench struct {
	quick bool
	// dir holds everything that is written, and is removed at the end.
	dir string
	// root is the module's directory.
	root string
	// profile is where children leave profiles; empty for none.
	profile string
	log     io.Writer
	out     *results.File
}

// errMissing tells that the machine lacks something; the scenario is skipped with that word.
var errMissing = errors.New("skipped")

// scenarios are what can be measured, in the order of the table.
var scenarios = []struct {
	name, what string
	run        func(*bench, context.Context) error
}{
	{"cpu", "CPU per GiB delivered, compared with a minimal HTTP peer", (*bench).cpu},
	{"links", "time of a crowd on shaped links, over the bound", (*bench).links},
	{"layer", "a small layer through the swarm and directly", (*bench).layer},
	{"scheduler", "announces of 10,000 hosts in 10 tasks", (*bench).scheduler},
	{"memory", "memory of dfdaemon, idle and in a pull", (*bench).memory},
	{"mirror", "a manifest and a small layer that are here already, for one client and for 200 at once",
		(*bench).mirrorWarm},
	{"warm", "a cached blob, compared with nginx", (*bench).warm},
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == childCommand {
		if err := child(os.Args[2], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	quick := flag.Bool("quick", false, "fewer runs of smaller tasks: a minute or two, wider spread")
	only := flag.String("only", strings.Join(names, ","), "scenarios to run")
	out := flag.String("out", "out/bench.json",
		"file for the figures, below the module's directory; figures of other scenarios in it stay")
	profile := flag.String("profile", "",
		"directory for CPU and allocation profiles of the cpu scenario; profiling costs CPU itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *quick, strings.Split(*only, ","), *out, *profile)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err != nil && interrupted:
		fmt.Fprintln(os.Stderr, "\nstopped; everything is cleaned up")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, quick bool, only []string, out, profile string) (err error) {
	root, err := programs.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "darter-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if profile != "" {
		if profile, err = filepath.Abs(profile); err != nil {
			return err
		}
		if err := os.MkdirAll(profile, 0o755); err != nil {
			return err
		}
	}
	b := &bench{quick: quick, dir: dir, root: root, profile: profile, log: os.Stderr, out: results.New()}
	for _, name := range only {
		if err := b.scenario(ctx, name); err != nil {
			return err
		}
	}
	fmt.Println()
	if err := b.out.Print(os.Stdout); err != nil {
		return err
	}
	path := filepath.Join(root, out)
	if err := b.out.Merge(path); err != nil {
		return err
	}
	return b.out.Write(path)
}

func (b *bench) scenario(ctx context.Context, name string) error {
	for _, s := range scenarios {
		if s.name != name {
			continue
		}
		fmt.Fprintf(b.log, "• %s\n", s.what)
		err := s.run(b, ctx)
		if errors.Is(err, errMissing) {
			fmt.Fprintf(b.log, "  %v\n", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	return fmt.Errorf("there is no scenario %q", name)
}

// rounds is how often each of several compared systems runs.
func (b *bench) rounds() int {
	if b.quick {
		return 3
	}
	return 5
}
