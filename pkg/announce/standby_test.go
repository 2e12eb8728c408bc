package announce

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/task"
)

// stands are the standbys of the only owner, a:1, without the test's own host.
var stands = []string{"s:1", "s:2", "s:3"}

// withStandbys is a town whose owner names standbys.
func withStandbys(named ...string) *town {
	w := newTown("a:1", "s:1", "s:2", "s:3")
	w.set("a:1", func(o *script) {
		o.answer = func(_ api.AnnounceRequest, a *api.AnnounceResponse) { a.Standbys = named }
	})
	return w
}

func only(owner string, local Announcer) Config {
	return Config{Owners: []string{owner}, Local: local, Standby: true}
}

// Standbys lead while no owner answers.
func TestStandbys(t *testing.T) {
	w, own := withStandbys(stands...), &solo{}
	id := ledBy(stands, "s:2", "s:3")
	held := api.Entry{Task: ledBy(stands, "s:3", "s:1"), Event: api.Completed, Have: 3}
	cfg := only("a:1", own)
	cfg.Inventory = func() []api.Entry { return []api.Entry{held} }
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		for _, addr := range stands {
			assert.Empty(t, w.lines(addr), "they receive nothing before")
		}
		w.set("a:1", func(o *script) { o.dead = true })
		began := time.Now()
		assert.Equal(t, "s:2", answeredBy(t, c, started(id)))
		assert.Less(t, time.Since(began), 50*time.Millisecond, "a refused connection says enough")
		synctest.Wait()
		assert.Equal(t, []string{"started " + string(id) + " token"}, w.lines("s:2"))
		assert.Equal(t, []string{"completed " + string(held.Task)}, w.lines("s:3"),
			"what is held is told to those who lead it now")
		assert.Equal(t, []string{"completed " + string(held.Task)}, w.lines("s:1"))
		assert.Empty(t, own.lines())
		status := c.Owners()
		require.Len(t, status, 4)
		assert.False(t, status[0].Alive)
		assert.Equal(t, api.OwnerStatus{Addr: "s:2", Alive: true, Standby: true}, status[2])

		// The next one in order follows, and only when all are gone the host itself.
		w.set("s:2", func(o *script) { o.dead = true })
		assert.Equal(t, "s:3", answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"started " + string(id) + " token"}, w.lines("s:3"))
		w.set("s:3", func(o *script) { o.dead = true })
		w.set("s:1", func(o *script) { o.dead = true })
		assert.Equal(t, local, answeredBy(t, c, started(id)))

		// An owner that comes back leads again.
		w.set("a:1", func(o *script) { o.dead = false })
		w.set("s:2", func(o *script) { o.dead = false })
		w.lines("a:1")
		time.Sleep(owners.RetryMax)
		assert.Equal(t, "a:1", answeredBy(t, c, event(id, api.Progress)))
		assert.Contains(t, w.lines("a:1"), "started "+string(id)+" token")
		assert.Len(t, c.Owners(), 1)
		w.lines("s:2")
		time.Sleep(time.Minute)
		assert.Empty(t, w.lines("s:2"))
	})
}

// The early standbys of an owner that has just started lead when it dies, and are not stored.
func TestEarlyStandbys(t *testing.T) {
	w := withStandbys()
	w.set("a:1", func(o *script) {
		o.answer = func(_ api.AnnounceRequest, a *api.AnnounceResponse) { a.EarlyStandbys = append(stands, "no address") }
	})
	cfg := only("a:1", &solo{})
	cfg.Named = func(list []string) { assert.Fail(t, "they are not stored", list) }
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		id := ledBy(stands, "s:2", "s:3")
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		w.set("a:1", func(o *script) { o.dead = true })
		assert.Equal(t, "s:2", answeredBy(t, c, started(id)))
	})
}

// A host that starts while no owner answers asks the standbys that it knew before.
func TestStandbysAfterRestart(t *testing.T) {
	var named [][]string
	w := withStandbys(stands...)
	cfg := only("a:1", &solo{})
	cfg.Named = func(list []string) { named = append(named, list) }
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Equal(t, [][]string{stands}, named, "told once")
	})
	w.set("a:1", func(o *script) { o.dead = true })
	cfg.Standbys = append([]string{"no address", ""}, named[0]...)
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		assert.Equal(t, "s:2", answeredBy(t, c, started(ledBy(stands, "s:2"))))
		assert.Equal(t, stands, c.Standbys())
	})
}

