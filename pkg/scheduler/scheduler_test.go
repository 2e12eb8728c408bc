package scheduler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/race"
)

var (
	begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	owner = host.Host{ID: "owner", Addr: "owner:65002"}
)

const app = task.ID("app")

func node(i int) host.Host {
	name := fmt.Sprintf("node%d", i)
	return host.Host{ID: host.ID(name), Name: name, Addr: name + ":65002"}
}

func started(id task.ID) Entry {
	spec := &task.Spec{ID: id, Kind: task.Blob, Authorization: secret.String("token")}
	return Entry{Task: id, Event: Started, Need: 16, Spec: spec}
}

// announce fails the test when the scheduler is full.
func announce(t testing.TB, s *Scheduler, now time.Time, h host.Host, entries ...Entry) Answer {
	t.Helper()
	a, err := s.Announce(now, Report{Host: h, Generation: 1, Entries: entries})
	require.NoError(t, err)
	return a
}

// depths walks the links from one member and counts the members at each distance.
func depths(w *swarm, from memberIndex) []int {
	var count []int
	seen := map[memberIndex]bool{from: true}
	for ring := []memberIndex{from}; len(ring) > 0; {
		count = append(count, len(ring))
		var next []memberIndex
		for _, at := range ring {
			for _, m := range w.member(at).now().links {
				if !seen[m] {
					seen[m] = true
					next = append(next, m)
				}
			}
		}
		ring = next
	}
	return count
}

// eachSeed runs a test with some fixed seeds and a fresh one; the name of the subtest shows it.
func eachSeed(t *testing.T, f func(t *testing.T, seed uint64)) {
	for _, seed := range []uint64{1, 2, 3, rand.Uint64()} {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { f(t, seed) })
	}
}

// Of a thousand hosts that join one after the other, all are a few links from the seed.
func TestLinksFromSeed(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		s := New(Config{Self: owner, Seed: seed})
		announce(t, s, begin, owner, started(app))
		for i := range 1000 {
			got := announce(t, s, begin, node(i), started(app)).Assignments[0].Neighbours
			require.Len(t, got, min(i+1, 16), "neighbours of joiner %d", i)
		}
		w := s.swarms[app]
		rings, reached := depths(w, w.index[s.self]), 0
		for _, n := range rings {
			reached += n
		}
		assert.Equal(t, 1001, reached, "hosts that links lead to from the seed")
		assert.LessOrEqual(t, len(rings)-1, 6, "links to the farthest host; hosts at each distance: %v", rings)
		assert.Equal(t, 40, rings[1], "links of the seed")
		assert.LessOrEqual(t, linksTop(w), 40, "most links of one host")
	})
}

// linksTop is the most links of one host in a swarm.
func linksTop(w *swarm) (top int) {
	for _, m := range w.index {
		top = max(top, len(w.member(m).now().links))
	}
	return top
}

func TestMeshSurvivesHalfLeaving(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		s := New(Config{Self: owner, Seed: seed})
		announce(t, s, begin, owner, started(app))
		for i := range 600 {
			announce(t, s, begin, node(i), started(app))
		}
		for i := range 300 {
			s.Leave(begin, node(i*2).ID)
		}
		// Each host that stays needs as many neighbours as it lost, as an engine does.
		w := s.swarms[app]
		for i := range 300 {
			h := node(i*2 + 1)
			lack := 16 - len(w.member(w.index[s.byID[h.ID]]).now().links)
			announce(t, s, begin, h, Entry{Task: app, Event: Progress, Have: 1, Need: max(0, lack)})
		}
		reached := 0
		for _, n := range depths(w, w.index[s.self]) {
			reached += n
		}
		assert.Equal(t, 301, reached)
		for h, m := range w.index {
			assert.GreaterOrEqual(t, len(w.member(m).now().links), 12, "links of %s", s.hosts[h].ID)
		}
	})
}

// Only the gateways of a zone have neighbours in other zones, and they are linked to each other.
func TestGateways(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		s := New(Config{Self: owner, Seed: seed})
		announce(t, s, begin, owner, started(app))
		for i := range 500 {
			h := node(i)
			h.Zone = fmt.Sprintf("zone%d", i%5)
			a := announce(t, s, begin, h, started(app)).Assignments[0]
			assert.Equal(t, i >= 8*5, a.Local, "host %d leaves other zones to the gateways", i)
			near := 0
			for _, n := range a.Neighbours {
				if n.Zone == h.Zone {
					near++
				}
			}
			switch {
			case a.Local:
				assert.Len(t, a.Neighbours, near, "all of them are in the zone")
				// A full gateway, sometimes a very early one, accepts no further host.
				full := 0
				w := s.swarms[app]
				for _, m := range w.gates[h.Zone] {
					if s.linksFree(w, m, false) <= 0 {
						full++
					}
				}
				assert.GreaterOrEqual(t, near, min(i/5-full, 12), "neighbours in the zone of joiner %d: %v", i,
					a.Neighbours)
			case i >= 10:
				assert.GreaterOrEqual(t, len(a.Neighbours)-near, 4, "neighbours afar of joiner %d: %v", i, a.Neighbours)
			}
		}
		w := s.swarms[app]
		for zone, gates := range w.gates {
			assert.Len(t, gates, 8, zone)
			for i, a := range gates {
				for _, b := range gates[:i] {
					assert.True(t, w.linked(a, b), "gateways of %s", zone)
				}
			}
		}
	})
}

