package announce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var self = host.Host{ID: host.ID(strings.Repeat("1", 32)), Name: "node1", Addr: "10.0.0.1:65002"}

// town is a network of scripted owners.
type town struct {
	mu     sync.Mutex
	owners map[string]*script
}

// script is one owner.
type script struct {
	addr string
	// dead refuses connections; hung accepts requests and never answers.
	dead, hung bool
	// refusal is why no announce reaches it, for another reason than those; nil: none.
	refusal error
	// refuses has the owner refuse announces with such an entry; nil: none. plain has it refuse everything, as a server
	// does that takes TLS for the request of a client without.
	refuses func(e api.Entry) bool
	plain   bool
	// delay is how long an answer takes.
	delay time.Duration
	// answer may change the answer to a request.
	answer func(r api.AnnounceRequest, a *api.AnnounceResponse)
	// known is cleared by a restart.
	known bool
	seen  []api.AnnounceRequest
}

func newTown(addrs ...string) *town {
	town := &town{owners: make(map[string]*script)}
	for _, addr := range addrs {
		town.owners[addr] = &script{addr: addr}
	}
	return town
}

// set changes an owner between two requests.
func (w *town) set(addr string, change func(*script)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.owners[addr])
}

// lines returns the entries that an owner received since the last call, as text.
func (w *town) lines(addr string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.owners[addr].seen {
		for _, e := range r.Entries {
			line := fmt.Sprintf("%s %s", e.Event, e.Task)
			if e.Spec != nil {
				line += " " + e.Spec.Authorization
			}
			out = append(out, line)
		}
		if r.Leaving {
			out = append(out, "leaving")
		}
	}
	w.owners[addr].seen = nil
	return out
}

func (w *town) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	o := w.owners[r.URL.Host]
	if o == nil || o.dead {
		w.mu.Unlock()
		return nil, syscall.ECONNREFUSED
	}
	hung, delay, refusal := o.hung, o.delay, o.refusal
	w.mu.Unlock()
	if refusal != nil {
		return nil, refusal
	}
	if hung {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	var request api.AnnounceRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.plain {
		recorder := httptest.NewRecorder()
		http.Error(recorder, "Client sent an HTTP request to an HTTPS server.", http.StatusBadRequest)
		return recorder.Result(), nil
	}
	if o.refuses != nil && slices.ContainsFunc(request.Entries, o.refuses) {
		recorder := httptest.NewRecorder()
		http.Error(recorder, "an entry is too long", http.StatusRequestEntityTooLarge)
		return recorder.Result(), nil
	}
	o.seen = append(o.seen, request)
	response := api.AnnounceResponse{Version: 1, IntervalMillis: 5000, Resync: !o.known,
		Assignments: make([]api.Assignment, len(request.Entries))}
	o.known = true
	for i, e := range request.Entries {
		response.Assignments[i] = api.Assignment{Task: e.Task, Neighbours: []api.Neighbour{{
			Host: host.Host{ID: host.ID(strings.Repeat("e", 32)), Addr: o.addr},
		}}}
	}
	if o.answer != nil {
		o.answer(request, &response)
	}
	b, err := json.Marshal(response)
	if err != nil {
		return nil, err
	}
	recorder := httptest.NewRecorder()
	recorder.Write(b)
	return recorder.Result(), nil
}

// solo is the host's own coordinator.
type solo struct {
	mu   sync.Mutex
	seen []string
	err  error
}

func (s *solo) Announce(_ context.Context, e api.Entry) (api.Assignment, owners.Leader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf("%s %s", e.Event, e.Task)
	if e.Spec != nil {
		line += " " + e.Spec.Authorization
	}
	s.seen = append(s.seen, line)
	return api.Assignment{Task: e.Task, Seed: true}, owners.LastResort, s.err
}

func (s *solo) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.seen
	s.seen = nil
	return out
}

