package peer_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// as returns the swarm's task for a client with a token.
func (s *swarm) as(token string) task.Spec {
	spec := s.spec()
	spec.Authorization = secret.String(token)
	return spec
}

// refuseAfter makes the origin refuse all tokens but "good" with a status, a while after the request, and lists the
// tokens that it received.
func (s *swarm) refuseAfter(d time.Duration, status int) (shown func() []string) {
	var mu sync.Mutex
	var tokens []string
	s.origin.refuse = func(spec task.Spec) error {
		token := spec.Authorization.Reveal()
		mu.Lock()
		tokens = append(tokens, token)
		mu.Unlock()
		if token == "good" {
			return nil
		}
		time.Sleep(d)
		return &source.StatusError{Method: "GET", URL: "https://registry.test/v2/x", Status: status,
			Body: []byte("not for " + token)}
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return tokens
	}
}

// pull is the result that one client gets.
func (s *swarm) pull(n *node, spec task.Spec) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.read(ctx, n, spec, 0, int64(len(s.origin.content)))
}

// Clients with different credentials wait for one task. The origin refuses one set of credentials; only the client
// with that set gets the refusal.
func TestARefusalReachesOnlyTheRefusedCredentials(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		for _, c := range []struct {
			name        string
			apart, seed bool // the clients are at two hosts; a third one asks the origin
		}{{"at one host that asks itself", false, false}, {"at one host", false, true}, {"at two hosts", true, true}} {
			t.Run(fmt.Sprintf("%d %s", status, c.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSwarm(t, randomBytes(80, 3*piece.SizeMin))
					shown := s.refuseAfter(time.Second, status)
					if c.seed {
						s.seed()
					}
					first := s.node(nil)
					second := first
					if c.apart {
						second = s.node(nil)
					}
					var clients sync.WaitGroup
					clients.Go(func() {
						_, err := s.pull(first, s.as("bad"))
						var f *api.Failure
						// The object that the other client's credentials brought is here for all: the mirror checks who may have it.
						if (err != nil || !c.seed) && assert.ErrorAs(t, err, &f) {
							assert.Equal(t, status, f.Status)
							assert.Equal(t, "not for bad", string(f.Body))
						}
					})
					time.Sleep(500 * time.Millisecond)
					began := time.Now()
					data, err := s.pull(second, s.as("good"))
					require.NoError(t, err)
					require.True(t, bytes.Equal(s.origin.content, data))
					assert.Less(t, time.Since(began), 3*time.Second) // of virtual time
					clients.Wait()
					assert.Equal(t, []string{"bad", "good"}, shown())
				})
			})
		}
	}
}

// A registry serves no manifest by its digest. A client with the right tag gets the manifest, also while a client
// without a tag, or with one that has moved, waits for the registry's refusal.
func TestARefusalReachesOnlyTheRefusedTag(t *testing.T) {
	for _, tag := range []string{"", "moved"} {
		t.Run("tag "+tag, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(83, 1000))
				s.origin.refuse = func(spec task.Spec) error {
					if spec.Tag == "v1" {
						return nil
					}
					time.Sleep(time.Second)
					return &source.StatusError{Method: "GET", URL: "https://registry.test/v2/x", Status: http.StatusNotFound}
				}
				n := s.node(nil)
				of := func(tag string) task.Spec {
					spec := s.as("one")
					spec.Kind, spec.Tag = task.Manifest, tag
					return spec
				}
				var clients sync.WaitGroup
				clients.Go(func() {
					_, err := s.pull(n, of(tag))
					var f *api.Failure
					if assert.ErrorAs(t, err, &f) {
						assert.Equal(t, http.StatusNotFound, f.Status)
					}
				})
				time.Sleep(500 * time.Millisecond)
				data, err := s.pull(n, of("v1"))
				require.NoError(t, err)
				require.True(t, bytes.Equal(s.origin.content, data))
				clients.Wait()
			})
		})
	}
}

// A failure that every host gets names the credentials that the origin refused, so that mirrors show its reply to no
// other client.
func TestAFailureNamesItsAsker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(84, 3*piece.SizeMin))
		s.refuseAfter(time.Second, http.StatusInternalServerError)
		s.seed()
		var clients sync.WaitGroup
		for _, token := range []string{"bad", "worse"} {
			n := s.node(nil)
			clients.Go(func() {
				_, err := s.pull(n, s.as(token))
				var f *api.Failure
				if assert.ErrorAs(t, err, &f) {
					said := strings.TrimPrefix(string(f.Body), "not for ")
					assert.Contains(t, []string{"bad", "worse"}, said)
					assert.Equal(t, s.as(said).Asker(nil), f.Asker)
				}
			})
		}
		clients.Wait()
		assert.NotEqual(t, s.as("bad").Asker(nil), s.as("worse").Asker(nil))
		assert.NotEqual(t, s.as("bad").Asker(nil), s.as("bad").Asker([]byte("another cluster")))
	})
}

// A client that has opened the task and received nothing of it gets an error that lets it try again.
func TestALateRefusalReachesOnlyItsCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(81, 3*piece.SizeMin))
		ended := false
		s.origin.refuse = func(task.Spec) error {
			if ended {
				return &source.StatusError{Method: "GET", URL: "https://registry.test/v2/x",
					Status: http.StatusUnauthorized}
			}
			return nil
		}
		s.origin.body = func(int, int64, io.Reader) io.Reader {
			return readerFunc(func([]byte) (int, error) {
				time.Sleep(time.Second)
				ended = true
				return 0, io.EOF
			})
		}
		n := s.node(nil)
		for token, status := range map[string]int{"good": http.StatusServiceUnavailable,
			"bad": http.StatusUnauthorized} {
			go func() {
				if token == "good" {
					time.Sleep(500 * time.Millisecond)
				}
				_, err := s.pull(n, s.as(token))
				var f *api.Failure
				if assert.ErrorAs(t, err, &f) {
					assert.Equal(t, status, f.Status, token)
				}
			}()
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
	})
}

// A crowd in which each client has its own token and none may read the task ends soon, and does not ask the registry
// once per client.
func TestACrowdThatMayHaveNothingEndsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(82, 3*piece.SizeMin))
		shown := s.refuseAfter(100*time.Millisecond, http.StatusForbidden)
		s.seed()
		var clients sync.WaitGroup
		began := time.Now()
		for i := range 30 {
			n := s.node(nil)
			clients.Go(func() {
				_, err := s.pull(n, s.as(fmt.Sprint(i)))
				var f *api.Failure
				if assert.ErrorAs(t, err, &f) && f.Status != http.StatusServiceUnavailable {
					assert.Equal(t, http.StatusForbidden, f.Status)
					assert.Equal(t, fmt.Sprint("not for ", i), string(f.Body))
				}
			})
		}
		clients.Wait()
		assert.Less(t, time.Since(began), 10*time.Second) // of virtual time
		assert.Less(t, len(shown()), 15)
	})
}
