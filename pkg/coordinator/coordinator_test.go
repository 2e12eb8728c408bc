package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// member returns a host whose ID is made of one hex digit.
func member(digit string) host.Host {
	return host.Host{ID: host.ID(strings.Repeat(digit, 32)), Name: "node" + digit, Addr: "10.0.0." + digit + ":65002"}
}

func taskID(digit string) task.ID { return task.ID("sha256:" + strings.Repeat(digit, 64)) }

func wants(id task.ID, authorization string) api.Entry {
	return api.Entry{Task: id, Event: api.Started, Need: 16,
		Spec: &api.Spec{ID: id, Kind: task.Blob, Authorization: authorization}}
}

// waits returns the next announce of a host that waits for the task of e.
func waits(e api.Entry) api.Entry {
	e.Event = api.Starving
	return e
}

// rig is a coordinator with the seeds that it ordered.
type rig struct {
	*Coordinator
	mu    sync.Mutex
	specs []task.Spec
}

func newRig(store Store) *rig {
	r := &rig{}
	r.Coordinator = New(Config{
		Host:  member("0"),
		Store: store,
		Seed: func(spec task.Spec) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.specs = append(r.specs, spec)
		},
		Owners: func() []string { return []string{"10.0.0.9:65000"} },
	})
	return r
}

// seeds returns the tasks that the coordinator ordered its engine to fetch, with their credentials.
func (r *rig) seeds() (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, spec := range r.specs {
		out = append(out, spec.ID.Short()+" "+spec.Authorization.Reveal())
	}
	return out
}

func (r *rig) serve(t *testing.T, h host.Host, entries ...api.Entry) api.AnnounceResponse {
	t.Helper()
	response, err := r.ServeAnnounce(t.Context(),
		api.AnnounceRequest{Version: 1, Host: h, Generation: 7, Entries: entries})
	require.NoError(t, err)
	require.Len(t, response.Assignments, len(entries))
	return response
}

// shelf is a store of tasks; a nil value is a task without its pieces.
type shelf map[task.ID][]byte

func (s shelf) Open(id task.ID) (piece.Replica, error) {
	content, ok := s[id]
	if !ok {
		return nil, piece.ErrNotFound
	}
	return book{id: id, content: content}, nil
}

func (s shelf) Complete(id task.ID) bool { return s[id] != nil }

func (s shelf) Inventory() (out []piece.Entry) {
	for id, content := range s {
		b := book{id: id, content: content}
		out = append(out, piece.Entry{ID: id, Metadata: b.Metadata(), Have: b.Have().Count(),
			Complete: b.Have().Full()})
	}
	return out
}

type book struct {
	piece.Replica
	id      task.ID
	content []byte
}

func (b book) Close() error { return nil }

func (b book) Metadata() piece.Metadata {
	if b.content == nil {
		return piece.MetadataFor(100, "text/plain")
	}
	return piece.MetadataFor(int64(len(b.content)), "text/plain")
}

func (b book) Have() piece.Bitmap {
	have := piece.NewBitmap(b.Metadata().Layout().Count())
	if b.content != nil {
		have.SetAll()
	}
	return have
}

func (b book) Runs() ([]piece.DigestRun, [][]byte) { return nil, nil }

func (b book) ReadAt(p []byte, off int64) (int, error) { return copy(p, b.content[off:]), nil }

// A crowd of hosts starts one seed.
func TestHerdStartsOneSeed(t *testing.T) {
	r := newRig(nil)
	id := taskID("a")
	for _, digit := range []string{"1", "2", "3"} {
		response := r.serve(t, member(digit), wants(id, "token "+digit))
		a := response.Assignments[0]
		assert.True(t, response.Resync, "a new host tells all it holds")
		assert.Equal(t, 1000, response.IntervalMillis)
		assert.Equal(t, []string{"10.0.0.9:65000"}, response.Owners)
		assert.Equal(t, id, a.Task)
		assert.False(t, a.Seed)
		require.NotEmpty(t, a.Neighbours)
		assert.Equal(t, api.Neighbour{Host: member("0"), Reason: "seed"}, a.Neighbours[0])
	}
	assert.Equal(t, []string{"sha256:aaaaaaaaaaaa token 1"}, r.seeds())
	assert.False(t, r.serve(t, member("1")).Resync, "a known host")
}

// The hosts that announce are listed by name.
func TestHosts(t *testing.T) {
	r := newRig(nil)
	assert.Empty(t, r.Hosts(), "the owner's own host is none of them")
	r.serve(t, member("2"), wants(taskID("a"), ""), wants(taskID("b"), ""))
	r.serve(t, member("1"))
	hosts := r.Hosts()
	require.Len(t, hosts, 2)
	assert.Equal(t, member("1"), hosts[0].Host)
	assert.Equal(t, member("2"), hosts[1].Host)
	assert.Equal(t, []int{0, 2}, []int{hosts[0].Tasks, hosts[1].Tasks})
	assert.WithinDuration(t, time.Now(), hosts[1].Seen, time.Minute)
}