// checkBooks proves that lists, counts and links agree with each other.
func checkBooks(t *testing.T, s *Scheduler) {
	counted := Stats{Hosts: len(s.byID), Swarms: len(s.swarms)}
	defer func() { require.Equal(t, counted, s.Stats()) }()
	for id, w := range s.swarms {
		require.Equal(t, len(w.index), len(w.wanting.all)+len(w.holding.all), "%s counts every host once", id)
		for hi, m := range w.index {
			me := w.member(m)
			require.Equal(t, hi, me.host)
			*counted.of(me.standing)++
			counted.Links += countLinks(w, m)
			require.GreaterOrEqual(t, s.linksFree(w, m, true), 0, "%s has %d links in %s", s.hosts[hi].ID,
				len(me.now().links), id)
			for _, other := range me.now().links {
				require.True(t, w.linked(other, m), "links are mutual")
			}
		}
		if w.seeding {
			counted.Seeding++
		}
	}
}

// countLinks counts the links of a member to those with a smaller index, so that each link counts once.
func countLinks(w *swarm, m memberIndex) (n int) {
	for _, other := range w.member(m).now().links {
		if other < m {
			n++
		}
	}
	return n
}

// hustle sends random events to a scheduler and checks the invariants after each one. It returns all
// answers.
func hustle(t *testing.T, seed uint64, steps int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	s := New(Config{Self: owner, Seed: seed})
	tasks := []task.ID{"a", "b", "c"}
	events := []Event{Started, Started, Progress, Progress, Completed, Stopped, Starving}
	seen := map[host.ID]time.Time{}
	zones := []string{"", "east", "west"}
	now := begin
	var log strings.Builder

	lives := map[host.ID]uint64{}
	for step := range steps {
		now = now.Add(time.Duration(r.IntN(200)) * time.Millisecond)
		h := node(r.IntN(120))
		h.Zone = zones[len(h.Name)%len(zones)]
		if r.IntN(20) == 0 {
			h = owner
		}
		switch r.IntN(40) {
		case 0:
			fmt.Fprintln(&log, "leave", h.ID, s.Leave(now, h.ID))
			delete(seen, h.ID)
			continue
		case 1:
			fmt.Fprintln(&log, "tick", s.Tick(now))
			continue
		case 2:
			s.Failed(now, tasks[r.IntN(3)], errors.New("registry is down"), nil, Scope(r.IntN(3)))
			continue
		case 3:
			s.Done(tasks[r.IntN(3)], 7)
			continue
		}
		e := Entry{Task: tasks[r.IntN(3)], Event: events[r.IntN(len(events))], Have: r.IntN(3), Need: r.IntN(18)}
		if e.Event == Started || e.Event == Starving {
			e.Spec = started(e.Task).Spec
		}
		for range r.IntN(3) * r.IntN(2) {
			e.Silent = append(e.Silent, node(r.IntN(120)).ID)
		}
		lives[h.ID] += uint64(r.IntN(30) / 29)
		answer, err := s.Announce(now, Report{Host: h, Generation: lives[h.ID], Entries: []Entry{e}})
		require.NoError(t, err)
		seen[h.ID] = now
		fmt.Fprintln(&log, h.ID, e.Event, answer)

		a := answer.Assignments[0]
		assert.LessOrEqual(t, len(a.Neighbours), min(e.Need, 16))
		assert.False(t, a.Seed && h.ID != owner.ID, "only the owner's own host goes to the origin, not %s", h.ID)
		once := map[host.ID]bool{}
		for _, n := range a.Neighbours {
			assert.NotEqual(t, h.ID, n.ID, "the asker itself")
			assert.False(t, once[n.ID], "%s twice in one answer", n.ID)
			once[n.ID] = true
			if n.ID == owner.ID {
				continue
			}
			assert.Less(t, now.Sub(seen[n.ID]), 15*time.Second, "%s was not heard of", n.ID)
			for _, dead := range e.Silent {
				assert.NotEqual(t, dead, n.ID, "called silent in the same breath")
			}
		}
		if step%50 == 0 {
			checkBooks(t, s)
		}
		if t.Failed() {
			t.Fatalf("after %s %s of %s", h.ID, e.Event, e.Task)
		}
	}
	return log.String()
}

// No answer ever names the host itself, a dead host, or more hosts than LinksMax allows.
func TestInvariants(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) { hustle(t, seed, 3000/race.Divisor) })
}