// inTown runs a test in virtual time with a running client, and proves afterwards that the
// client ends.
func inTown(t *testing.T, w *town, cfg Config, test func(t *testing.T, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		cfg.Host, cfg.Generation, cfg.Client = self, 7, &http.Client{Transport: w}
		if cfg.Owners == nil {
			for addr := range w.owners {
				cfg.Owners = append(cfg.Owners, addr)
			}
		}
		if cfg.Scheme == "" {
			cfg.Scheme = "https"
		}
		c := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		synctest.Wait()
		test(t, c)
		cancel()
		require.NoError(t, <-ended)
	})
}

func started(id task.ID) api.Entry {
	return api.Entry{Task: id, Event: api.Started, Need: 16, Spec: &api.Spec{ID: id, Authorization: "token"}}
}

func event(id task.ID, e api.Event) api.Entry { return api.Entry{Task: id, Event: e} }

// answeredBy announces and returns which owner answered.
func answeredBy(t *testing.T, c *Client, e api.Entry) string {
	t.Helper()
	a, _, err := c.Announce(t.Context(), e)
	require.NoError(t, err)
	assert.Equal(t, e.Task, a.Task)
	if a.Seed {
		return local
	}
	require.Len(t, a.Neighbours, 1)
	return a.Neighbours[0].Addr
}

// ledBy returns a task with these first owners, in this order.
func ledBy(owners []string, first ...string) task.ID {
	for i := range 10_000 {
		id := task.ID(fmt.Sprintf("sha256:%064x", i))
		if order := rendezvous.Order(string(id), owners); slices.Equal(order[:len(first)], first) {
			return id
		}
	}
	panic("no task is led by " + strings.Join(first, ", "))
}

var three = []string{"a:1", "b:1", "c:1"}

// All hosts ask the same owner of a task first.
func TestAnnounceRoute(t *testing.T) {
	inTown(t, newTown(three...), Config{}, func(t *testing.T, c *Client) {
		for i := range 20 {
			id := task.ID(fmt.Sprintf("sha256:%064x", i))
			assert.Equal(t, rendezvous.Order(string(id), three)[0], answeredBy(t, c, started(id)))
		}
	})
}

// An owner that refuses connections is passed over at once.
func TestOwnerRefuses(t *testing.T) {
	w := newTown(three...)
	id := ledBy(three, "a:1", "b:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.dead = true })
		began := time.Now()
		assert.Equal(t, "b:1", answeredBy(t, c, started(id)))
		assert.Zero(t, time.Since(began))
	})
}

// An owner that hangs costs its budget once.
func TestOwnerHangs(t *testing.T) {
	w := newTown(three...)
	id := ledBy(three, "a:1", "b:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.hung = true })
		began := time.Now()
		assert.Equal(t, "b:1", answeredBy(t, c, started(id)))
		assert.Equal(t, time.Second, time.Since(began))
		for range 5 {
			time.Sleep(300 * time.Millisecond)
			began = time.Now()
			assert.Equal(t, "b:1", answeredBy(t, c, event(id, api.Progress)))
			assert.Zero(t, time.Since(began), "heartbeats find out whether it is back; no announce waits for them")
		}
	})
}

// If an owner fails for another reason than before, the log shows it once.
func TestOwnerFailsForAnotherReason(t *testing.T) {
	w, own := newTown("a:1"), &solo{}
	w.set("a:1", func(o *script) { o.dead = true })
	var lines bytes.Buffer
	inTown(t, w, Config{Local: own, Logger: slog.New(slog.NewTextHandler(&lines, nil))}, func(t *testing.T, c *Client) {
		time.Sleep(time.Minute)
		w.set("a:1", func(o *script) { o.dead, o.refusal = false, errors.New("it has another cluster secret") })
		time.Sleep(5 * time.Minute)
		w.set("a:1", func(o *script) { o.dead, o.refusal = false, nil })
		time.Sleep(2 * owners.RetryMax)
	})
	var warnings []string
	for line := range strings.Lines(lines.String()) {
		if strings.Contains(line, "level=WARN") {
			warnings = append(warnings, line)
		}
	}
	require.Len(t, warnings, 2, lines.String())
	assert.Contains(t, warnings[0], "owner does not answer")
	assert.Contains(t, warnings[1], "owner still does not answer, now for another reason")
	assert.Contains(t, warnings[1], "it has another cluster secret")
	assert.Contains(t, lines.String(), "owner answers again")
}