// An owner names standbys once all hosts have announced.
func TestStandbysAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newRig(nil), newRig(nil)
		ctx, cancel := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		for _, r := range []*rig{first, second} {
			runs.Go(func() { assert.NoError(t, r.Run(ctx)) })
		}
		named := func(r *rig) []string { return r.serve(t, member("f")).Standbys }
		say := func(r *rig, digit string, standby bool) {
			_, err := r.ServeAnnounce(t.Context(), api.AnnounceRequest{Version: 1, Host: member(digit), Generation: 7,
				Standby: standby})
			require.NoError(t, err)
		}
		crowd := []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"}
		all := func(except string) {
			for _, digit := range crowd {
				if digit != except {
					say(first, digit, true)
				}
			}
			for _, digit := range slices.Backward(crowd) {
				if digit != except {
					say(second, digit, true)
				}
			}
			say(first, "a", false)
		}
		all("")
		assert.Empty(t, named(first), "it does not know yet who else there is")
		early := first.serve(t, member("f")).EarlyStandbys
		assert.Len(t, early, standbysNamed)
		time.Sleep(standbysAfter + time.Second)
		synctest.Wait()
		was := named(first)
		assert.Equal(t, early, was)
		assert.Empty(t, first.serve(t, member("f")).EarlyStandbys)
		assert.Equal(t, was, named(second), "every owner names the same")
		assert.NotContains(t, was, member("f").Addr, "it did not say that it can")

		// One standby dies: the others stay, and another host takes its place.
		dead := strings.TrimSuffix(strings.TrimPrefix(was[0], "10.0.0."), ":65002")
		for range 4 {
			time.Sleep(5 * time.Second)
			all(dead)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		is := named(first)
		assert.Len(t, is, standbysNamed)
		assert.NotContains(t, is, was[0])
		assert.Subset(t, is, was[1:])
		assert.Equal(t, is, named(second))
		cancel()
		runs.Wait()
	})
}

// An owner that has just started names standbys in its first response, and all hosts soon know the same ones.
func TestStandbysAreNamedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		named := map[string][]string{}
		announce := func(digit string) time.Duration {
			response, err := r.ServeAnnounce(t.Context(), api.AnnounceRequest{Version: 1, Host: member(digit),
				Generation: 7, Standby: true})
			require.NoError(t, err)
			named[digit] = response.EarlyStandbys
			return time.Duration(response.IntervalMillis) * time.Millisecond
		}
		crowd := []string{"1", "2", "3", "4", "5"}
		for i, digit := range crowd {
			assert.LessOrEqual(t, announce(digit), time.Second)
			assert.NotEmpty(t, named[digit])
			if i == 0 {
				assert.Equal(t, []string{member("1").Addr}, named[digit])
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, digit := range crowd {
			announce(digit)
			assert.Len(t, named[digit], standbysNamed)
			assert.Equal(t, named["1"], named[digit])
		}
		time.Sleep(standbysAfter)
		assert.Greater(t, announce("1"), time.Second, "later hosts that want nothing announce seldom")
		cancel()
		require.NoError(t, <-ended)
	})
}

// An owner that is stopped just after its start has heard of no more hosts when it goes on: its standbys stay early.
func TestStandbysStayEarlyInAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stopped atomic.Pointer[time.Time] // until when
		stopped.Store(new(time.Time))
		meter := lag.New(lag.Config{Wait: func(ctx context.Context, d time.Duration) {
			for rest := d; rest > 0 && ctx.Err() == nil; rest = time.Until(*stopped.Load()) {
				select {
				case <-time.After(rest):
				case <-ctx.Done():
				}
			}
		}})
		c := New(Config{Host: member("0"), Seed: func(task.Spec) {}, Lag: meter})
		ctx, cancel := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		runs.Go(func() { assert.NoError(t, meter.Run(ctx)) })
		runs.Go(func() { assert.NoError(t, c.Run(ctx)) })
		time.Sleep(1010 * time.Millisecond)
		until := time.Now().Add(2 * standbysAfter)
		stopped.Store(&until)
		time.Sleep(2*standbysAfter + time.Second)
		r, err := c.ServeAnnounce(ctx, api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 7, Standby: true})
		require.NoError(t, err)
		assert.Empty(t, r.Standbys, "it does not know yet who else there is")
		assert.Equal(t, []string{member("1").Addr}, r.EarlyStandbys)
		time.Sleep(standbysAfter)
		r, err = c.ServeAnnounce(ctx, api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 7, Standby: true})
		require.NoError(t, err)
		assert.Equal(t, []string{member("1").Addr}, r.Standbys)
		cancel()
		runs.Wait()
	})
}

// Observe is called for each announce.
func TestObserve(t *testing.T) {
	var told []api.AnnounceRequest
	c := New(Config{Host: member("0"), Observe: func(r api.AnnounceRequest, _ time.Duration) {
		told = append(told, r)
	}})
	request := api.AnnounceRequest{Version: 1, Host: member("1"),
		Entries: []api.Entry{{Task: taskID("a"), Event: api.Completed}}}
	_, err := c.ServeAnnounce(t.Context(), request)
	require.NoError(t, err)
	assert.Equal(t, []api.AnnounceRequest{request}, told)
}

// The assignment orders the owner's own engine to seed.
func TestOwnEngineSeeds(t *testing.T) {
	r := newRig(nil)
	a, _, err := r.Announce(t.Context(), wants(taskID("a"), "token"))
	require.NoError(t, err)
	assert.True(t, a.Seed)
	assert.Empty(t, r.seeds(), "the answer is enough")

	// A host that announces gets the owner as a neighbour.
	found := r.serve(t, member("1"), wants(taskID("a"), "")).Assignments[0].Neighbours
	require.Len(t, found, 1)
	assert.Equal(t, member("0").ID, found[0].ID)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = r.Announce(ended, wants(taskID("a"), ""))
	require.ErrorIs(t, err, context.Canceled)
}