// Standbys receive the inventory before a host asks them about a task.
func TestStandbysGetInventory(t *testing.T) {
	w := withStandbys(stands...)
	cfg := only("a:1", &solo{})
	cfg.Inventory = func() []api.Entry { return []api.Entry{{Task: ledBy(stands, "s:1"), Event: api.Completed}} }
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.dead = true })
		time.Sleep(5 * time.Second) // an idle host's interval
		synctest.Wait()
		assert.Len(t, w.lines("s:1"), 1, "an idle host tells what it holds")
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.True(t, w.owners["a:1"].seen[0].Standby)
	})
}

// Standbys lead once a silent owner is lost.
func TestStandbysAfterSilence(t *testing.T) {
	w, own := withStandbys(stands...), &solo{}
	id := ledBy(stands, "s:1", "s:3")
	inTown(t, w, only("a:1", own), func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.hung = true })
		began := time.Now()
		assert.Equal(t, "s:1", answeredBy(t, c, started(id)))
		assert.LessOrEqual(t, time.Since(began), 3100*time.Millisecond, "and the question before it took one")
		assert.Greater(t, time.Since(began), 2*time.Second, "a slow owner is not a dead one")
		began = time.Now()
		assert.Equal(t, "s:1", answeredBy(t, c, started(id)))
		assert.Less(t, time.Since(began), 50*time.Millisecond)
		assert.Empty(t, own.lines())
	})
}

// An announce that waits while a heartbeat finds out that all owners are lost asks the standbys, too.
func TestStandbysCalledDuringAnAnnounce(t *testing.T) {
	all := []string{"a:1", "b:1", "c:1"}
	id := ledBy(stands, "s:2", "s:1")
	for offset := time.Duration(0); offset < 4*time.Second; offset += 250 * time.Millisecond {
		t.Run(offset.String(), func(t *testing.T) {
			w, own := newTown(append(all, stands...)...), &solo{}
			for _, addr := range all {
				w.set(addr, func(o *script) { o.hung = true })
			}
			inTown(t, w, Config{Owners: all, Standbys: stands, Local: own, Standby: true}, func(t *testing.T, c *Client) {
				time.Sleep(offset)
				assert.Equal(t, "s:2", answeredBy(t, c, started(id)))
				assert.Empty(t, own.lines())
			})
		})
	}
}

// An owner that answers again while a standby asks the standby before it is asked next: it dismisses the standbys, and
// this host must not lead the task for that.
func TestOwnerReturnsWhileAStandbyIsAsked(t *testing.T) {
	both := []string{"s:1", self.Addr}
	w, own := withStandbys(both...), &solo{}
	id := ledBy(both, "s:1", self.Addr)
	inTown(t, w, only("a:1", own), func(t *testing.T, c *Client) {
		assert.Equal(t, "a:1", answeredBy(t, c, event(id, api.Progress)))
		w.set("a:1", func(o *script) { o.dead = true })
		w.set("s:1", func(o *script) { o.hung = true })
		for c.Owners()[0].Alive {
			time.Sleep(time.Second) // until a heartbeat finds that the owner is gone
		}
		time.AfterFunc(time.Millisecond, func() { w.set("a:1", func(o *script) { o.dead = false }) })
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		assert.Empty(t, own.lines())
	})
}

// Announces that wait at the same time all ask the standbys, whichever of them calls these, and however late in its own
// wait another learns of it.
func TestStandbysCalledDuringManyAnnounces(t *testing.T) {
	all := []string{"a:1", "b:1", "c:1"}
	for _, pause := range []time.Duration{0, time.Millisecond, 9 * time.Millisecond} {
		t.Run(pause.String(), func(t *testing.T) {
			w, own := newTown(append(all, stands...)...), &solo{}
			for _, addr := range all {
				w.set(addr, func(o *script) { o.hung = true })
			}
			for _, addr := range stands {
				w.set(addr, func(o *script) { o.delay = 100 * time.Millisecond })
			}
			inTown(t, w, Config{Owners: all, Standbys: stands, Local: own, Standby: true}, func(t *testing.T, c *Client) {
				var waiting sync.WaitGroup
				for _, id := range someTasks(100) {
					time.Sleep(pause)
					waiting.Go(func() {
						_, leader, err := c.Announce(t.Context(), started(id))
						assert.NoError(t, err)
						assert.Equal(t, owners.Other, leader)
					})
				}
				waiting.Wait()
				assert.Empty(t, own.lines())
			})
		})
	}
}