func TestSameSeedSameAnswers(t *testing.T) {
	race.Skip(t, "TestInvariants makes the same calls")
	eachSeed(t, func(t *testing.T, seed uint64) {
		assert.Equal(t, hustle(t, seed, 1000), hustle(t, seed, 1000))
	})
}

// Without starving hosts, no host has more links than the cap.
func TestLinksMax(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := New(Config{Self: owner, Seed: seed, LinksMax: 20, SeedLinksMax: 10})
		for i := range 3000 {
			e := started(app)
			if i%3 > 0 {
				e = Entry{Task: app, Event: Progress, Have: 1, Need: r.IntN(17)}
			}
			announce(t, s, begin, node(r.IntN(200)), e)
		}
		w := s.swarms[app]
		for h, m := range w.index {
			most := 20
			if h == s.self {
				most = 10
			}
			assert.LessOrEqual(t, len(w.member(m).now().links), most, "links of %s", s.hosts[h].ID)
		}
	})
}

// A task that any live host holds never comes from the origin again.
func TestHeldTaskStartsNoSeed(t *testing.T) {
	s := New(Config{Self: owner})
	announce(t, s, begin, node(0), Entry{Task: app, Event: Completed, Have: 9})
	for i := 1; i < 200; i++ {
		a := announce(t, s, begin, node(i), started(app))
		require.Empty(t, a.Seeds, "joiner %d", i)
		require.NotEmpty(t, a.Assignments[0].Neighbours, "joiner %d", i)
	}
}

func TestExpiryLeavesNothing(t *testing.T) {
	s := New(Config{Self: owner})
	now := begin
	for round := range 3 {
		for i := range 50 {
			h := node(round*50 + i)
			h.Zone = h.Name
			announce(t, s, now, h, started(app), started(task.ID(h.Name)), Entry{Task: "held", Event: Completed})
		}
		now = now.Add(15 * time.Second)
		assert.Len(t, s.Tick(now).Gone, 50)
		s.Leave(now, owner.ID)
		now = now.Add(15 * time.Second)
		s.Tick(now)
		assert.Equal(t, Stats{Hosts: 1}, s.Stats())
		assert.Empty(t, s.due)
		assert.LessOrEqual(t, len(s.hosts), 51, "numbers of gone hosts are used again")
	}
}

func TestHostsMax(t *testing.T) {
	s := New(Config{Self: owner, HostsMax: 2, TasksMax: 1})
	announce(t, s, begin, node(0), started(app))
	_, err := s.Announce(begin, Report{Host: node(1)})
	require.ErrorIs(t, err, ErrFull)

	a := announce(t, s, begin, node(0), started("other"))
	assert.Len(t, a.Assignments, 1)
	assert.False(t, s.Knows("other"), "a task beyond TasksMax is not remembered")
}

// crowdOf is a cluster of hosts × tasks in which every host wants every task.
func crowdOf(tb testing.TB, hosts, tasks int) *Scheduler {
	s := New(Config{Self: owner})
	for i := range hosts {
		h := node(i)
		h.Zone = fmt.Sprintf("zone%d", i%10)
		entries := make([]Entry, tasks)
		for j := range entries {
			entries[j] = started(task.ID(fmt.Sprintf("task%d", j)))
		}
		announce(tb, s, begin, h, entries...)
	}
	return s
}

func TestMemberCostsAtMost500Bytes(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := crowdOf(t, 2000, 10)
	each := float64(heap()-before) / (2000 * 10)
	t.Logf("%.0f bytes per peer and task, with %.1f links", each, 2*float64(s.Stats().Links)/(2000*10))
	assert.LessOrEqual(t, each, 500.0)
	runtime.KeepAlive(s)
}

// BenchmarkAnnounce measures one entry per announce in a swarm of 10,000 hosts in 10 zones:
// the flash crowd itself, and the progress of a running download. The budget is 20,000/s.
func BenchmarkAnnounce(b *testing.B) {
	const hosts, tasks = 10_000, 10
	b.Run("join", func(b *testing.B) {
		var s *Scheduler
		nodes, e := make([]host.Host, hosts), started(app)
		for i := range nodes {
			nodes[i] = node(i)
			nodes[i].Zone = fmt.Sprintf("zone%d", i%10)
		}
		for i := 0; b.Loop(); i++ {
			if i%hosts == 0 {
				s = New(Config{Self: owner})
			}
			s.Announce(begin, Report{Host: nodes[i%hosts], Entries: []Entry{e}})
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "announces/s")
	})
	crowd := crowdOf(b, hosts, tasks)
	for _, need := range []int{0, 2, 16} {
		b.Run(fmt.Sprintf("progress/need=%d", need), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				h := node(i % hosts)
				h.Zone = fmt.Sprintf("zone%d", i%10)
				e := Entry{Task: task.ID(fmt.Sprintf("task%d", i/hosts%tasks)), Event: Progress, Have: 1, Need: need}
				crowd.Announce(begin, Report{Host: h, Generation: 1, Entries: []Entry{e}})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "announces/s")
		})
	}
}
