package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/darter-io/darter/pkg/source"
)

// Bounds of credential helpers.
const (
	// helperMax is the longest output of a credential helper, in bytes.
	helperMax = 64 << 10
	// helperTimeout bounds one run of a helper and its children; some ask a cloud service.
	helperTimeout = 10 * time.Second
	// helperLife is how long a helper's output is used before it runs again.
	helperLife = time.Minute
	// helperRest is how long a helper that hung does not run: requests that need it fail at once until then. A longer rest
	// starts fewer processes, a shorter one notices sooner that the helper works again.
	helperRest = 5 * time.Second
	// helpersMax bounds the helpers of one file that run at once; others wait for their turn.
	helpersMax = 8
)

// errClosed means that the client was closed.
var errClosed = errors.New("this program is stopping")

// helpers runs credential helpers, each once for all requests that need it at the same time. A helper that
// hangs delays only those, and is killed with its children after [helperTimeout]. The zero value is ready;
// close ends it.
type helpers struct {
	wg sync.WaitGroup

	// mu is held to look up and change, never while a helper runs.
	mu      sync.Mutex
	ctx     context.Context // of all runs; close cancels it
	cancel  context.CancelFunc
	closed  bool
	file    *dockerFile // the file of the remembered runs
	running map[string]*helperRun
	slots   chan struct{}
	// limit bounds one run; 0 is helperTimeout.
	limit time.Duration
}

// helperRun is one run of a helper for one server. Its result is set once done is closed.
type helperRun struct {
	done chan struct{}
	auth authn.AuthConfig
	err  error
	// until is how long the result is used.
	until time.Time
	// again says that its login ended before its time. rest is set in the run that replaces such a run: no other run
	// replaces it before that time. Otherwise a login that has ended for good would start a process for each request.
	again bool
	rest  time.Time
}

// help runs a credential helper for a server, or uses its last output. The error is the cause of ctx's end,
// or names the helper.
func (d *dockerConfig) help(ctx context.Context, file *dockerFile,
	helper, server string) (authn.AuthConfig, bool, error) {
	program := "docker-credential-" + helper
	if strings.ContainsAny(helper, `/\`) {
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: %s names a helper by a path; write the NAME of a "+
			"docker-credential-NAME in the PATH", server, d.path)
	}
	r := d.helpers.run(file, program, server)
	select {
	case <-r.done:
	case <-ctx.Done():
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: waiting for %s: %w", server, program,
			context.Cause(ctx))
	}
	return r.auth, r.err == nil && r.auth != (authn.AuthConfig{}), r.err
}

// run returns the run whose result is valid now: the last one, or a new one. A run continues after all waiting requests
// have left, so that the next request has its result.
func (h *helpers) run(file *dockerFile, program, server string) *helperRun {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		r := &helperRun{done: make(chan struct{}), err: errClosed}
		close(r.done)
		return r
	}
	if h.ctx == nil {
		h.ctx, h.cancel = context.WithCancel(context.Background())
	}
	if h.file != file {
		h.file, h.running = file, map[string]*helperRun{}
	}
	if h.slots == nil {
		h.slots = make(chan struct{}, helpersMax)
	}
	key := program + " " + server
	again := false
	if r := h.running[key]; r != nil {
		select {
		case <-r.done:
			if time.Now().Before(r.until) {
				return r
			}
			again = r.again
		default:
			return r
		}
	}
	r, limit := &helperRun{done: make(chan struct{})}, cmp.Or(h.limit, helperTimeout)
	if again {
		r.rest = time.Now().Add(helperRest)
	}
	h.running[key] = r
	ctx := h.ctx
	h.wg.Go(func() {
		defer close(r.done)
		h.slots <- struct{}{}
		defer func() { <-h.slots }()
		defer source.Rescue(&r.err, "running "+program)
		var hung bool
		if r.auth, hung, r.err = askHelper(ctx, program, server, limit); ctx.Err() != nil {
			r.err = fmt.Errorf("credentials for %s: running %s: %w", server, program, errClosed)
		}
		switch {
		case hung:
			r.until = time.Now().Add(helperRest)
		case r.err == nil:
			r.until = time.Now().Add(helperLife)
		}
	})
	return r
}

// rerun lets helpers run again for a server, because their last output is of no use any more.
func (h *helpers) rerun(servers []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, r := range h.running {
		_, server, _ := strings.Cut(key, " ")
		select {
		case <-r.done:
			if r.err == nil && slices.Contains(servers, server) && time.Now().After(r.rest) {
				r.until, r.again = time.Time{}, true
			}
		default:
		}
	}
}

// close kills the helpers that run, and waits for them.
func (h *helpers) close() {
	h.mu.Lock()
	h.closed = true
	if h.cancel != nil {
		h.cancel()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// askHelper runs a helper by the protocol of docker-credential-helpers: the server on its standard input, JSON on its
// standard output. It takes at most limit and one second.
func askHelper(ctx context.Context, program, server string,
	limit time.Duration) (auth authn.AuthConfig, hung bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	// A process group of its own, so that its children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			return os.ErrProcessDone
		}
		return nil
	}
	cmd.WaitDelay = time.Second
	out := &bounded{max: helperMax}
	cmd.Stdout = out
	err = cmd.Run()
	if cmd.Process != nil && errors.Is(err, exec.ErrWaitDelay) {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // children that it left hold its output
		err = nil                                           // the helper itself has ended well
	}
	var answer struct{ Username, Secret string }
	switch {
	case ctx.Err() != nil:
		return auth, true, fmt.Errorf("credentials for %s: %s gave no answer within %s and was killed; try it by hand: "+
			"echo %s | %s get", server, program, limit, server, program)
	case err != nil && strings.Contains(out.String(), "credentials not found"):
		// The protocol's reply for "there are none".
		return auth, false, nil
	case err != nil:
		return auth, false, fmt.Errorf("credentials for %s: %s failed (%w); try it by hand: echo %s | %s get",
			server, program, err, server, program)
	case json.Unmarshal(out.Bytes(), &answer) != nil:
		return auth, false, fmt.Errorf("credentials for %s: %s printed no JSON of at most %d bytes", server,
			program, helperMax)
	}
	if answer.Username == "<token>" {
		return authn.AuthConfig{IdentityToken: answer.Secret}, false, nil
	}
	return authn.AuthConfig{Username: answer.Username, Password: answer.Secret}, false, nil
}

// bounded keeps max bytes and drops the rest.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	_, _ = b.Buffer.Write(p[:min(len(p), max(0, b.max-b.Len()))])
	return len(p), nil
}
