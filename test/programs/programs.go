// Package programs builds Darter's programs and says how they are started, for the demo and
// for tests that need real processes.
//
// The command line of a program stands here and nowhere else in the tests, and only with
// settings that the documents name. Start at [Build], [Supernode] and [Dfdaemon].
package programs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/test/race"
)

// Root is the directory of the module that the working directory is in.
func Root() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the module's directory: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", errors.New("not inside of the module: change to a directory of Darter's source")
	}
	return filepath.Dir(mod), nil
}

// Flags are go build's for a program like those of make build, which stamps a version in addition.
var Flags = []string{"-trimpath", "-tags", "nomsgpack", "-ldflags", "-s -w"}

// Build builds packages ("./cmd/...") as make build does, into dir; under the race detector it
// compiles that in, see [NoRaces]. The error holds what the compiler wrote.
func Build(ctx context.Context, dir string, packages ...string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	args := append(append([]string{"build"}, Flags...), "-o", dir+string(filepath.Separator))
	cgo := "CGO_ENABLED=0"
	if race.Enabled {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// NoRaces fails the test when a program that it starts from now on, and that [Build] built under
// the race detector, reports a race; the program ends at its first one. Without the detector
// NoRaces does nothing.
func NoRaces(t testing.TB) {
	t.Helper()
	if !race.Enabled {
		return
	}
	dir := t.TempDir()
	t.Setenv("GORACE", "halt_on_error=1 log_path="+filepath.Join(dir, "race"))
	t.Cleanup(func() {
		reports, err := filepath.Glob(filepath.Join(dir, "race.*"))
		if err != nil {
			t.Errorf("looking for reports of races: %v", err)
		}
		for _, r := range reports {
			text, err := os.ReadFile(r)
			t.Errorf("process %s reports a race (%v):\n%s", strings.TrimPrefix(filepath.Ext(r), "."), err, text)
		}
	})
}

// Supernode says how to start one. Addresses are host:port.
type Supernode struct {
	Name, DataDir          string
	API, Peer, Admin       string
	SecretFile             string // none: loopback addresses only
	Registry, RegistryBase string // the registry's name, and its URL
}

// Args is the command line.
func (s Supernode) Args() []string {
	return given(
		"--node-name", s.Name, "--node-data-dir", s.DataDir,
		"--api-listen", s.API, "--peer-listen", s.Peer, "--admin-listen", s.Admin,
		"--cluster-secret-file", s.SecretFile, "--upstreams", s.Registry+"="+s.RegistryBase,
	)
}

// Dfdaemon says how to start one. Addresses are host:port.
type Dfdaemon struct {
	Name, DataDir          string
	Mirror, API, Peer      string
	Supernode              string // its API; none: the daemon leads its own tasks
	SecretFile             string // none: loopback addresses only
	Registry, RegistryBase string // the registry's name, and its URL
}

// Args is the command line.
func (d Dfdaemon) Args() []string {
	return given(
		"--node-name", d.Name, "--node-data-dir", d.DataDir,
		"--mirror-listen", d.Mirror, "--api-listen", d.API, "--peer-listen", d.Peer,
		"--supernodes", d.Supernode,
		"--cluster-secret-file", d.SecretFile, "--upstreams", d.Registry+"="+d.RegistryBase,
	)
}

// given drops the settings without a value.
func given(pairs ...string) (args []string) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			args = append(args, pairs[i]+"="+pairs[i+1])
		}
	}
	return args
}

// Ports below those that kernels give to outgoing connections (from 32768 on Linux, 49152
// elsewhere): one of those could be taken between now and the program's start.
const portMin, portMax = 20000, 32000

// portsTaken counts the ports that this process took. Two test processes run at once: each begins
// where its process ID says and goes on from there, so that none takes what another has just found
// free and not yet bound. Consecutive IDs lie 64 ports apart.
var portsTaken atomic.Int64

func nextPort() int {
	return portMin + int((int64(os.Getpid())*64+portsTaken.Add(1)-1)%(portMax-portMin))
}

// FreeAddrs returns addresses of 127.0.0.1 on which no program listens now.
func FreeAddrs(n int) ([]string, error) {
	var addrs []string
	var last error
	for range 50 * n {
		if len(addrs) == n {
			return addrs, nil
		}
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(nextPort()))
		if err != nil {
			last = err
			continue
		}
		// All stay open until all are found, so that none is found twice.
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return nil, fmt.Errorf("looking for %d free ports from %d to %d: %w", n, portMin, portMax, last)
}

// Status asks a program for its status at its local API.
func Status(ctx context.Context, c *http.Client, addr string) (api.Status, error) {
	var s api.Status
	url := "http://" + addr + api.PathStatus
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return s, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return s, fmt.Errorf("reading %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("%s answers %s: %.200s", url, resp.Status, body)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("reading %s: %w", url, err)
	}
	return s, nil
}

// WaitReady waits until a program says that it is ready. It gives up when ctx ends or when
// ended is closed, which tells that the process is gone.
func WaitReady(ctx context.Context, c *http.Client, addr string, ended <-chan struct{}) error {
	var last error
	for {
		s, err := Status(ctx, c, addr)
		if err == nil && s.Ready {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it lacks %s", strings.Join(s.Missing, ", "))
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %w", addr, context.Cause(ctx), last)
		case <-ended:
			return fmt.Errorf("the program at %s ended before it was ready", addr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