// An owner that comes back leads again and receives the downloads that run.
func TestOwnerComesBack(t *testing.T) {
	w := newTown(three...)
	id := ledBy(three, "a:1", "b:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		w.lines("a:1")
		w.set("a:1", func(o *script) { o.dead, o.known = true, false })
		assert.Equal(t, "b:1", answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"started " + string(id) + " token"}, w.lines("b:1"),
			"who takes over hears how the content is brought")
		assert.Equal(t, "b:1", answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"progress " + string(id)}, w.lines("b:1"))

		time.Sleep(time.Minute)
		assert.Equal(t, "b:1", answeredBy(t, c, event(id, api.Progress)))
		w.lines("b:1")
		w.set("a:1", func(o *script) { o.dead = false })
		time.Sleep(owners.RetryMax)
		assert.Equal(t, "a:1", answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"started " + string(id) + " token"}, w.lines("a:1"))
		synctest.Wait()
		assert.Equal(t, []string{"stopped " + string(id)}, w.lines("b:1"), "the former owner need not care any more")
		assert.Empty(t, w.lines("c:1"))
	})
}

// The host's own coordinator is the last resort.
func TestLastResort(t *testing.T) {
	w, own := newTown("a:1"), &solo{}
	const id = task.ID("app")
	inTown(t, w, Config{Local: own}, func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.dead = true })
		began := time.Now()
		assert.Equal(t, local, answeredBy(t, c, started(id)))
		assert.Less(t, time.Since(began), 50*time.Millisecond, "a refused connection says enough")
		assert.Equal(t, local, answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"started app token", "progress app"}, own.lines())

		w.set("a:1", func(o *script) { o.dead = false })
		time.Sleep(owners.RetryMax)
		assert.Equal(t, "a:1", answeredBy(t, c, event(id, api.Progress)))
		assert.Equal(t, []string{"started app token"}, w.lines("a:1"))
		assert.Equal(t, []string{"stopped app"}, own.lines())

		own.err = errors.New("disk on fire")
		w.set("a:1", func(o *script) { o.dead = true })
		_, _, err := c.Announce(t.Context(), started(id))
		require.ErrorContains(t, err, "connection refused")
		require.ErrorContains(t, err, "disk on fire")
	})
}

// A slow owner is not taken for dead.
func TestSlowOwner(t *testing.T) {
	w, own := newTown("a:1"), &solo{}
	const id = task.ID("app")
	inTown(t, w, Config{Local: own}, func(t *testing.T, c *Client) {
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		w.set("a:1", func(o *script) { o.hung = true })
		_, _, err := c.Announce(t.Context(), event(id, api.Progress))
		require.Error(t, err, "news of a download that runs is no reason to go to the registry")
		assert.Empty(t, own.lines())

		go func() {
			time.Sleep(1500 * time.Millisecond)
			w.set("a:1", func(o *script) { o.hung = false })
		}()
		assert.Equal(t, "a:1", answeredBy(t, c, started("other")), "it answers late, and that is early enough")
		assert.Empty(t, own.lines())

		w.set("a:1", func(o *script) { o.hung = true })
		began := time.Now()
		assert.Equal(t, local, answeredBy(t, c, started("third")))
		assert.LessOrEqual(t, time.Since(began), 5*time.Second)
	})
}

// If lookups queue, an owner can answer each in time and still none of one task's.
func TestSlowOwnerIsLogged(t *testing.T) {
	w, own := newTown("a:1"), &solo{}
	var lines bytes.Buffer
	inTown(t, w, Config{Local: own, Logger: slog.New(slog.NewTextHandler(&lines, nil))}, func(t *testing.T, c *Client) {
		assert.Equal(t, "a:1", answeredBy(t, c, started("app")))
		w.set("a:1", func(o *script) { o.delay = 1900 * time.Millisecond })
		var before sync.WaitGroup
		before.Go(func() { assert.Equal(t, "a:1", answeredBy(t, c, started("first"))) })
		synctest.Wait()
		assert.Equal(t, local, answeredBy(t, c, started("second")))
		before.Wait()
		assert.Contains(t, lines.String(),
			`level=WARN msg="owner did not receive a task in time, so this host leads it" task=second`)
		assert.Equal(t, 1, strings.Count(lines.String(), "level=WARN"), "it is not taken for dead: %s", &lines)
	})
}