// An origin's refusal reaches the waiting hosts unchanged.
func TestRefusalReachesWaitingHosts(t *testing.T) {
	r := newRig(nil)
	id := taskID("a")
	r.serve(t, member("1"), wants(id, "token"))
	down := &api.Failure{Status: 503, Header: map[string]string{"Retry-After": "9"}, Body: []byte("tea break"),
		Message: "GET …: 503"}
	r.SeedFailed(id, nil, down)

	waits := wants(id, "token")
	waits.Event = api.Starving
	assert.Equal(t, down, r.serve(t, member("1"), waits).Assignments[0].Failure)
	assert.Equal(t, down, r.serve(t, member("2"), wants(id, "other token")).Assignments[0].Failure)
	assert.Len(t, r.seeds(), 1, "a failing registry is asked once")
}

// Refused credentials of one client are no failure of others.
func TestRefusedCredentials(t *testing.T) {
	for _, status := range []int{401, 403, 404} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			r := newRig(nil)
			id := taskID("a")
			r.serve(t, member("1"), wants(id, "bad"))
			r.SeedFailed(id, nil, &api.Failure{Status: status, Message: "no"})

			a := r.serve(t, member("2"), wants(id, "good")).Assignments[0]
			assert.Nil(t, a.Failure)
			assert.Equal(t, []string{"sha256:aaaaaaaaaaaa bad", "sha256:aaaaaaaaaaaa good"}, r.seeds())
		})
	}
}

// The failure of one registry does not reach clients of another.
func TestFailureOfOneRegistry(t *testing.T) {
	from := func(upstream, repository string) api.Entry {
		e := wants(taskID("a"), "")
		e.Spec.Upstream, e.Spec.Repository = upstream, repository
		return e
	}
	for _, c := range []struct {
		status int
		same   bool // another repository of the same registry hears it, too
	}{{401, false}, {403, false}, {404, false}, {429, true}, {500, true}, {502, true}, {503, true}} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			r := newRig(nil)
			r.serve(t, member("1"), from("evil.test", "app"))
			r.serve(t, member("2"), from("evil.test", "app"))
			r.serve(t, member("3"), from("evil.test", "other"))
			r.SeedFailed(taskID("a"), nil, &api.Failure{Status: c.status, Message: "no", Upstream: "evil.test",
				Repository: "app"})
			assert.NotNil(t, r.serve(t, member("2"), waits(from("evil.test", "app"))).Assignments[0].Failure)
			assert.Equal(t, c.same,
				r.serve(t, member("3"), waits(from("evil.test", "other"))).Assignments[0].Failure != nil)

			r = newRig(nil)
			r.serve(t, member("1"), from("evil.test", "app"))
			r.SeedFailed(taskID("a"), nil, &api.Failure{Status: c.status, Message: "no", Upstream: "evil.test",
				Repository: "app"})
			assert.Nil(t, r.serve(t, member("2"), from("good.test", "app")).Assignments[0].Failure)
			require.Len(t, r.specs, 2)
			assert.Equal(t, "good.test", r.specs[1].Upstream)

			// The engine got another registry after its owner ordered the seed, and asked that one.
			r = newRig(nil)
			r.serve(t, member("1"), from("good.test", "app"))
			r.SeedFailed(taskID("a"), nil, &api.Failure{Status: c.status, Message: "no", Upstream: "evil.test",
				Repository: "app"})
			assert.Nil(t, r.serve(t, member("2"), from("good.test", "app")).Assignments[0].Failure)
		})
	}
}

// On a dfdaemon that leads, a local client can give the engine other credentials after the owner ordered
// the seed. The engine sends those to the registry.
func TestRefusalByUsedSpec(t *testing.T) {
	for _, status := range []int{401, 403, 404} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			r := newRig(nil)
			id := taskID("a")
			good, bad := wants(id, "good"), wants(id, "bad")
			r.serve(t, member("1"), good)
			r.serve(t, member("2"), bad)
			shown := bad.Spec.Task()
			r.SeedFailed(id, &shown, &api.Failure{Status: status, Message: "no"})
			assert.NotNil(t, r.serve(t, member("2"), waits(bad)).Assignments[0].Failure)
			assert.Nil(t, r.serve(t, member("1"), waits(good)).Assignments[0].Failure)
			assert.Equal(t, []string{"sha256:aaaaaaaaaaaa good", "sha256:aaaaaaaaaaaa good"}, r.seeds())
		})
	}
}

// A refused signature is no failure of others.
func TestRefusedSignature(t *testing.T) {
	r := newRig(nil)
	id := taskID("a")
	signed := func(signature string) api.Entry {
		e := wants(id, "")
		e.Spec.URL = "https://files.test/f?X-Amz-Signature=" + signature
		return e
	}
	r.serve(t, member("1"), signed("ended"))
	r.serve(t, member("2"), signed("ended"))
	r.SeedFailed(id, nil, &api.Failure{Status: 403, Message: "no"})
	assert.NotNil(t, r.serve(t, member("2"), waits(signed("ended"))).Assignments[0].Failure)
	assert.Nil(t, r.serve(t, member("3"), signed("new")).Assignments[0].Failure)
	assert.Len(t, r.seeds(), 2)
}

