package purge

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

// markLife is how long a mark stays valid while no order is added. An order that expires changes it.
const markLife = time.Minute

// forgottenMax bounds the names of forgotten orders, of some 100 bytes each.
const forgottenMax = 8 * api.PurgeOrdersMax

// orders is the set of orders that a host knows. It holds no clock, lock or file: time is an argument.
type orders struct {
	// list has all orders, in the order in which the host learned of them.
	list  []*order
	known map[orderName]*order
	// forgotten are the names of orders that were carried out and then evicted for others. Hosts that know
	// more orders than they can remember, each in another order, would else send them to each other forever.
	forgotten map[orderName]struct{}
	// saved is when the file was written, by the wall clock of then.
	saved time.Time
	// mark is that of the list at markAt; empty if it must be computed.
	mark   string
	markAt time.Time
}

func newOrders() orders {
	return orders{known: map[orderName]*order{}, forgotten: map[orderName]struct{}{}}
}

// orderName tells orders apart.
type orderName struct {
	task task.ID
	at   int64 // nanoseconds since 1970
}

func nameOf(x api.PurgeOrder) orderName { return orderName{x.Task, x.At.UnixNano()} }

// order is one order.
type order struct {
	api.PurgeOrder
	// learned is this process's time, and age how old the order was then. AgeMillis is the age in the file,
	// or the one that another host sent.
	learned time.Time
	age     time.Duration
	// tried: this process began to drop the task. failed is why it did not finish.
	tried  bool
	failed error
	// underway: the order is new, and its first attempt runs.
	underway bool
}

// ageAt is how long ago the order was made. A clock that was set back makes no order younger.
func (o *order) ageAt(now time.Time) time.Duration { return o.age + max(0, now.Sub(o.learned)) }

// ageOf is how old an order is that comes from another host, or from a file of the version before.
func ageOf(x api.PurgeOrder, now time.Time) time.Duration {
	if x.AgeMillis > 0 {
		return min(time.Duration(min(x.AgeMillis, 1<<40))*time.Millisecond, api.PurgeOrderLife)
	}
	return min(max(0, now.Sub(x.At)), api.PurgeOrderLife)
}

// settle gives the orders of the file their ages, the first time it is called: while no process ran,
// only the wall clock can tell how much time passed.
func (s *orders) settle(now time.Time) {
	for _, o := range s.list {
		if !o.learned.IsZero() {
			return // those of the file come first
		}
		o.age = ageOf(o.PurgeOrder, now)
		if o.AgeMillis > 0 && !s.saved.IsZero() {
			o.age += max(0, now.Sub(s.saved))
		}
		o.learned = now
	}
}

// add keeps an order that is not known yet, or returns nil.
func (s *orders) add(x api.PurgeOrder, age time.Duration, now time.Time) *order {
	if s.known[nameOf(x)] != nil {
		return nil
	}
	o := &order{PurgeOrder: x, learned: now, age: age}
	s.list = append(s.list, o)
	s.known[nameOf(x)] = o
	s.mark = ""
	return o
}

// learn adds the orders that another host sent. due are those that remain to be carried out; fresh is true
// if one of them is new.
func (s *orders) learn(list []api.PurgeOrder, now time.Time) (due []*order, fresh bool) {
	for _, x := range list {
		if o := s.known[nameOf(x)]; o != nil {
			if o.Pending && !slices.Contains(due, o) {
				due = append(due, o)
			}
			continue
		}
		age := ageOf(x, now)
		if _, done := s.forgotten[nameOf(x)]; done || age >= api.PurgeOrderLife {
			continue
		}
		x.Pending = true
		if o := s.add(x, age, now); o != nil {
			o.underway = true
			due, fresh = append(due, o), true
		}
	}
	return due, fresh
}

// trim forgets the orders that were learned first until no more than [api.PurgeOrdersMax] remain. Those
// that are carried out go before those that are pending.
func (s *orders) trim() {
	for len(s.list) > api.PurgeOrdersMax {
		i := max(0, slices.IndexFunc(s.list, func(o *order) bool { return !o.Pending }))
		name := nameOf(s.list[i].PurgeOrder)
		delete(s.known, name)
		if len(s.forgotten) >= forgottenMax {
			clear(s.forgotten)
		}
		if !s.list[i].Pending {
			s.forgotten[name] = struct{}{}
		}
		s.mark = ""
		s.list = slices.Delete(s.list, i, i+1)
	}
}

// make returns a new order whose name no host knows, whatever the clock says.
func (s *orders) make(id task.ID, now time.Time) api.PurgeOrder {
	at := now
	for _, o := range s.list {
		// Hosts of the version before carry out only the later of two names, and none that is a day ahead
		// of them.
		if o.Task == id && !o.At.Before(at) && o.At.Before(now.Add(identity.ClockSkew)) {
			at = o.At.Add(1)
		}
	}
	for s.known[orderName{id, at.UnixNano()}] != nil {
		at = at.Add(1)
	}
	return api.PurgeOrder{Task: id, At: at.UTC(), AgeMillis: 1}
}

// pending lists the orders that are not carried out.
func (s *orders) pending() (due []*order) {
	for _, o := range s.list {
		if o.Pending {
			due = append(due, o)
		}
	}
	return due
}

// live lists the orders that this host passes on, carried out here or not: those younger than
// [api.PurgeOrderLife].
func (s *orders) live(now time.Time) (out []api.PurgeOrder) {
	for _, o := range s.list {
		if age := o.ageAt(now); age < api.PurgeOrderLife {
			out = append(out, api.PurgeOrder{Task: o.Task, At: o.At.UTC(), AgeMillis: max(1, age.Milliseconds())})
		}
	}
	return out
}

// file is what a host saves.
func (s *orders) file(now time.Time) api.PurgeOrders {
	out := api.PurgeOrders{Version: api.Version, Saved: now.UTC()}
	for _, o := range s.list {
		out.List = append(out.List, api.PurgeOrder{
			Task: o.Task, At: o.At.UTC(), AgeMillis: max(1, o.ageAt(now).Milliseconds()), Pending: o.Pending,
		})
	}
	return out
}

// markOf returns the mark of the live orders: hosts that know the same orders have the same one. It is
// empty if there is none.
func (s *orders) markOf(now time.Time) string {
	if since := now.Sub(s.markAt); len(s.list) == 0 || s.mark != "" && since >= 0 && since < markLife {
		return s.mark // nearly always: each announce asks for it
	}
	s.mark, s.markAt = "", now
	var names []orderName
	for _, o := range s.list {
		if o.ageAt(now) < api.PurgeOrderLife {
			names = append(names, nameOf(o.PurgeOrder))
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.SortFunc(names, func(a, b orderName) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.task, b.task))
	})
	h := sha256.New()
	for _, x := range names {
		h.Write([]byte(x.task))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(x.at)))
	}
	s.mark = hex.EncodeToString(h.Sum(nil)[:8])
	return s.mark
}