// Without any owner the host's own coordinator answers everything.
func TestNoOwners(t *testing.T) {
	own := &solo{}
	inTown(t, newTown(), Config{Local: own}, func(t *testing.T, c *Client) {
		assert.Equal(t, local, answeredBy(t, c, started("app")))
		assert.Equal(t, local, answeredBy(t, c, event("app", api.Completed)))
		assert.Equal(t, []string{"started app token", "completed app"}, own.lines())
	})
}

// Without a last resort the error names every owner.
func TestNoLastResort(t *testing.T) {
	w := newTown(three...)
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		for _, addr := range three {
			w.set(addr, func(o *script) { o.dead = true })
		}
		for range 2 { // the second time all are known to be down, and still worth a try
			_, _, err := c.Announce(t.Context(), started("app"))
			for _, addr := range three {
				require.ErrorContains(t, err, "owner "+addr)
			}
		}
		w.set("b:1", func(o *script) { o.dead = false })
		assert.Equal(t, "b:1", answeredBy(t, c, started("app")))
	})
	inTown(t, newTown(), Config{}, func(t *testing.T, c *Client) {
		_, _, err := c.Announce(t.Context(), started("app"))
		require.ErrorContains(t, err, "no owner is known")
	})
}

// Announces gather while one is on its way.
func TestBatching(t *testing.T) {
	w := newTown("a:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		w.lines("a:1")
		w.set("a:1", func(o *script) { o.delay = 100 * time.Millisecond })
		began := time.Now()
		var wg sync.WaitGroup
		took := make([]time.Duration, 1+inlineBatch)
		for i := range took {
			wg.Go(func() {
				assert.Equal(t, "a:1", answeredBy(t, c, started(task.ID(fmt.Sprint(i)))))
				took[i] = time.Since(began)
			})
			if i == 0 {
				synctest.Wait() // the first is on its way alone
			}
		}
		wg.Wait()
		assert.Equal(t, 100*time.Millisecond, took[0], "nothing delays the first")
		for i, d := range took[1:] {
			assert.Equal(t, 200*time.Millisecond, d, "announce %d", i+1)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.Len(t, w.owners["a:1"].seen, 2)
		for _, r := range w.owners["a:1"].seen {
			assert.LessOrEqual(t, len(r.Entries), inlineBatch)
		}
	})
}

// Heartbeats come at the interval that the owner set.
func TestHeartbeatInterval(t *testing.T) {
	w := newTown("a:1")
	w.owners["a:1"].answer = func(_ api.AnnounceRequest, a *api.AnnounceResponse) { a.IntervalMillis = 3000 }
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		time.Sleep(30*time.Second + time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		assert.Len(t, w.owners["a:1"].seen, 11)
		for _, r := range w.owners["a:1"].seen {
			assert.Equal(t, self, r.Host)
			assert.Equal(t, uint64(7), r.Generation)
			assert.Equal(t, api.Version, r.Version)
		}
	})
}

// holds returns an inventory of n tasks.
func holds(n int) func() []api.Entry {
	return func() (out []api.Entry) {
		for i := range n {
			out = append(out, api.Entry{Task: task.ID(fmt.Sprintf("sha256:%064x", i)), Event: api.Completed, Have: 9})
		}
		return out
	}
}