// A failure without a message still has a status.
func TestFailureWithoutMessage(t *testing.T) {
	r := newRig(nil)
	r.serve(t, member("1"), wants(taskID("a"), ""))
	r.SeedFailed(taskID("a"), nil, nil)
	got := r.serve(t, member("2"), wants(taskID("a"), "")).Assignments[0].Failure
	require.NotNil(t, got)
	assert.Equal(t, 502, got.Status)
	assert.NotEmpty(t, got.Message)
}

// Assignments have the metadata as soon as the owner knows them.
func TestMetadata(t *testing.T) {
	r := newRig(nil)
	id := taskID("a")
	assert.Nil(t, r.serve(t, member("1"), wants(id, "")).Assignments[0].Metadata)

	facts := piece.MetadataFor(5<<20, "application/x")
	r.SeedMetadata(id, facts)
	assert.Equal(t, &facts, r.serve(t, member("2"), wants(id, "")).Assignments[0].Metadata)

	// The coordinator no longer sends the metadata of a failed attempt.
	r.SeedFailed(id, nil, &api.Failure{Status: 401, Message: "no"})
	assert.Nil(t, r.serve(t, member("3"), wants(id, "other")).Assignments[0].Metadata)

	// The coordinator forgets the metadata of unwanted tasks.
	r.SeedMetadata(taskID("b"), facts)
	assert.NotContains(t, r.metadata, taskID("b"))
}

// A small task that the store holds comes inline.
func TestInline(t *testing.T) {
	small, largest, large := taskID("a"), taskID("b"), taskID("c")
	partly, empty := taskID("d"), taskID("e")
	r := newRig(shelf{
		small: []byte("hello"), largest: make([]byte, api.InlineMax), large: make([]byte, api.InlineMax+1),
		partly: nil, empty: {},
	})
	got := r.serve(t, member("1"), wants(small, ""), wants(largest, ""), wants(large, ""), wants(empty, ""),
		wants(partly, "")).Assignments
	assert.Equal(t, "hello", string(got[0].Inline))
	assert.Len(t, got[1].Inline, api.InlineMax)
	assert.Nil(t, got[2].Inline)
	assert.Equal(t, int64(0), got[3].Metadata.Length, "empty content needs nothing but its facts")
	assert.Nil(t, got[4].Inline, "pieces are missing")
	for i, id := range []task.ID{small, largest, large, empty, partly} {
		require.NotNil(t, got[i].Metadata, "facts of %s", id)
		assert.Equal(t, "text/plain", got[i].Metadata.MediaType)
	}
	assert.Equal(t, []string{"sha256:dddddddddddd "}, r.seeds(), "what the store holds needs no origin")

	starving := wants(small, "")
	starving.Event = api.Starving
	assert.Nil(t, r.serve(t, member("1"), starving).Assignments[0].Inline, "only at the start")

	var crowd []api.Entry
	for range 100 {
		crowd = append(crowd, wants(largest, ""))
	}
	sum := 0
	for _, a := range r.serve(t, member("2"), crowd...).Assignments {
		sum += len(a.Inline)
	}
	assert.Equal(t, inlineTotal, sum, "one answer is bounded")
}

// Inline bytes come with their proof.
func TestInlineProof(t *testing.T) {
	store := memstore.New(memstore.Config{})
	file := func(digit string) task.ID { return task.ID("file:" + strings.Repeat(digit, 64)) }
	signed, bare, empty, blob := file("1"), file("2"), file("3"), taskID("a")
	content, certificates := []byte("hello"), [][]byte{{1}, {2}, {3}, {4}, {5}}
	for _, id := range []task.ID{signed, bare, empty, blob} {
		f := piece.MetadataFor(int64(len(content)), "text/plain")
		r := piece.DigestRun{Metadata: f, Epoch: 1 << 62, Digests: []piece.Digest{piece.Sum(content)}, Final: true,
			Key: piece.KeyID{7}, Signature: []byte("s")}
		if id == empty {
			f.Length = 0
			r.Metadata, r.Digests = f, nil
		}
		replica, err := store.Create(id, f)
		require.NoError(t, err)
		if id != empty {
			require.NoError(t, replica.WritePiece(0, content, piece.Sum(content)))
		}
		if id != bare {
			early := piece.DigestRun{Metadata: f, Epoch: 1, Key: piece.KeyID{6}, Signature: []byte("e")}
			require.NoError(t, replica.AddRuns([]piece.DigestRun{early, r}, certificates))
		}
		require.NoError(t, replica.Close())
	}
	rig := newRig(store)
	got := rig.serve(t, member("1"), wants(signed, ""), wants(bare, ""), wants(empty, ""), wants(blob, "")).Assignments
	for _, i := range []int{0, 3} {
		assert.Equal(t, "hello", string(got[i].Inline))
		require.NotNil(t, got[i].Proof)
		run, err := got[i].Proof.Run()
		require.NoError(t, err)
		assert.Equal(t, []piece.Digest{piece.Sum(content)}, run.Digests)
		assert.Equal(t, piece.KeyID{7}, run.Key)
		assert.Equal(t, certificates[1:], got[i].Proof.Certificates, "the last ones")
	}
	assert.Nil(t, got[1].Inline, "it has no proof, so a host would reject it")
	assert.NotNil(t, got[1].Metadata)
	assert.Empty(t, got[2].Inline)
	assert.NotNil(t, got[2].Proof, "that it is empty is vouched for, too")
}

