package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// ecrExpired is what ECR says of a login that has ended.
const ecrExpired = `{"errors":[{"code":"DENIED","message":"Your authorization token has expired. ` +
	`Reauthenticate and try again."}]}`

// ending is a registry of one blob whose logins end: 403 and a text for any Authorization but the current one.
type ending struct {
	*httptest.Server
	spec task.Spec

	mu      sync.Mutex
	bearer  bool
	current string // the password or token that is accepted
	text    string
	blobs   int            // requests for the blob
	agents  map[string]int // requests by User-Agent
}

func newEnding(t *testing.T, bearer bool) *ending {
	e := &ending{bearer: bearer, current: "p1", text: ecrExpired, agents: map[string]int{}}
	content := strings.Repeat("darter ", 3000)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.agents[r.UserAgent()]++
		sent := r.Header.Get("Authorization")
		_, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"token":%q}`, e.current)
		case sent == "":
			w.Header().Set("Www-Authenticate", `Basic realm="ecr"`)
			if e.bearer {
				w.Header().Set("Www-Authenticate", `Bearer realm="`+e.URL+`/token",service="s"`)
			}
			w.WriteHeader(http.StatusUnauthorized)
		case sent == "Bearer "+e.current || password == e.current:
			if strings.Contains(r.URL.Path, "/blobs/") {
				e.blobs++
				_, _ = io.WriteString(w, content)
			}
		default:
			e.blobs++
			w.WriteHeader(http.StatusForbidden)
			if r.Method != http.MethodHead {
				_, _ = io.WriteString(w, e.text)
			}
		}
	}))
	t.Cleanup(e.Close)
	sum := sha256.Sum256([]byte(content))
	e.spec = task.Spec{ID: task.ID("sha256:" + hex.EncodeToString(sum[:])), Kind: task.Blob,
		Upstream: e.Listener.Addr().String(), Repository: "team/app", Agent: "containerd/2.4"}
	return e
}

// end ends the current login, and returns the requests for the blob so far.
func (e *ending) end(next, text string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.current, e.text = next, text
	return e.blobs
}

func (e *ending) asked() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.blobs
}

// status opens the blob and returns the status.
func (e *ending) status(t *testing.T, c *Client, spec task.Spec) int {
	res, err := c.Open(t.Context(), spec, 0)
	if err != nil {
		return source.Failure(err).Status
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	return http.StatusOK
}

func newClient(t *testing.T, host string, u Upstream) *Client {
	u.PlainHTTP, u.Proxy = true, "none"
	c, err := New(Config{Upstreams: map[string]Upstream{host: u}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// The node's login comes from a helper whose output ends before its time, as ECR's after a new login.
func TestAnEndedLoginIsRenewed(t *testing.T) {
	texts := []string{ecrExpired, `{"errors":[{"code":"UNAUTHORIZED","message":"token expired"}]}`,
		"The session has expired\n"}
	for _, text := range texts {
		e := newEnding(t, false)
		next := filepath.Join(t.TempDir(), "password")
		t.Setenv("HELPER_PASSWORD", next)
		runs := helper(t, `read server; echo '{"Username":"AWS","Secret":"'$(cat $HELPER_PASSWORD)'"}'`+"\n")
		require.NoError(t, os.WriteFile(next, []byte("p1"), 0o600))
		file := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(file, []byte(`{"credsStore":"test"}`), 0o600))
		c := newClient(t, e.spec.Upstream, Upstream{DockerConfig: file})
		require.Equal(t, 200, e.status(t, c, e.spec))
		require.Equal(t, 1, runs())

		before := e.end("p2", text)
		require.NoError(t, os.WriteFile(next, []byte("p2"), 0o600))
		require.Equal(t, 200, e.status(t, c, e.spec), text)
		assert.Equal(t, 2, runs())
		assert.Equal(t, before+2, e.asked())

		before = e.end("p3", text) // and the helper has nothing newer
		for range 5 {
			require.Equal(t, 403, e.status(t, c, e.spec))
		}
		assert.Equal(t, before+5, e.asked(), "a request that would carry the same login is not repeated")
		assert.Equal(t, 2, runs(), "the helper rests")
	}
}

func TestAnEndedTokenIsRenewed(t *testing.T) {
	for _, u := range []Upstream{{}, {Username: "alice", Password: "p"}} {
		e := newEnding(t, true)
		c := newClient(t, e.spec.Upstream, u)
		require.Equal(t, 200, e.status(t, c, e.spec))
		before := e.end("p2", ecrExpired)
		require.Equal(t, 200, e.status(t, c, e.spec))
		assert.Equal(t, before+2, e.asked())

		before = e.end("p3", `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
		require.Equal(t, 403, e.status(t, c, e.spec))
		assert.Equal(t, before+1, e.asked(), "any other refusal stays one")

		e.end("p4", ecrExpired)
		res, err := c.Do(t.Context(), source.RegistryRequest{Upstream: e.spec.Upstream, Method: http.MethodGet,
			Path: "/v2/team/app/blobs/" + string(e.spec.ID), Anonymous: true})
		require.NoError(t, err)
		res.Body.Close()
		assert.Equal(t, 200, res.StatusCode, "a lookup")
	}
}

// A client gets the registry's own text about the end of its login.
func TestAClientsEndedLoginIsItsOwn(t *testing.T) {
	e := newEnding(t, false)
	c := newClient(t, e.spec.Upstream, Upstream{Username: "AWS", Password: "p1"})
	require.Equal(t, 200, e.status(t, c, e.spec))
	own := e.spec
	own.Authorization = secret.String("Basic QVdTOm9sZA==")
	before := e.asked()
	_, err := c.Open(t.Context(), own, 0)
	var status *source.StatusError
	require.ErrorAs(t, err, &status)
	assert.Equal(t, 403, status.Status)
	assert.Equal(t, ecrExpired, string(status.Body))
	assert.Equal(t, before+1, e.asked())
}

// Every request names Darter and the client for which it goes, whatever the client calls itself.
func TestTheAgentOfTheClientIsNamed(t *testing.T) {
	for sent, want := range map[string]string{
		"containerd/2.4":                "darter (containerd/2.4)",
		"":                              "darter",
		"docker/29 (linux) ((x)":        "darter (docker/29 linux x)",
		"docker/29 (linux)":             "darter (docker/29 (linux))",
		"a\x01\u00e9\\b)(":              "darter (ab)",
		strings.Repeat("long ", 10_000): "darter (" + strings.TrimSpace(strings.Repeat("long ", 40)) + ")",
	} {
		for _, u := range []Upstream{{}, {Username: "alice", Password: "p"}} {
			e := newEnding(t, true)
			c := newClient(t, e.spec.Upstream, u)
			e.spec.Agent = sent
			require.Equal(t, 200, e.status(t, c, e.spec))
			res, err := c.Do(t.Context(), source.RegistryRequest{Upstream: e.spec.Upstream, Method: http.MethodHead,
				Path: "/v2/team/app/blobs/" + string(e.spec.ID), Agent: sent})
			require.NoError(t, err)
			res.Body.Close()
			require.Len(t, e.agents, 1, "%v", e.agents)
			assert.Positive(t, e.agents[want], "%v", e.agents)
		}
	}
}