// A restarted owner gets the whole inventory.
func TestResync(t *testing.T) {
	w := newTown("a:1")
	inventory := holds(2*batchMax + 1)
	held := func() []api.Entry {
		w.mu.Lock()
		defer w.mu.Unlock()
		return inventory()
	}
	inTown(t, w, Config{Inventory: held}, func(t *testing.T, c *Client) {
		assert.Len(t, w.lines("a:1"), 2*batchMax+1, "an owner that is met for the first time")
		assert.Equal(t, "a:1", answeredBy(t, c, started("app")))
		time.Sleep(20 * time.Second)
		assert.Len(t, w.lines("a:1"), 1, "and then no more")

		w.set("a:1", func(o *script) { o.known = false })
		time.Sleep(6 * time.Second)
		assert.Len(t, w.lines("a:1"), 2*batchMax+1)
		assert.Equal(t, "a:1", answeredBy(t, c, event("app", api.Progress)))
		assert.Equal(t, []string{"started app token"}, w.lines("a:1"), "it heard nothing of the download either")

		// The running download has an announce of its own.
		w.set("a:1", func(o *script) {
			o.known = false
			inventory = func() []api.Entry {
				return []api.Entry{event("app", api.Progress), event("lib", api.Completed)}
			}
		})
		time.Sleep(6 * time.Second)
		assert.Equal(t, []string{"completed lib"}, w.lines("a:1"))
	})
}

// An owner that restarts before the inventory is sent also receives the downloads.
func TestResyncTwice(t *testing.T) {
	w := newTown("a:1")
	w.owners["a:1"].delay = 100 * time.Millisecond
	inTown(t, w, Config{Inventory: holds(1)}, func(t *testing.T, c *Client) {
		time.Sleep(time.Second)
		answeredBy(t, c, started("app"))
		w.set("a:1", func(o *script) { o.dead = true })
		time.Sleep(5 * time.Second)
		w.set("a:1", func(o *script) { o.dead = false })
		// The first heartbeat succeeds, and the owner restarts before it gets the inventory.
		time.Sleep(owners.RetryMax)
		w.set("a:1", func(o *script) { o.known = false })
		w.lines("a:1")
		c.mu.Lock()
		c.senders["a:1"].resync = true
		c.mu.Unlock()
		time.Sleep(6 * time.Second)
		assert.Len(t, w.lines("a:1"), 1)
		answeredBy(t, c, event("app", api.Progress))
		assert.Equal(t, []string{"started app token"}, w.lines("a:1"))
	})
}

// An urgent announce overtakes an inventory.
func TestAnnounceOvertakesInventory(t *testing.T) {
	w := newTown("a:1")
	w.owners["a:1"].delay = 100 * time.Millisecond
	inTown(t, w, Config{Inventory: holds(10 * batchMax)}, func(t *testing.T, c *Client) {
		began := time.Now()
		answeredBy(t, c, started("app"))
		assert.Equal(t, 200*time.Millisecond, time.Since(began), "the part on its way, and its own")
	})
}

// The first two owners of a task receive that the host holds it.
func TestFirstTwoOwners(t *testing.T) {
	w := newTown(three...)
	id := ledBy(three, "a:1", "b:1")
	inTown(t, w, Config{Inventory: holds(100)}, func(t *testing.T, c *Client) {
		told := map[string]int{}
		for _, addr := range three {
			for _, line := range w.lines(addr) {
				told[line]++
				order := rendezvous.Order(strings.TrimPrefix(line, "completed "), three)
				assert.Contains(t, order[:2], addr)
			}
		}
		assert.Len(t, told, 100)
		for line, n := range told {
			assert.Equal(t, 2, n, line)
		}

		answeredBy(t, c, started(id))
		answeredBy(t, c, event(id, api.Completed))
		synctest.Wait()
		assert.Equal(t, []string{"started " + string(id) + " token", "completed " + string(id)}, w.lines("a:1"))
		assert.Equal(t, []string{"completed " + string(id)}, w.lines("b:1"))
		answeredBy(t, c, event(id, api.Stopped))
		synctest.Wait()
		assert.Equal(t, []string{"stopped " + string(id)}, w.lines("b:1"))
		assert.Empty(t, w.lines("c:1"))

		// When the first is dead for good, the third becomes the second.
		w.set("a:1", func(o *script) { o.dead = true })
		time.Sleep(owners.DeadAfter + owners.RetryMax + 10*time.Second)
		assert.Contains(t, w.lines("c:1"), "completed "+string(id))
	})
}