// The owner holds a task that its seed completed.
func TestSeedDone(t *testing.T) {
	r := newRig(nil)
	id := taskID("a")
	r.serve(t, member("1"), wants(id, ""))
	r.SeedDone(id)
	a := r.serve(t, member("2"), wants(id, "")).Assignments[0]
	assert.Equal(t, "holder", a.Neighbours[0].Reason)
	assert.Equal(t, member("0").ID, a.Neighbours[0].ID)
	assert.Len(t, r.seeds(), 1)
}

// A task that the store evicted starts a seed again.
func TestEvictedTaskIsSeededAgain(t *testing.T) {
	id := taskID("a")
	store := shelf{id: make([]byte, api.InlineMax+1)}
	r := newRig(store)
	a := r.serve(t, member("1"), wants(id, "")).Assignments[0]
	assert.Equal(t, "holder", a.Neighbours[0].Reason)
	assert.Empty(t, r.seeds())

	delete(store, id)
	a = r.serve(t, member("2"), wants(id, "")).Assignments[0]
	assert.Len(t, r.seeds(), 1, "no host holds it any more")
	for _, n := range a.Neighbours {
		assert.NotEqual(t, "holder", n.Reason)
	}

	// The same for a host that got the holder as a neighbour before the eviction, and announces again.
	store[id] = make([]byte, api.InlineMax+1)
	r.SeedDone(id)
	r.serve(t, member("3"), wants(id, ""))
	assert.Len(t, r.seeds(), 1)
	store[id] = nil // the store has the task without its pieces
	starving := wants(id, "")
	starving.Event = api.Starving
	r.serve(t, member("3"), starving)
	assert.Len(t, r.seeds(), 2)
}

// A disk store reads a journal when it opens a task, so no announce of a host that begins opens a large one twice.
func TestAStartOpensNoTaskThatIsKnown(t *testing.T) {
	id := taskID("a")
	store := &countedShelf{shelf: shelf{id: make([]byte, api.InlineMax+1)}}
	r := newRig(store)
	for i := range 9 {
		a := r.serve(t, member(fmt.Sprint(i+1)), wants(id, "")).Assignments[0]
		assert.Equal(t, "holder", a.Neighbours[0].Reason)
	}
	assert.EqualValues(t, 1, store.opened.Load(), "for the metadata")
	r.serve(t, member("1"), waits(wants(id, "")))
	assert.EqualValues(t, 2, store.opened.Load(), "a host that starves has the store look at its disk")
}

// countedShelf counts how often a task is opened.
type countedShelf struct {
	shelf
	opened atomic.Int64
}

func (s *countedShelf) Open(id task.ID) (piece.Replica, error) {
	s.opened.Add(1)
	return s.shelf.Open(id)
}

// Hosts that fall silent are forgotten.
func TestSilentHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()

		held := api.Entry{Task: taskID("a"), Event: api.Completed, Have: 3}
		r.serve(t, member("1"), held)
		time.Sleep(10 * time.Second)
		starving := wants(taskID("a"), "token")
		starving.Event = api.Starving
		r.serve(t, member("2"), starving)
		assert.Empty(t, r.seeds())

		time.Sleep(6500 * time.Millisecond)
		assert.Equal(t, []string{"sha256:aaaaaaaaaaaa token"}, r.seeds(),
			"the only holder is gone and a host starves")
		assert.Equal(t, 2, r.Stats().Hosts, "the owner and the one that starves")
		assert.True(t, r.serve(t, member("1")).Resync)

		r.SeedMetadata(taskID("a"), piece.MetadataFor(1, ""))
		r.SeedFailed(taskID("b"), nil, nil)
		time.Sleep(20 * time.Second)
		assert.Equal(t, scheduler.Stats{Hosts: 1, Swarms: 1, Wanting: 1, Seeding: 1}, r.Stats())
		_, err := r.ServeAnnounce(ctx, api.AnnounceRequest{Version: 1, Host: member("0"), Leaving: true})
		require.NoError(t, err)
		time.Sleep(time.Second)
		synctest.Wait()
		r.Coordinator.mu.Lock()
		assert.Empty(t, r.metadata)
		r.Coordinator.mu.Unlock()

		cancel()
		require.NoError(t, <-ended)
	})
}

func TestSeedMayCallTheCoordinator(t *testing.T) {
	var c *Coordinator
	asked := make(chan api.Assignment, 1)
	c = New(Config{Host: member("0"), Seed: func(spec task.Spec) {
		a, _, err := c.Announce(t.Context(), api.Entry{Task: spec.ID, Event: api.Started, Spec: api.NewSpec(spec)})
		assert.NoError(t, err)
		asked <- a
	}})
	_, err := c.ServeAnnounce(t.Context(), api.AnnounceRequest{Version: 1, Host: member("1"),
		Entries: []api.Entry{wants(taskID("a"), "")}})
	require.NoError(t, err)
	assert.True(t, (<-asked).Seed)
}

