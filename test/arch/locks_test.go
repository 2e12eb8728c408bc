package arch

import (
	"errors"
	"fmt"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// compiled returns the export data of this module's packages and of their imports, by import path.
var compiled = sync.OnceValues(func() (map[string]string, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-tags", "nomsgpack", "-f",
		"{{.ImportPath}}\t{{.Export}}", "./pkg/...")
	cmd.Dir = "../.."
	// The race detector's tests run with cgo, for which nothing else compiles these packages without the detector.
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go list -export: %w", err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		files[name] = file
	}
	return files, nil
})

func importing(t *testing.T, tr *Tree) types.Importer {
	files, err := compiled()
	require.NoError(t, err)
	fset := tr.fset
	if fset == nil {
		fset = token.NewFileSet()
	}
	return importer.ForCompiler(fset, "gc", func(name string) (io.ReadCloser, error) { return os.Open(files[name]) })
}

func TestLocks(t *testing.T) {
	tr := tree(t)
	faults, err := tr.Locks(Guarded, importing(t, tr))
	require.NoError(t, err)
	none(t, faults)
}

func TestLockFaults(t *testing.T) {
	const head = `package a

import (
	"log/slog"
	"sync"
)

type store interface{ List() }

type engine struct {
	mu    sync.Mutex
	other sync.Mutex
	log   *slog.Logger
	store store
	tell  func()
	ch    chan int
}

func (e *engine) held() bool { e.mu.Lock(); defer e.mu.Unlock(); return true }

func (e *engine) feed() { e.held() }

func (e *engine) list() { e.store.List() }

`
	for name, row := range map[string]struct{ body, want string }{
		"the same mutex, two calls away": {"e.mu.Lock(); defer e.mu.Unlock(); e.feed()",
			"calls feed, which takes mu again"},
		"the same mutex at once":  {"e.mu.Lock(); e.mu.Lock()", "takes mu again"},
		"after it was given back": {"e.mu.Lock(); e.mu.Unlock(); e.feed()", ""},
		"another mutex":           {"e.other.Lock(); defer e.other.Unlock(); e.feed()", ""},
		"in a branch":             {"e.mu.Lock(); if e.ch == nil { e.feed() }; e.mu.Unlock()", "calls feed"},
		"behind a branch that returned": {"e.mu.Lock(); if e.ch == nil { e.mu.Unlock(); return }; e.feed(); " +
			"e.mu.Unlock()", "calls feed"},
		"in a branch that gave it back before": {
			"e.mu.Lock(); if e.ch == nil { e.mu.Unlock(); e.feed(); return }; e.mu.Unlock()", ""},
		"an interface":                    {"e.mu.Lock(); defer e.mu.Unlock(); e.store.List()", "store.List"},
		"an interface, a call away":       {"e.mu.Lock(); defer e.mu.Unlock(); e.list()", "calls list, which calls"},
		"a function of the configuration": {"e.mu.Lock(); defer e.mu.Unlock(); e.tell()", "the function in tell"},
		"a log": {"e.mu.Lock(); defer e.mu.Unlock(); e.log.Info(\"x\")",
			"log/slog.Logger.Info"},
		"a channel":             {"e.mu.Lock(); defer e.mu.Unlock(); e.ch <- 1", "sends to a channel"},
		"waiting for a channel": {"e.mu.Lock(); defer e.mu.Unlock(); <-e.ch", "waits for a channel"},
		"a channel, if it is ready": {"e.mu.Lock(); defer e.mu.Unlock(); select { case e.ch <- 1: default: }",
			""},
		"a function that is called at once": {"e.mu.Lock(); defer e.mu.Unlock(); func() { e.feed() }()", "calls feed"},
		"a goroutine":                       {"e.mu.Lock(); defer e.mu.Unlock(); go e.feed()", ""},
		"in a goroutine's own lock":         {"go func() { e.mu.Lock(); e.feed(); e.mu.Unlock() }()", "calls feed"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := fixture(t, "pkg/a/a.go", head+"func (e *engine) try() { "+row.body+" }\n")
			faults, err := tr.Locks([]string{"pkg/a"}, importing(t, tr))
			require.NoError(t, err)
			if row.want == "" {
				assert.Empty(t, faults)
				return
			}
			require.NotEmpty(t, faults)
			assert.Contains(t, strings.Join(faults, "\n"), row.want)
		})
	}
}
