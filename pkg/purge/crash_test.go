package purge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// disk stands for the cache of a node: what it holds outlives the process.
type disk struct {
	held map[task.ID]bool
	// refuse is why nothing can be deleted; mu is for changing it while the node tries.
	mu     sync.Mutex
	refuse error
	// drops counts what was deleted.
	drops int
}

// powerCut ends a process in a test.
type powerCut struct{}

// life opens the orders of a directory as a process does at its start, over a disk.
func (d *disk) life(t *testing.T, dir string) *Journal {
	w, err := openJournal(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	w.dropper = dropFunc(func(id task.ID, rest bool) error {
		d.mu.Lock()
		refuse := d.refuse
		d.mu.Unlock()
		if refuse != nil {
			return refuse
		}
		if d.held[id] && !rest {
			d.drops++
			delete(d.held, id)
		}
		return nil
	})
	return w
}

// dropFunc is a Dropper.
type dropFunc func(id task.ID, rest bool) error

func (f dropFunc) Drop(id task.ID, rest bool) error { return f(id, rest) }

// cut runs f and reports whether the power went.
func cut(f func()) (gone bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(powerCut); !ok {
				panic(r)
			}
			gone = true
		}
	}()
	f()
	return false
}

func TestPowerCutAtEachStep(t *testing.T) {
	// The steps: note as pending, drop, note as done. The power goes before or after the n-th.
	for _, after := range []bool{false, true} {
		for n := range 3 {
			t.Run(fmt.Sprintf("step %d, after it %t", n, after), func(t *testing.T) {
				dir, now := t.TempDir(), time.Now()
				order := api.PurgeOrder{Task: idOf("0a"), At: now.UTC(), AgeMillis: 1}
				d := &disk{held: map[task.ID]bool{order.Task: true}}
				w := d.life(t, dir)
				step := -1
				at := func(do func() error) error {
					step++
					if step == n && !after {
						panic(powerCut{})
					}
					err := do()
					if step == n {
						panic(powerCut{})
					}
					return err
				}
				write, dropper := w.write, w.dropper
				w.write = func(path string, b []byte) error { return at(func() error { return write(path, b) }) }
				w.dropper = dropFunc(func(id task.ID, rest bool) error {
					return at(func() error { return dropper.Drop(id, rest) })
				})
				require.True(t, cut(func() { _ = w.Add([]api.PurgeOrder{order}) }))

				// The next process carries out the orders of the journal before it serves, and then
				// learns of the order again, as with each announce.
				w = d.life(t, dir)
				require.NoError(t, w.Resume())
				if len(w.List()) > 0 {
					assert.False(t, d.held[order.Task], "an order that is passed on is carried out here")
				}
				require.NoError(t, w.Add([]api.PurgeOrder{order}))
				assert.False(t, d.held[order.Task])
				assert.Empty(t, w.Failures())

				d.held[order.Task] = true
				for range 3 {
					w = d.life(t, dir)
					require.NoError(t, w.Resume())
					require.NoError(t, w.Add([]api.PurgeOrder{order}))
				}
				assert.True(t, d.held[order.Task], "a replica that came later stays")
			})
		}
	}
}

func TestFailedDropIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		order := api.PurgeOrder{Task: idOf("0a"), At: time.Now().UTC(), AgeMillis: 1}
		d := &disk{held: map[task.ID]bool{order.Task: true}, refuse: errors.New("input/output error")}
		w := d.life(t, dir)
		err := w.Add([]api.PurgeOrder{order})
		require.ErrorIs(t, err, ErrNotDropped)
		require.ErrorContains(t, err, "input/output error")
		assert.Equal(t, []api.PurgeFailure{{Task: order.Task, Why: "input/output error"}}, w.Failures())
		assert.Len(t, w.List(), 1, "the host passes it on all the same")

		// A restart changes nothing about it.
		w = d.life(t, dir)
		assert.Equal(t, []api.PurgeFailure{{Task: order.Task, Why: "the deletion runs"}}, w.Failures())
		require.ErrorIs(t, w.Resume(), ErrNotDropped)

		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		time.Sleep(time.Hour)
		assert.Len(t, w.Failures(), 1)
		d.mu.Lock()
		d.refuse = nil
		d.mu.Unlock()
		time.Sleep(2 * retryMax)
		assert.Empty(t, w.Failures())
		assert.NoError(t, w.Add([]api.PurgeOrder{order}))
		stop()
		require.NoError(t, <-ended)
		assert.Empty(t, d.life(t, dir).Failures(), "and the journal says so")
	})
}