// Requests that no host sends are refused as a whole.
func TestBadRequests(t *testing.T) {
	good := api.AnnounceRequest{Version: 1, Host: member("1")}
	for want, spoil := range map[string]func(*api.AnnounceRequest){
		"version 0":       func(r *api.AnnounceRequest) { r.Version = 0 },
		"version 3":       func(r *api.AnnounceRequest) { r.Version = 3 },
		"invalid host ID": func(r *api.AnnounceRequest) { r.Host.ID = "../../etc" },
		"not host:port":   func(r *api.AnnounceRequest) { r.Host.Addr = ":65002" },
		`"10.0.0.1:0"`:    func(r *api.AnnounceRequest) { r.Host.Addr = "10.0.0.1:0" },
		`"10.0.0.1:http"`: func(r *api.AnnounceRequest) { r.Host.Addr = "10.0.0.1:http" },
		"has 256 bytes":   func(r *api.AnnounceRequest) { r.Host.Zone = strings.Repeat("z", 256) },
		"4097 entries":    func(r *api.AnnounceRequest) { r.Entries = make([]api.Entry, api.EntriesMax+1) },
	} {
		r := good
		spoil(&r)
		_, err := newRig(nil).ServeAnnounce(t.Context(), r)
		var refused *RequestError
		require.ErrorAs(t, err, &refused, want)
		assert.Equal(t, http.StatusBadRequest, refused.Status)
		assert.ErrorContains(t, err, want)
	}
	next := good
	next.Version = api.Version + 1
	_, err := newRig(nil).ServeAnnounce(t.Context(), next)
	assert.NoError(t, err, "the neighbouring version is understood")
}

// A wrong entry does not affect the others.
// Lists of an entry are not decoded beyond their bounds, and a long one concerns its entry alone.
func TestLongListsOfAnEntryAreNotDecoded(t *testing.T) {
	for _, name := range []string{"windows", "silent", "left"} {
		element := map[string]string{"windows": "{},", "silent": `"",`, "left": `"",`}[name]
		long := "[" + strings.TrimSuffix(strings.Repeat(element, 80_000), ",") + "]"
		body := fmt.Sprintf(`{"version":1,"host":{"id":%q,"addr":"10.0.0.1:1"},"entries":[{"task":%q,"event":"started",%q:%s},`+
			`{"task":%q,"event":"completed","have":1}]}`, member("1").ID, taskID("a"), name, long, taskID("b"))
		r, err := decodeRequest(strings.NewReader(body))
		require.NoError(t, err)
		require.Len(t, r.Entries, 2)
		got := len(r.Entries[0].Windows) + len(r.Entries[0].Silent) + len(r.Entries[0].Left)
		assert.LessOrEqual(t, got, api.NeighboursIn+1, name)
		answer, err := New(Config{Host: member("0")}).ServeAnnounce(t.Context(), r)
		require.NoError(t, err)
		assert.NotNil(t, answer.Assignments[0].Failure)
		assert.Nil(t, answer.Assignments[1].Failure)
	}
	r, err := decodeRequest(strings.NewReader(fmt.Sprintf(`{"version":1,"entries":[{"task":%q,"silent":["x"],"left":["y"],`+
		`"windows":[{"offset":1,"length":2,"tail":true}]}]}`, taskID("a"))))
	require.NoError(t, err)
	assert.Equal(t, api.Entry{Task: taskID("a"), Silent: []host.ID{"x"}, Left: []host.ID{"y"},
		Windows: []api.Window{{Offset: 1, Length: 2, Tail: true}}}, r.Entries[0])
}

// slowBody is a body that never comes until it is released.
type slowBody struct{ read, release chan struct{} }

func (b slowBody) Read([]byte) (int, error) {
	b.read <- struct{}{}
	<-b.release
	return 0, io.EOF
}

// A member that opens many connections takes a bounded amount of memory.
func TestBytesOfAnnouncesAreBounded(t *testing.T) {
	refusals := map[Refusal]int{}
	c := New(Config{Host: member("0"), Refused: func(r Refusal) { refusals[r]++ }})
	send := func(from string, body io.Reader) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, api.PathAnnounce, body)
		r.RemoteAddr = from + ":1"
		w := httptest.NewRecorder()
		c.HandleAnnounce(w, r)
		return w
	}
	slow := slowBody{make(chan struct{}), make(chan struct{})}
	var running sync.WaitGroup
	for range bodiesMaxEach / api.AnnounceMax {
		running.Go(func() { send("10.0.0.66", slow) })
		<-slow.read
	}
	good := `{"version":1,"host":{"id":"` + string(member("1").ID) + `","addr":"10.0.0.1:65002"}}`
	assert.Equal(t, http.StatusServiceUnavailable, send("10.0.0.66", strings.NewReader(good)).Code)
	assert.Equal(t, map[Refusal]int{RefusedFull: 1}, refusals)
	assert.Equal(t, "10.0.0.66", c.RefusedHosts(time.Now())[0].Addr)
	assert.Equal(t, http.StatusOK, send("10.0.0.1", strings.NewReader(good)).Code, "another address")
	close(slow.release)
	running.Wait()
	assert.Equal(t, http.StatusOK, send("10.0.0.66", strings.NewReader(
		strings.ReplaceAll(good, string(member("1").ID), string(member("2").ID)))).Code, "they have ended")
	assert.Empty(t, c.bodies.from)
	assert.Zero(t, c.bodies.all)

	var all bodies
	for i := range bodiesMax / bodiesMaxEach {
		require.NotNil(t, all.enter(fmt.Sprint("10.0.1.", i), bodiesMaxEach))
	}
	assert.Nil(t, all.enter("10.0.2.1", 1))
	var local bodies
	require.NotNil(t, local.enter("127.0.0.1", bodiesMaxEach))
	require.NotNil(t, local.enter("127.0.0.1", 1), "the hosts of a test, or of one machine")
}