// Owners that refuse an entry are alive: a host does not call the standbys because of it.
func TestARefusedEntryCallsNoStandbys(t *testing.T) {
	w, own := withStandbys(stands...), &solo{}
	bad := ledBy(stands, "s:2")
	refuses := func(e api.Entry) bool { return e.Task == bad }
	for _, addr := range append([]string{"a:1"}, stands...) {
		w.set(addr, func(o *script) { o.refuses = refuses })
	}
	held := api.Entry{Task: ledBy(stands, "s:3", "s:1"), Event: api.Completed, Have: 3}
	cfg := only("a:1", own)
	cfg.Inventory = func() []api.Entry { return []api.Entry{held} }
	inTown(t, w, cfg, func(t *testing.T, c *Client) {
		time.Sleep(time.Second)
		_, leader, err := c.Announce(t.Context(), started(bad))
		require.NoError(t, err)
		assert.Equal(t, owners.LastResort, leader)
		synctest.Wait()
		for _, o := range c.Owners() {
			assert.False(t, o.Standby, o.Addr)
		}
		for _, addr := range stands {
			assert.Empty(t, w.lines(addr), "it receives nothing")
		}
	})
}

// A host that is a standby leads its tasks itself.
func TestStandbyLeadsItself(t *testing.T) {
	named := []string{"s:1", self.Addr, "s:3"}
	w, own := withStandbys(named...), &solo{}
	inTown(t, w, only("a:1", own), func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.dead = true })
		mine, others := ledBy(named, self.Addr), ledBy(named, "s:3", self.Addr)
		a, leader, err := c.Announce(t.Context(), started(mine))
		require.NoError(t, err)
		assert.True(t, a.Seed)
		assert.Equal(t, owners.Self, leader, "others ask it, too")
		assert.Equal(t, "s:3", answeredBy(t, c, started(others)))
		w.set("s:3", func(o *script) { o.dead = true })
		assert.Equal(t, local, answeredBy(t, c, started(others)), "it is the second")
		assert.Empty(t, w.lines("s:1"))
		w.set("s:1", func(o *script) { o.dead = true })
		_, err = c.Lookup(t.Context(), api.Lookup{Upstream: "r.test", Repository: "app", Reference: "v1"})
		require.ErrorIs(t, err, ErrHere)
	})
}

// Without supernodes, the settings of all hosts name a few dfdaemons as owners, their own included.
func TestSelfAmongOwners(t *testing.T) {
	owners := []string{"a:1", self.Addr}
	w, own := newTown("a:1"), &solo{}
	inTown(t, w, Config{Owners: owners, Local: own, Standby: true}, func(t *testing.T, c *Client) {
		mine, others := ledBy(owners, self.Addr), ledBy(owners, "a:1")
		assert.Equal(t, local, answeredBy(t, c, started(mine)))
		assert.Equal(t, "a:1", answeredBy(t, c, started(others)))
		assert.Equal(t, []string{"started " + string(mine) + " token"}, own.lines())
		assert.Equal(t, "a:1", answeredBy(t, c, event(others, api.Completed)))
		w.set("a:1", func(o *script) { o.dead = true })
		assert.Equal(t, local, answeredBy(t, c, started(others)))
		assert.Len(t, c.Owners(), 1)
	})
}

// The lists of owners and standbys in a standby's response do not count.
func TestStandbyListsAreIgnored(t *testing.T) {
	w := withStandbys(stands...)
	w.set("s:1", func(o *script) {
		o.answer = func(_ api.AnnounceRequest, a *api.AnnounceResponse) {
			a.Owners, a.Standbys = []string{"evil:1"}, []string{"evil:2"} // it has heard a few hosts so far
		}
	})
	inTown(t, w, only("a:1", &solo{}), func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.dead = true })
		assert.Equal(t, "s:1", answeredBy(t, c, started(ledBy(stands, "s:1"))))
		assert.Equal(t, "s:2", answeredBy(t, c, started(ledBy(stands, "s:2"))))
		assert.Equal(t, stands, c.Standbys())
		assert.Len(t, c.Owners(), 4)
	})
}

