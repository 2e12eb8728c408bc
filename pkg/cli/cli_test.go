package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

// recorder is a program that records its settings.
type recorder struct {
	started  chan struct{}
	reloaded chan config.Dfdaemon
}

func (r recorder) Run(ctx context.Context) error {
	close(r.started)
	<-ctx.Done()
	return nil
}

func (r recorder) Reload(settings any) error {
	r.reloaded <- *settings.(*config.Dfdaemon)
	return nil
}

// told is a log that a test reads while the program writes it.
type told struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines chan struct{}
}

func (l *told) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	l.lines <- struct{}{}
	return len(b), nil
}

func (l *told) take() string {
	<-l.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := l.text.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return s
}

func TestReloadBySIGHUP(t *testing.T) {
	file := filepath.Join(t.TempDir(), "settings.yaml")
	write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
	write("peer: {uploadSlots: 5}\n")
	cfg := new(config.Dfdaemon)
	run := recorder{make(chan struct{}), make(chan config.Dfdaemon, 1)}
	p := Program{
		Name: "dfdaemon", Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen",
		New: func(Runtime) (Runner, error) { return run, nil },
	}
	log := &told{lines: make(chan struct{}, 100)}
	cmd := p.command(io.Discard, log, nil)
	cmd.SetArgs([]string{"--config", file})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	<-run.started
	hup := func() { require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP)) }

	write("peer: {uploadSlots: 9}\nmirror: {listen: '127.0.0.1:7'}\nnode: {zone: west}\nlog: {level: debug}\n")
	hup()
	assert.Equal(t, 9, (<-run.reloaded).Peer.UploadSlots)
	line := log.take()
	assert.Contains(t, line, "settings reloaded")
	assert.Contains(t, line, `inForce="[peer.uploadSlots log.level]"`)
	assert.Contains(t, line, `afterRestart="[node.zone mirror.listen]"`)
	// One line for each.
	line = log.take()
	assert.Contains(t, line, "takes effect after a restart only")
	assert.Contains(t, line, `setting=node.zone inForce="\"\"" afterRestart=west`)
	line = log.take()
	assert.Contains(t, line, "setting=mirror.listen inForce=127.0.0.1:65001 afterRestart=127.0.0.1:7")

	write("peer: {uploadSlots: -1}\n")
	hup()
	line = log.take()
	assert.Contains(t, line, "settings not reloaded")
	assert.Contains(t, line, "peer.uploadSlots: -1 is not between 0 and 1024")
	assert.Empty(t, run.reloaded)

	write("peer: {uploadSlots: 5}\n")
	hup()
	assert.Equal(t, 5, (<-run.reloaded).Peer.UploadSlots)
	assert.Contains(t, log.take(), "peer.uploadSlots", "going back to what was there at the start is a change, too")
	cancel()
	require.NoError(t, <-ended)
}

// errAgain makes the command run its program again.
var errAgain = errors.New("again")

// renamed is a program that takes a new ID once, and then ends without an error.
type renamed struct{ runs *int }

func (r renamed) Run(context.Context) error {
	if *r.runs++; *r.runs == 1 {
		return fmt.Errorf("told so: %w", errAgain)
	}
	return nil
}

func (renamed) Reload(any) error { return nil }

func TestAgain(t *testing.T) {
	cfg := new(config.Dfdaemon)
	runs, built := 0, 0
	p := Program{
		Name: "dfdaemon", Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen",
		Again: errAgain,
		New:   func(Runtime) (Runner, error) { built++; return renamed{&runs}, nil },
	}
	cmd := p.command(io.Discard, io.Discard, nil)
	cmd.SetArgs(nil)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	assert.Equal(t, []int{2, 2}, []int{runs, built})
}

// A signal ends a program at once while it starts, also where its start waits for something that never comes.
func TestSignalDuringTheStart(t *testing.T) {
	waits := make(chan struct{})
	defer close(waits)
	for name, newProgram := range map[string]func(Runtime) (Runner, error){
		"it waits with its context": func(rt Runtime) (Runner, error) { <-rt.Context.Done(); return nil, rt.Context.Err() },
		"it hangs":                  func(Runtime) (Runner, error) { <-waits; return nil, errAgain },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := new(config.Dfdaemon)
			ctx, cancel := context.WithCancel(t.Context())
			begun := make(chan struct{})
			p := Program{
				Name: "dfdaemon", Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen",
				New: func(rt Runtime) (Runner, error) { close(begun); return newProgram(rt) },
			}
			cmd := p.command(io.Discard, io.Discard, nil)
			cmd.SetArgs([]string{})
			ended := make(chan error, 1)
			go func() { ended <- cmd.ExecuteContext(ctx) }()
			select {
			case <-begun:
			case err := <-ended:
				require.Fail(t, "it did not begin", err)
			}
			cancel()
			assert.NoError(t, <-ended)
		})
	}
}

// Probes and scripts judge a program by the exit code of its status.
func TestStatusFailsWhileNotReady(t *testing.T) {
	answer := api.Status{Program: "dfdaemon", Ready: true}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(answer)
	}))
	defer server.Close()
	cfg := new(config.Dfdaemon)
	p := Program{Name: "dfdaemon", Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen"}
	status := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := p.command(&out, io.Discard, []string{"DARTER_API_LISTEN=" + server.Listener.Addr().String()})
		cmd.SetArgs(append([]string{"status"}, args...))
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	for _, args := range [][]string{nil, {"--json"}} {
		answer.Ready, answer.Missing = true, nil
		_, err := status(args...)
		require.NoError(t, err)
		answer.Ready, answer.Missing = false, []string{"data directory: full", "a friend: silent"}
		out, err := status(args...)
		require.EqualError(t, err, "not ready: data directory: full; a friend: silent")
		assert.Contains(t, out, "a friend: silent", "it prints the status all the same")
	}
}