// noted records the last announce that a purge service received.
type noted struct{ last api.AnnounceRequest }

func (n *noted) Mark() string               { return "" }
func (n *noted) Note(r api.AnnounceRequest) { n.last = r }
func (n *noted) ForgetHost(host.ID)         {}

// Names and reasons of a member come to the terminals of operators.
func TestTextsOfAMemberAreClean(t *testing.T) {
	var n noted
	c := New(Config{Host: member("0"), Purges: &n})
	r := api.AnnounceRequest{Version: 1, Host: member("1"), PurgeFailures: []api.PurgeFailure{
		{Task: taskID("a"), Why: "disk\nsupernode  ready\x1b[2J\u009b" + strings.Repeat("x", 5000)},
		{Task: "sha\x1b[2J:0", Why: "no task"},
	}}
	require.Equal(t, http.StatusOK, announced(t, c, r).Code)
	require.Len(t, n.last.PurgeFailures, 1)
	why := n.last.PurgeFailures[0].Why
	assert.LessOrEqual(t, len(why), api.PurgeFailureWhyMax)
	assert.False(t, strings.ContainsFunc(why, unicode.IsControl), "%q", why)
	for _, name := range []string{"node\n", "node\x00", "\x1b[2Jnode", "node\u009b"} {
		r.Host.Name = name
		answer := announced(t, c, r)
		assert.Equal(t, http.StatusBadRequest, answer.Code)
		assert.Contains(t, answer.Body.String(), "control character")
	}
}

func TestBadEntry(t *testing.T) {
	foreign := wants(taskID("a"), "")
	foreign.Spec.ID = taskID("b")
	for want, e := range map[string]api.Entry{
		"invalid task ID":            {Task: "sha256:..", Event: api.Started},
		"cannot have -1 pieces":      {Task: taskID("a"), Event: api.Progress, Have: -1},
		"cannot have 1048577 pieces": {Task: taskID("a"), Event: api.Progress, Have: piece.CountMax + 1},
		"65 silent neighbours":       {Task: taskID("a"), Event: api.Progress, Silent: make([]host.ID, 65)},
		"the spec of another task":   foreign,
		"cannot be -1 bytes long": {Task: taskID("a"), Event: api.Started,
			Spec: &api.Spec{ID: taskID("a"), Length: -1}},
		"0 headers and 65 media type": {Task: taskID("a"), Event: api.Started,
			Spec: &api.Spec{ID: taskID("a"), Accept: make([]string, 65)}},
	} {
		r := newRig(nil)
		got := r.serve(t, member("1"), e, wants(taskID("f"), "token")).Assignments
		require.NotNil(t, got[0].Failure, want)
		assert.Equal(t, 400, got[0].Failure.Status)
		assert.Contains(t, got[0].Failure.Message, want)
		assert.Empty(t, got[0].Task)
		assert.Equal(t, taskID("f"), got[1].Task)
		assert.Equal(t, []string{"sha256:ffffffffffff token"}, r.seeds())
	}
	// An event of a later version is no error.
	got := newRig(nil).serve(t, member("1"), api.Entry{Task: taskID("a"), Event: "daydreaming"}).Assignments[0]
	assert.Equal(t, api.Assignment{Task: taskID("a")}, got)
}

func post(c *Coordinator, method, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.HandleAnnounce(w, httptest.NewRequest(method, api.PathAnnounce, strings.NewReader(body)))
	return w
}

func requestBody(t testing.TB, r api.AnnounceRequest) string {
	b, err := json.Marshal(r)
	require.NoError(t, err)
	return string(b)
}

// Announces come by POST.
func TestHandleAnnounce(t *testing.T) {
	r := newRig(nil)
	body := requestBody(t, api.AnnounceRequest{Version: 1, Host: member("1"),
		Entries: []api.Entry{wants(taskID("a"), "token")}})
	w := post(r.Coordinator, "POST", strings.Replace(body, "{", `{"aFieldOfTomorrow":[1,{}],`, 1))
	assert.Equal(t, 200, w.Code)
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	var response api.AnnounceResponse
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &response))
	require.Len(t, response.Assignments, 1)
	assert.Equal(t, member("0").Addr, response.Assignments[0].Neighbours[0].Addr)
	assert.Equal(t, []string{"sha256:aaaaaaaaaaaa token"}, r.seeds())
}