// Credentials go to owners over TLS or loopback only.
func TestSpecNeedsTLS(t *testing.T) {
	for _, c := range []struct {
		scheme, owner string
		spec          api.Spec
		answered      string
	}{
		{"http", "a:1", api.Spec{Authorization: "token"}, local},
		{"http", "10.0.0.9:1", api.Spec{Header: map[string]string{"Cookie": "token"}}, local},
		{"http", "a:1", api.Spec{}, "a:1"},
		{"https", "a:1", api.Spec{Authorization: "token"}, "a:1"},
		{"http", "127.0.0.1:1", api.Spec{Authorization: "token"}, "127.0.0.1:1"},
		{"http", "[::1]:1", api.Spec{Authorization: "token"}, "[::1]:1"},
		{"http", "localhost:1", api.Spec{Authorization: "token"}, "localhost:1"},
	} {
		w, own := newTown(c.owner), &solo{}
		cfg := only(c.owner, own)
		cfg.Scheme = c.scheme
		inTown(t, w, cfg, func(t *testing.T, client *Client) {
			const id = task.ID("app")
			c.spec.ID = id
			assert.Equal(t, c.answered, answeredBy(t, client, api.Entry{Task: id, Event: api.Started, Spec: &c.spec}),
				c)
			assert.Equal(t, c.answered, answeredBy(t, client, event(id, api.Progress)), "nor with later news: %v", c)
			assert.Equal(t, c.owner, answeredBy(t, client, event(id, api.Completed)), "that it is held is no secret")
			for _, line := range w.lines(c.owner) {
				if c.answered == local {
					assert.NotContains(t, line, "token")
				}
			}
		})
	}
	w := newTown("a:1")
	inTown(t, w, Config{Scheme: "http"}, func(t *testing.T, c *Client) {
		_, _, err := c.Announce(t.Context(), started("app"))
		require.ErrorContains(t, err, "over TLS only")
		assert.Empty(t, w.lines("a:1"))
	})
}

// oracle answers the announces and lookups to each live host.
type oracle map[string]func() bool

func (o oracle) RoundTrip(r *http.Request) (*http.Response, error) {
	if alive := o[r.URL.Host]; alive == nil || !alive() {
		return nil, syscall.ECONNREFUSED
	}
	var answer any = api.LookupReply{Version: 1, Digest: task.ID("sha256:" + strings.Repeat("a", 64)),
		MediaType: r.URL.Host}
	if r.URL.Path == api.PathAnnounce {
		var request api.AnnounceRequest
		if b, err := io.ReadAll(r.Body); err != nil || json.Unmarshal(b, &request) != nil {
			return nil, errors.New("unreadable")
		}
		answer = api.AnnounceResponse{Version: 1, IntervalMillis: 5000,
			Assignments: make([]api.Assignment, len(request.Entries)), Standbys: stands}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	w.Write(b)
	return w.Result(), nil
}

// withLookups runs a test in virtual time with a client whose only owner answers until it is dead, and its standbys.
func withLookups(t *testing.T, test func(t *testing.T, c *Client, dead *atomic.Bool)) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		yes := func() bool { return true }
		o := oracle{"a:1": func() bool { return !dead.Load() }, "s:1": yes, "s:2": yes, "s:3": yes}
		c := New(Config{Host: host.Host{ID: self.ID, Addr: self.Addr}, Owners: []string{"a:1"}, Scheme: "https",
			Local: &solo{}, Client: &http.Client{Transport: o}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		synctest.Wait()
		test(t, c, &dead)
		cancel()
		require.NoError(t, <-ended)
	})
}

// A lookup goes to standbys as soon as the owners refuse connections.
func TestLookupStandbys(t *testing.T) {
	withLookups(t, func(t *testing.T, c *Client, dead *atomic.Bool) {
		asked := map[string]bool{}
		for i := range 20 {
			q := api.Lookup{Version: 1, Upstream: "r.test", Repository: "app", Reference: "v" + strings.Repeat("1", i)}
			dead.Store(i > 0)
			a, err := c.Lookup(t.Context(), q)
			require.NoError(t, err)
			asked[a.MediaType] = true
		}
		assert.Equal(t, map[string]bool{"a:1": true, "s:1": true, "s:2": true, "s:3": true}, asked,
			"each has its own questions")
	})
}

// The connection to the owner breaks, and the next lookup finds it dead before a heartbeat does. It goes to a standby,
// and not to the registry.
func TestLookupAfterABrokenConnection(t *testing.T) {
	withLookups(t, func(t *testing.T, c *Client, dead *atomic.Bool) {
		dead.Store(true)
		c.mu.Lock()
		c.apply(owners.Failed{From: "a:1", Cause: owners.Silence, Err: io.EOF})
		c.mu.Unlock()
		a, err := c.Lookup(t.Context(), api.Lookup{Version: 1, Upstream: "r.test", Repository: "app", Reference: "v1"})
		require.NoError(t, err)
		assert.Contains(t, []string{"s:1", "s:2", "s:3"}, a.MediaType)
	})
}