// Responses bring the list of live owners.
func TestOwnersList(t *testing.T) {
	w := newTown("a:1", "b:1", "old:1")
	live := []string{"b:1", "a:1"}
	tell := func(_ api.AnnounceRequest, a *api.AnnounceResponse) { a.Owners = live }
	w.owners["a:1"].answer, w.owners["b:1"].answer = tell, tell
	inTown(t, w, Config{Owners: []string{"a:1", "old:1"}}, func(t *testing.T, c *Client) {
		for i := range 20 {
			id := task.ID(fmt.Sprintf("sha256:%064x", i))
			assert.Equal(t, rendezvous.Order(string(id), live)[0], answeredBy(t, c, started(id)))
		}
		// A configured owner that is not in the list is still better than none.
		w.set("a:1", func(o *script) { o.dead = true })
		w.set("b:1", func(o *script) { o.dead = true })
		assert.Equal(t, "old:1", answeredBy(t, c, started("app")))
		w.set("a:1", func(o *script) { o.dead = false })
		w.set("a:1", func(*script) { live = []string{"a:1"} })
		time.Sleep(10 * time.Second)
		c.mu.Lock()
		assert.NotContains(t, c.senders, "b:1", "an owner that is neither listed nor configured is forgotten")
		c.mu.Unlock()
		assert.Equal(t, "a:1", answeredBy(t, c, event("app", api.Progress)))
	})
}

// Owners receive within a second that the host leaves.
func TestLeave(t *testing.T) {
	w := newTown(three...)
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{Host: self, Owners: three, Scheme: "https", Client: &http.Client{Transport: w}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		w.set("c:1", func(o *script) { o.dead = true })
		time.Sleep(5 * time.Second)
		w.set("b:1", func(o *script) { o.hung = true })
		synctest.Wait()

		waits := make(chan error, 1)
		w.set("a:1", func(o *script) { o.delay = 500 * time.Millisecond })
		go func() {
			_, _, err := c.Announce(t.Context(), started(ledBy(three, "a:1")))
			waits <- err
		}()
		synctest.Wait()
		began := time.Now()
		cancel()
		require.NoError(t, <-ended)
		assert.Equal(t, time.Second, time.Since(began), "the one that hangs costs no more")
		require.ErrorIs(t, <-waits, ErrStopped)
		assert.Equal(t, []string{"leaving"}, w.lines("a:1"))

		_, _, err := c.Announce(t.Context(), started("app"))
		require.ErrorIs(t, err, ErrStopped)
	})
}

// closing counts the calls to close idle connections.
type closing struct {
	http.RoundTripper
	times atomic.Int64
}

func (c *closing) CloseIdleConnections() { c.times.Add(1) }

// At the end no connection is left that an owner would wait for.
func TestLeaveClosesConnections(t *testing.T) {
	tr := &closing{RoundTripper: http.DefaultTransport}
	c := New(Config{Client: &http.Client{Transport: tr}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, c.Run(ctx))
	assert.EqualValues(t, 1, tr.times.Load())
}

// A caller that cancels does not wait.
func TestCancel(t *testing.T) {
	w := newTown("a:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		w.set("a:1", func(o *script) { o.delay = 900 * time.Millisecond })
		first := make(chan string, 1)
		go func() { first <- answeredBy(t, c, started("first")) }()
		synctest.Wait()
		w.lines("a:1")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		_, _, err := c.Announce(ctx, started("app"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 100*time.Millisecond, time.Since(began))
		assert.Equal(t, "a:1", <-first, "others are not disturbed")
		time.Sleep(10 * time.Second)
		assert.Equal(t, []string{"started first token"}, w.lines("a:1"), "an entry whose caller left is not sent")
	})
}

// The client forgets the specs of tasks that it no longer announces.
func TestForgetSpecs(t *testing.T) {
	w := newTown("a:1")
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		answeredBy(t, c, started("app"))
		answeredBy(t, c, started("lib"))
		answeredBy(t, c, event("lib", api.Stopped))
		remembered := func() int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.downloads)
		}
		assert.Equal(t, 1, remembered())
		time.Sleep(2 * forgetAfter)
		assert.Zero(t, remembered())
	})
}