// The response to a wrong announce says what is wrong.
func TestHandleAnnounceErrors(t *testing.T) {
	head := `{"version":1,"host":{"id":"11111111111111111111111111111111","addr":"10.0.0.1:65002"}`
	for _, c := range []struct {
		method, body string
		status       int
		reason       string
	}{
		{"GET", "", 405, "not with GET"},
		{"POST", "", 400, "unexpected end of JSON"},
		{"POST", "null", 400, "version 0"},
		{"POST", head, 400, "unexpected end of JSON"},
		{"POST", head + `}{}`, 400, "after top-level value"},
		{"POST", head + `,"entries":{}}`, 400, "{ is no list"},
		{"POST", head + `,"entries":[1]}`, 400, "element 0:"},
		{"POST", head + `,"entries":[` + strings.Repeat("{},", api.EntriesMax) + `{}]}`, 400,
			"more than 4096 elements"},
		{"POST", head + `,"entries":[{"silent":["` + strings.Repeat("x", entryMax) + `"]}]}`, 400,
			"more than 262144"},
		{"POST", strings.Repeat(" ", api.AnnounceMax+1), 413, "more than 16777216"},
	} {
		w := post(newRig(nil).Coordinator, c.method, c.body)
		assert.Equal(t, c.status, w.Code, "%.100s", c.body)
		var answer struct{ Error string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
		assert.Contains(t, answer.Error, c.reason)
	}

	// A body without a length.
	w := httptest.NewRecorder()
	endless := struct{ *bytes.Reader }{bytes.NewReader(make([]byte, api.AnnounceMax+9))}
	newRig(nil).HandleAnnounce(w, httptest.NewRequest("POST", "/", endless))
	assert.Equal(t, 413, w.Code)

	full := New(Config{Host: member("0"), Scheduler: scheduler.Config{HostsMax: 1}})
	assert.Equal(t, 503, post(full, "POST", head+"}").Code)
	_, err := full.ServeAnnounce(t.Context(), api.AnnounceRequest{Version: 1, Host: member("1")})
	assert.True(t, errors.Is(err, scheduler.ErrFull))
}

// Many hosts may announce at once.
func TestConcurrentAnnounces(t *testing.T) {
	r := newRig(shelf{taskID("b"): []byte("held")})
	var wg sync.WaitGroup
	for _, digit := range strings.Split("123456789", "") {
		wg.Go(func() {
			for range 50 {
				r.serve(t, member(digit), wants(taskID("a"), ""), wants(taskID("b"), ""))
				r.SeedMetadata(taskID("a"), piece.MetadataFor(9, ""))
				r.Stats()
			}
		})
	}
	wg.Wait()
	assert.Len(t, r.seeds(), 1)
}

// FuzzHandleAnnounce proves that no body makes the owner fail or answer out of order.
func FuzzHandleAnnounce(f *testing.F) {
	f.Add(requestBody(f, api.AnnounceRequest{Version: 1, Host: member("1"), Generation: 1, Entries: []api.Entry{
		wants(taskID("a"), "token"), {Task: taskID("b"), Event: api.Completed, Have: 4},
		{Task: taskID("a"), Event: api.Starving, Silent: []host.ID{member("2").ID}, Need: 3},
	}}))
	f.Add(requestBody(f, api.AnnounceRequest{Version: 1, Host: member("2"), Leaving: true}))
	f.Add(`{"version":1,"entries":[{},null,{"spec":{}}]}`)
	f.Add(`{"entries":null,"Entries":[{"need":-1}]}`)
	r := newRig(nil)
	f.Fuzz(func(t *testing.T, body string) {
		w := post(r.Coordinator, "POST", body)
		require.Less(t, w.Code, 500)
		if w.Code != 200 {
			return
		}
		request, err := decodeRequest(strings.NewReader(body))
		require.NoError(t, err)
		var response api.AnnounceResponse
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &response))
		require.Len(t, response.Assignments, len(request.Entries))
		for i, a := range response.Assignments {
			if a.Failure == nil {
				require.Equal(t, request.Entries[i].Task, a.Task)
			}
		}
	})
}

// The response to a small file that begins waits a moment for the owner's own fetch, and holds the bytes.
func TestSmallFilesComeWithTheResponse(t *testing.T) {
	content := []byte("a small file")
	begins := func(length int64) api.Entry {
		e := wants(taskID("a"), "")
		e.Spec.Length = length
		return e
	}
	for name, row := range map[string]struct {
		length int64
		took   time.Duration // by the origin
		waited time.Duration
		inline bool
	}{
		"a fast origin":         {12, 20 * time.Millisecond, 20 * time.Millisecond, true},
		"a slow origin":         {12, time.Second, inlineWait, false},
		"a large file":          {api.InlineMax + 1, 20 * time.Millisecond, 0, false},
		"a file without length": {0, 20 * time.Millisecond, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &lateShelf{}
				r := newRig(store)
				go func() {
					time.Sleep(row.took)
					r.SeedMetadata(taskID("a"), book{id: taskID("a"), content: content}.Metadata())
					store.put(taskID("a"), content)
					r.SeedDone(taskID("a"))
				}()
				began := time.Now()
				got := r.serve(t, member("1"), begins(row.length)).Assignments[0]
				assert.Equal(t, row.waited, time.Since(began))
				assert.Equal(t, row.inline, string(got.Inline) == string(content))
				time.Sleep(2 * time.Second)
				assert.Empty(t, r.settling)
			})
		})
	}
	t.Run("a file that its origin refuses", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(&lateShelf{})
			go func() {
				time.Sleep(time.Millisecond)
				r.SeedFailed(taskID("a"), nil, &api.Failure{Status: 404, Message: "no"})
			}()
			began := time.Now()
			r.serve(t, member("1"), begins(12))
			assert.Equal(t, time.Millisecond, time.Since(began))
			assert.Empty(t, r.settling)
		})
	})
}

// lateShelf is a shelf that gets a task while a response waits.
type lateShelf struct {
	mu  sync.Mutex
	all shelf
}

func (s *lateShelf) put(id task.ID, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = shelf{id: content}
}

func (s *lateShelf) Open(id task.ID) (piece.Replica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Open(id)
}

func (s *lateShelf) Complete(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Complete(id)
}

func (s *lateShelf) Inventory() []piece.Entry { return nil }
