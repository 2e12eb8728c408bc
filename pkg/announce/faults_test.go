package announce

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/owners"
	"github.com/darter-io/darter/pkg/task"
)

// While the first owner is out, the third receives what this host holds, and later its end.
func TestOwnerToldInAnOutageHearsOfTheEnd(t *testing.T) {
	w := newTown(three...)
	id := ledBy(three, "a:1", "b:1")
	var mu sync.Mutex
	held := []api.Entry{event(id, api.Completed)}
	inventory := func() []api.Entry {
		mu.Lock()
		defer mu.Unlock()
		return held
	}
	inTown(t, w, Config{Inventory: inventory}, func(t *testing.T, c *Client) {
		time.Sleep(time.Second)
		w.set("a:1", func(o *script) { o.dead = true })
		time.Sleep(owners.DeadAfter + owners.RetryMax + 10*time.Second)
		require.Contains(t, w.lines("c:1"), "completed "+string(id))
		w.set("a:1", func(o *script) { o.dead, o.known = false, false })
		time.Sleep(30 * time.Second)
		mu.Lock()
		held = nil
		mu.Unlock()
		answeredBy(t, c, event(id, api.Stopped))
		time.Sleep(time.Minute)
		for _, addr := range three {
			assert.Contains(t, w.lines(addr), "stopped "+string(id), addr)
		}
	})
}

func someTasks(n int) (ids []task.ID) {
	for i := range n {
		ids = append(ids, task.ID(fmt.Sprintf("sha256:%064x", i)))
	}
	return ids
}

// An owner refuses one entry of many: it counts as alive and receives the others, and this host leads that task by
// itself.
func TestARefusedEntryIsNoDeadOwner(t *testing.T) {
	w := newTown(three...)
	ids := someTasks(9)
	bad := ids[4]
	for _, addr := range three {
		w.owners[addr].refuses = func(e api.Entry) bool { return e.Task == bad }
	}
	local := new(solo)
	inTown(t, w, Config{Local: local}, func(t *testing.T, c *Client) {
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		for _, id := range ids {
			wg.Go(func() {
				_, leader, err := c.Announce(t.Context(), started(id))
				assert.NoError(t, err)
				assert.Equal(t, id == bad, leader == owners.LastResort, "%s", id)
			})
		}
		begun := time.Now()
		wg.Wait()
		assert.Less(t, time.Since(begun), time.Second)
		assert.Equal(t, []string{fmt.Sprintf("started %s token", bad)}, local.lines())
		for _, o := range c.Owners() {
			assert.True(t, o.Alive, o.Addr)
		}
	})
}

// The same entry in the inventory keeps no other from an owner.
func TestARefusedEntryOfTheInventory(t *testing.T) {
	w := newTown("a:1")
	ids := someTasks(9)
	w.owners["a:1"].refuses = func(e api.Entry) bool { return e.Task == ids[4] }
	var held []api.Entry
	for _, id := range ids {
		held = append(held, event(id, api.Completed))
	}
	inTown(t, w, Config{Inventory: func() []api.Entry { return held }}, func(t *testing.T, c *Client) {
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Len(t, w.lines("a:1"), len(ids)-1)
		require.Len(t, c.Owners(), 1)
		assert.True(t, c.Owners()[0].Alive)
	})
}

// An owner that refuses everything with the same status, such as a TLS server that gets plain HTTP, does not count as
// alive, whatever this host sends.
func TestAnOwnerThatRefusesEverything(t *testing.T) {
	w := newTown(three...)
	for _, addr := range three {
		w.owners[addr].plain = true
	}
	held := []api.Entry{event(someTasks(1)[0], api.Completed)}
	inTown(t, w, Config{Local: new(solo), Inventory: func() []api.Entry { return held }}, func(t *testing.T, c *Client) {
		for _, id := range someTasks(5) {
			_, leader, err := c.Announce(t.Context(), started(id))
			assert.NoError(t, err)
			assert.Equal(t, owners.LastResort, leader)
			for _, o := range c.Owners() {
				assert.False(t, o.Alive, o.Addr)
				assert.Contains(t, o.Error, "HTTPS server")
			}
		}
	})
}

// An owner that refuses this host refuses no entry: an announce that waits behind a heartbeat tries it for as long as
// any owner that fails.
func TestAnOwnerThatRefusesThisHostRefusesNoEntry(t *testing.T) {
	w := newTown("a:1")
	w.owners["a:1"].plain, w.owners["a:1"].delay = true, 100*time.Millisecond
	inTown(t, w, Config{Local: new(solo)}, func(t *testing.T, c *Client) {
		begun := time.Now()
		_, leader, err := c.Announce(t.Context(), started(someTasks(1)[0])) // behind the first heartbeat
		assert.NoError(t, err)
		assert.Equal(t, owners.LastResort, leader)
		assert.GreaterOrEqual(t, time.Since(begun), 3*time.Second)
	})
}