func TestOverRealHTTP(t *testing.T) {
	var mu sync.Mutex
	var requests []*http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request api.AnnounceRequest
		assert.NoError(t, json.NewDecoder(r.Body).Decode(&request))
		mu.Lock()
		requests = append(requests, r)
		mu.Unlock()
		if len(request.Entries) > 0 && request.Entries[0].Task == "teapot" {
			http.Error(w, `{"error":"short and stout"}`, http.StatusTeapot)
			return
		}
		fmt.Fprintf(w, `{"version":1,"assignments":[%s],"intervalMillis":60000}`,
			strings.Repeat(`{"seed":true}`, len(request.Entries)))
	}))
	defer server.Close()
	client := server.Client()
	defer client.CloseIdleConnections()

	c := New(Config{Host: self, Owners: []string{server.Listener.Addr().String()}, Client: client})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	a, _, err := c.Announce(t.Context(), started("app"))
	require.NoError(t, err)
	assert.True(t, a.Seed)
	_, _, err = c.Announce(t.Context(), started("teapot"))
	require.ErrorContains(t, err, `418 I'm a teapot: {"error":"short and stout"}`)
	cancel()
	require.NoError(t, <-ended)

	mu.Lock()
	defer mu.Unlock()
	for _, r := range requests {
		assert.Equal(t, "POST /api/v1/announce", r.Method+" "+r.URL.Path)
		assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
	}
}

// Responses are bounded before they count.
// redirector answers each request to the owner with a redirect, and records the hosts that are asked.
type redirector struct {
	status int
	asked  []string
}

func (r *redirector) RoundTrip(request *http.Request) (*http.Response, error) {
	r.asked = append(r.asked, request.URL.Host)
	return &http.Response{
		StatusCode: r.status, Status: http.StatusText(r.status), Body: http.NoBody, Request: request,
		Header: http.Header{"Location": {"http://169.254.169.254/latest/meta-data"}},
	}, nil
}

func TestRedirectsOfOwnersAreNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		r := &redirector{status: status}
		c := New(Config{Host: self, Owners: []string{"10.0.0.2:1"}, Client: &http.Client{Transport: r}})
		_, err := c.post(t.Context(), "10.0.0.2:1", api.AnnounceRequest{Version: api.Version, Host: self})
		require.ErrorContains(t, err, http.StatusText(status))
		_, err = c.postLookup(t.Context(), "10.0.0.2:1", []byte("{}"), func() bool { return true })
		require.ErrorContains(t, err, http.StatusText(status))
		assert.Equal(t, []string{"10.0.0.2:1", "10.0.0.2:1"}, r.asked, status)
	}
}

func TestDecodeBounds(t *testing.T) {
	good := api.Neighbour{Host: self}
	crowd := slices.Repeat([]api.Neighbour{good}, api.NeighboursIn+1)
	response := api.AnnounceResponse{
		Version: 1, IntervalMillis: 1 << 40, Owners: []string{"b:1", "a:1", "b:1", "nonsense", ":1"},
		Assignments: []api.Assignment{
			{Neighbours: append([]api.Neighbour{{Host: host.Host{ID: "x", Addr: "a:1"}},
				{Host: host.Host{ID: self.ID, Addr: "a"}}}, crowd...)},
			{Metadata: &piece.Metadata{Length: -1}, Inline: []byte("x")},
			{Inline: make([]byte, api.InlineMax+1)},
			{Failure: &api.Failure{Status: 200, Body: make([]byte, api.FailureMax+1)}},
			{Inline: []byte("x"), Proof: &api.Proof{Metadata: piece.MetadataFor(1, ""), Key: []byte("short")}},
		},
	}
	b, err := json.Marshal(response)
	require.NoError(t, err)
	got, err := decodeResponse(b, 5)
	require.NoError(t, err)
	assert.Equal(t, 60_000, got.IntervalMillis)
	assert.Equal(t, []string{"a:1", "b:1"}, got.Owners)
	assert.Equal(t, crowd[:api.NeighboursIn], got.Assignments[0].Neighbours)
	assert.Equal(t, api.Assignment{}, got.Assignments[1])
	assert.Nil(t, got.Assignments[2].Inline)
	assert.Equal(t, 502, got.Assignments[3].Failure.Status)
	assert.Len(t, got.Assignments[3].Failure.Body, api.FailureMax)
	assert.Nil(t, got.Assignments[4].Proof)

	for body, reason := range map[string]string{
		``:                                    "unexpected end",
		`{"version":9}`:                       "speaks version 9",
		`{}`:                                  "speaks version 0",
		`{"version":1}`:                       "0 assignments for 1 entries",
		`{"version":1,"assignments":[{},{}]}`: "more than 1 elements",
		`{"version":1,"assignments":{}}`:      "is no list",
		`{"version":1,"assignments":[{}],"owners":["` + strings.Repeat("x", 600) + `"]}`:   "more than 512",
		`{"version":1,"assignments":[{"inline":"` + strings.Repeat("x", 1<<20) + `"}]}`:    "bytes, more than",
		`{"version":1,"assignments":[{}],"owners":` + strings.Repeat(" ", api.AnnounceMax): "more than 16777216 bytes",
	} {
		_, err := decodeResponse([]byte(body), 1)
		require.ErrorContains(t, err, reason)
	}
}