func TestRunningDropIsNoFailure(t *testing.T) {
	order := api.PurgeOrder{Task: idOf("0a"), At: time.Now().UTC(), AgeMillis: 1}
	d := &disk{held: map[task.ID]bool{order.Task: true}}
	w := d.life(t, t.TempDir())
	looks := 0
	look := func() {
		looks++
		assert.Empty(t, w.Failures(), "owners would report a failure of this host to the operator")
	}
	write, dropper := w.write, w.dropper
	w.write = func(path string, b []byte) error { look(); return write(path, b) }
	w.dropper = dropFunc(func(id task.ID, rest bool) error { look(); return dropper.Drop(id, rest) })
	require.NoError(t, w.Add([]api.PurgeOrder{order}))
	assert.Equal(t, 3, looks, "noted, dropped, noted as done")
}

func TestRetrySparesNewReplica(t *testing.T) {
	order := api.PurgeOrder{Task: idOf("0a"), At: time.Now().UTC(), AgeMillis: 1}
	d := &disk{held: map[task.ID]bool{}, refuse: errors.New("device or resource busy")}
	w := d.life(t, t.TempDir())
	require.ErrorIs(t, w.Add([]api.PurgeOrder{order}), ErrNotDropped)
	d.held[order.Task], d.refuse = true, nil
	require.NoError(t, w.Resume())
	assert.True(t, d.held[order.Task])
}

func TestClocksDecideNothing(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, apart := range []time.Duration{-30 * 24 * time.Hour, -3 * 24 * time.Hour, -10 * time.Minute, -1, 0, 1,
		10 * time.Minute, 3 * 24 * time.Hour, 30 * 24 * time.Hour} {
		t.Run(apart.String(), func(t *testing.T) {
			// Two operators, whose hosts' clocks differ, purge the same task in a row.
			operators := [2]*Journal{}
			for i, clock := range []time.Time{now, now.Add(apart)} {
				operators[i], _ = openAt(t, t.TempDir(), clock)
			}
			w, dropped := openAt(t, t.TempDir(), now)
			var sent []api.PurgeOrder
			for i, o := range []*Journal{operators[0], operators[1], operators[0], operators[1]} {
				order := o.Order(idOf("0a"))
				sent = append(sent, order)
				for _, host := range []*Journal{operators[0], operators[1], w} {
					require.NoError(t, host.Add([]api.PurgeOrder{order}))
				}
				assert.Len(t, *dropped, i+1, "each order counts")
			}
			for range 3 {
				require.NoError(t, w.Add(sent))
				require.NoError(t, w.Add(operators[0].List()))
				require.NoError(t, w.Add(operators[1].List()))
			}
			assert.Len(t, *dropped, len(sent), "and counts once")
			assert.Equal(t, w.Mark(), operators[0].Mark())
			assert.Equal(t, w.Mark(), operators[1].Mark())
		})
	}
}

func TestOrderOfTheVersionBefore(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, dropped := openAt(t, t.TempDir(), now)
	order := w.Order(idOf("0a"))
	require.NoError(t, w.Add([]api.PurgeOrder{order}))
	order.AgeMillis = 0 // the version before passed it on
	require.NoError(t, w.Add([]api.PurgeOrder{order}))
	assert.Len(t, *dropped, 1)
	next := w.Order(idOf("0a"))
	assert.True(t, next.At.After(order.At), "the version before carries out the later one alone")
}

