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
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/darter-io/darter/pkg/source"
)

// Bounds of credential helpers.
const (
	// helperMax is the longest answer of a credential helper, in bytes.
	helperMax = 64 << 10
	// helperTimeout bounds one run of a helper, its children included; some ask a cloud.
	helperTimeout = 10 * time.Second
	// helperLife is how long a helper's answer is used before it is run again.
	helperLife = time.Minute
	// helperRest is how long a helper that hung is left alone: until then who needs it is told
	// so at once. Longer spares processes, shorter sees sooner that it is well again.
	helperRest = 5 * time.Second
	// helpersMax is how many helpers of one file run at once; others wait for their turn.
	helpersMax = 8
)

// helpers runs credential helpers, each once for all that need its answer at the same time. A
// helper that hangs delays those alone, and is killed with its children after [helperTimeout]. The
// zero value is ready.
type helpers struct {
	// mu is held to look up and note, never while a helper runs.
	mu      sync.Mutex
	file    *dockerFile // whose answers are remembered; another one's are nobody's
	running map[string]*helperRun
	slots   chan struct{}
	// limit bounds one run; 0 is helperTimeout.
	limit time.Duration
}

// helperRun is one run of a helper for one server. What it came to stands once done is closed.
type helperRun struct {
	done chan struct{}
	auth authn.AuthConfig
	err  error
	// until is how long the outcome is used.
	until time.Time
}

// help asks a credential helper for a server, or uses its last answer. The error is the cause of
// ctx's end, or names the helper.
func (d *dockerConfig) help(ctx context.Context, file *dockerFile, helper, server string) (authn.AuthConfig, bool, error) {
	program := "docker-credential-" + helper
	if strings.ContainsAny(helper, `/\`) {
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: %s names a helper by a path; a name is expected, of a docker-credential-NAME in the PATH", server, d.path)
	}
	r := d.helpers.run(file, program, server)
	select {
	case <-r.done:
	case <-ctx.Done():
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: waiting for %s: %w", server, program, context.Cause(ctx))
	}
	return r.auth, r.err == nil && r.auth != (authn.AuthConfig{}), r.err
}

// run returns the run whose outcome counts now: the last one, or one that it starts. It goes on
// when nobody waits for it any more, for who comes next.
func (h *helpers) run(file *dockerFile, program, server string) *helperRun {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file != file {
		h.file, h.running = file, map[string]*helperRun{}
	}
	if h.slots == nil {
		h.slots = make(chan struct{}, helpersMax)
	}
	key := program + " " + server
	if r := h.running[key]; r != nil {
		select {
		case <-r.done:
			if time.Now().Before(r.until) {
				return r
			}
		default:
			return r
		}
	}
	r, limit := &helperRun{done: make(chan struct{})}, cmp.Or(h.limit, helperTimeout)
	h.running[key] = r
	go func() {
		defer close(r.done)
		h.slots <- struct{}{}
		defer func() { <-h.slots }()
		defer source.Rescue(&r.err, "asking "+program)
		var hung bool
		r.auth, hung, r.err = askHelper(program, server, limit)
		switch {
		case hung:
			r.until = time.Now().Add(helperRest)
		case r.err == nil:
			r.until = time.Now().Add(helperLife)
		}
	}()
	return r
}

// askHelper runs a helper by the protocol of docker-credential-helpers: the server on its standard
// input, JSON on its standard output. It takes limit and a second at the most.
func askHelper(program, server string, limit time.Duration) (auth authn.AuthConfig, hung bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	// A group of its own, so that its children end with it.
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
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it left children behind that hold its output
	}
	var answer struct{ Username, Secret string }
	switch {
	case ctx.Err() != nil:
		return auth, true, fmt.Errorf("credentials for %s: %s gave no answer within %s and was killed; try it by hand: echo %s | %s get", server, program, limit, server, program)
	case err != nil && strings.Contains(out.String(), "credentials not found"):
		// The protocol's words for "there are none".
		return auth, false, nil
	case err != nil:
		return auth, false, fmt.Errorf("credentials for %s: %s failed (%w); try it by hand: echo %s | %s get", server, program, err, server, program)
	case json.Unmarshal(out.Bytes(), &answer) != nil:
		return auth, false, fmt.Errorf("credentials for %s: %s answered no JSON of at most %d bytes", server, program, helperMax)
	}
	if answer.Username == "<token>" {
		return authn.AuthConfig{IdentityToken: answer.Secret}, false, nil
	}
	return authn.AuthConfig{Username: answer.Username, Password: answer.Secret}, false, nil
}

// bounded takes so many bytes and drops the rest.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	_, _ = b.Buffer.Write(p[:min(len(p), max(0, b.max-b.Len()))])
	return len(p), nil
}