// An owner of a former version may still send a redirect, and a hostile one the fields that the
// host once kept in the assignment for itself.
func TestDecodeIgnoresRemovedFields(t *testing.T) {
	for _, field := range []string{`"leads":true`, `"Leads":true`, `"elsewhere":true`, `"-":true`,
		`"redirect":"evil:1"`} {
		got, err := decodeResponse([]byte(`{"version":1,"assignments":[{"seed":true,`+field+`}]}`), 1)
		require.NoError(t, err)
		assert.Equal(t, api.Assignment{Seed: true}, got.Assignments[0], field)
	}
}

// FuzzDecodeResponse proves that the decoded response is within its bounds for any input.
func FuzzDecodeResponse(f *testing.F) {
	f.Add([]byte(`{"version":1,"assignments":[{"neighbours":[{"id":"11111111111111111111111111111111","addr":"a:1"}],"facts":{"length":5,"pieceSize":131072},"inline":"aGVsbG8="}],"intervalMillis":1000,"owners":["a:1"]}`))
	f.Add([]byte(
		`{"version":2,"assignments":[{"failure":{"status":503,"body":"eA==","message":"no"},"local":true}],"resync":true}`))
	f.Add([]byte(`{"version":1,"assignments":[{"inline":"aA==","proof":{"facts":{"length":1,"pieceSize":131072},"epoch":"7","digests":["qqqq"],"key":"AQIDBAUGBwg=","signature":"","certificates":["AA=="]}}]}`))
	f.Add([]byte(`{"version":1,"assignments":[null],"owners":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeResponse(b, 1)
		if err != nil {
			return
		}
		require.Len(t, r.Assignments, 1)
		require.LessOrEqual(t, len(r.Owners), ownersMax)
		require.True(t, 0 <= r.IntervalMillis && r.IntervalMillis <= 60_000)
		for _, addr := range r.Owners {
			require.True(t, isAddress(addr))
		}
		a := r.Assignments[0]
		require.LessOrEqual(t, len(a.Neighbours), api.NeighboursIn)
		require.LessOrEqual(t, len(a.Inline), api.InlineMax)
		if a.Metadata != nil {
			require.NoError(t, a.Metadata.Check())
		}
		if a.Proof != nil {
			require.NoError(t, a.Proof.Check())
		}
		if a.Failure != nil {
			require.LessOrEqual(t, len(a.Failure.Body), api.FailureMax)
		}
	})
}

// The status shows that an owner is alive, or why it is not.
func TestOwnersStatus(t *testing.T) {
	w := newTown("a:1", "b:2")
	w.owners["b:2"].dead = true
	inTown(t, w, Config{}, func(t *testing.T, c *Client) {
		synctest.Wait()
		owners := c.Owners()
		require.Len(t, owners, 2)
		assert.Equal(t, api.OwnerStatus{Addr: "a:1", Alive: true}, owners[0])
		assert.False(t, owners[1].Alive)
		assert.Contains(t, owners[1].Error, "connection refused")
		w.set("b:2", func(o *script) { o.dead = false })
		time.Sleep(time.Minute)
		assert.Equal(t, api.OwnerStatus{Addr: "b:2", Alive: true}, c.Owners()[1])
	})
}
