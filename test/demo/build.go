package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/darter-io/darter/test/programs"
)

// demonstrated are the programs that the demo runs. It builds no others.
var demonstrated = []string{"./cmd/supernode", "./cmd/dfdaemon"}

// build builds the programs into bin and prints how far it is: the first time it fetches their modules and compiles
// every package, which takes minutes.
func build(ctx context.Context, root, bin, ldflags string) error {
	step := newCounter(os.Stdout)
	list := append([]string{"list", "-deps", "-tags", "nomsgpack"}, demonstrated...)
	packages, err := goCommand(ctx, root, list, func(line string) {
		if strings.HasPrefix(line, "go: downloading ") {
			step.add("%d modules fetched")
		}
	})
	if err != nil {
		return fmt.Errorf("fetching modules: %w", err)
	}
	step.end()

	total := bytes.Count(packages, []byte("\n"))
	args := append([]string{"build", "-v"}, programs.Flags...)
	if ldflags != "" {
		args = append(args, "-ldflags", ldflags)
	}
	args = append(append(args, "-o", bin+string(filepath.Separator)), demonstrated...)
	if _, err := goCommand(ctx, root, args, func(line string) {
		// With -v, go build names each package that it compiles, and none that its cache has.
		if !strings.HasPrefix(line, "#") {
			step.add(fmt.Sprintf("%%d packages compiled, of %d at most", total))
		}
	}); err != nil {
		return fmt.Errorf("building %s: %w", strings.Join(demonstrated, " "), err)
	}
	step.end()
	return nil
}

// goCommand runs the go command, gives each line of its standard error to said, and returns its standard output. The
// error holds the last lines.
func goCommand(ctx context.Context, dir string, args []string, said func(line string)) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	var out bytes.Buffer
	cmd.Stdout = &out
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var last []string
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		said(lines.Text())
		last = append(last, lines.Text())
		last = last[max(0, len(last)-20):]
	}
	_, _ = io.Copy(io.Discard, pipe) // after a line that is too long
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, strings.Join(last, "\n"))
	}
	return out.Bytes(), nil
}

// counter prints one growing number: in place on a terminal, else in a line now and then.
type counter struct {
	w       io.Writer
	live    bool
	n       int
	printed time.Time
	text    string
}

func newCounter(f *os.File) *counter {
	return &counter{w: f, live: term.IsTerminal(int(f.Fd()))}
}

// add counts one more. The format has one %d.
func (c *counter) add(format string) {
	c.n++
	c.text = fmt.Sprintf(format, c.n)
	switch {
	case c.live:
		fmt.Fprintf(c.w, "\r\x1b[K  %s", c.text)
	case time.Since(c.printed) > 5*time.Second:
		fmt.Fprintf(c.w, "  %s\n", c.text)
		c.printed = time.Now()
	}
}

// end prints the last number and begins again at zero.
func (c *counter) end() {
	if c.n > 0 && c.live {
		fmt.Fprintln(c.w)
	} else if c.n > 0 {
		fmt.Fprintf(c.w, "  %s\n", c.text)
	}
	*c = counter{w: c.w, live: c.live}
}