func TestExpiredOrderNeverComesBack(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	day := 24 * time.Hour
	clock := start
	a, droppedA := openAt(t, t.TempDir(), start)
	b, droppedB := openAt(t, t.TempDir(), start)
	// b's clock is three days behind throughout, and it was away for six.
	a.now = func() time.Time { return clock }
	b.now = func() time.Time { return clock.Add(-3 * day) }
	require.NoError(t, a.Add([]api.PurgeOrder{a.Order(idOf("0a"))}))
	clock = clock.Add(6 * day)
	require.NoError(t, b.Add(a.List()))
	assert.Len(t, *droppedB, 1)
	for range 20 {
		clock = clock.Add(day)
		require.NoError(t, a.Add(b.List()))
		require.NoError(t, b.Add(a.List()))
	}
	assert.Empty(t, a.List())
	assert.Empty(t, b.List())
	assert.Len(t, *droppedA, 1)
	assert.Len(t, *droppedB, 1)
}

func TestClockSetBack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	dir := t.TempDir()
	w, _ := openAt(t, dir, now)
	require.NoError(t, w.Add([]api.PurgeOrder{w.Order(idOf("0a"))}))
	w.now = func() time.Time { return now.Add(-30 * 24 * time.Hour) }
	assert.Len(t, w.List(), 1)
	assert.NotEmpty(t, w.Mark())
	w.now = func() time.Time { return now.Add(api.PurgeOrderLife) }
	assert.Empty(t, w.List())

	w, _ = openAt(t, dir, now.Add(-30*24*time.Hour))
	assert.Len(t, w.List(), 1, "a restart with a clock that was set back")
	assert.Equal(t, int64(1), w.List()[0].AgeMillis)
}

func TestPendingOrdersAreEvictedLast(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, _ := openAt(t, t.TempDir(), now)
	refuse := true
	w.dropper = dropFunc(func(task.ID, bool) error {
		if refuse {
			return errors.New("busy")
		}
		return nil
	})
	first := w.Order(idOf("0a"))
	require.ErrorIs(t, w.Add([]api.PurgeOrder{first}), ErrNotDropped)
	refuse = false
	var list []api.PurgeOrder
	for i := range api.PurgeOrdersMax {
		list = append(list, api.PurgeOrder{Task: task.ID(string(idOf("0b"))[:63] + hexOf(i)), At: now, AgeMillis: 1})
	}
	require.NoError(t, w.Add(list[:len(list)/2]))
	require.NoError(t, w.Add(list[len(list)/2:]))
	assert.True(t, slices.ContainsFunc(w.List(), func(x api.PurgeOrder) bool { return x.Task == first.Task }))
	assert.Len(t, w.List(), api.PurgeOrdersMax)
}

func TestEvictedOrdersAreCarriedOutOnce(t *testing.T) {
	var first, second []api.PurgeOrder
	for i := range api.PurgeOrdersMax + 100 {
		x := api.PurgeOrder{Task: task.ID(fmt.Sprintf("sha256:%064x", i)),
			At: time.Unix(1_800_000_000, int64(i)), AgeMillis: 1}
		if i < api.PurgeOrdersMax/2 {
			first = append(first, x)
		} else {
			second = append(second, x)
		}
	}
	drops := 0
	learn := func(lists ...[]api.PurgeOrder) *Journal {
		w := (&disk{}).life(t, t.TempDir())
		w.dropper = dropFunc(func(task.ID, bool) error { drops++; return nil })
		for _, list := range lists {
			require.NoError(t, w.Add(list))
		}
		return w
	}
	// Two supernodes learn of the orders in another order, and so evict others of them.
	a, b := learn(first, second), learn(second, first)
	require.Equal(t, 2*(api.PurgeOrdersMax+100), drops)
	for range 3 {
		require.NoError(t, a.Add(b.List()))
		require.NoError(t, b.Add(a.List()))
	}
	assert.Equal(t, 2*(api.PurgeOrdersMax+100), drops, "a replica that came later is not dropped again and again")
}
