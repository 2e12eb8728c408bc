package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/atomicfile"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

// withdrawalsFile is where a node remembers withdrawals, in its data directory.
const withdrawalsFile = "withdrawn.json"

// How soon a withdrawal that could not be followed is tried again.
const (
	followAgainMin = time.Second
	followAgainMax = time.Minute
)

// ErrNotDropped tells that a withdrawal is noted and its content not dropped yet. The node
// tries again by itself, and first of all at its next start.
var ErrNotDropped = errors.New("a withdrawn content is not dropped yet")

// Withdrawals are the orders to drop a content that this node knows. It follows each order
// once, however often it is told: it drops what it holds when it learns of the order, and
// content that came since then stays. Which order is known is a matter of its name alone, so
// clocks of other hosts decide nothing.
//
// An order is on the disk as pending before anything is dropped, and as done only after all
// is: a crash in between has it followed again at the next start, before anything is served.
// Safe for concurrent use.
type Withdrawals struct {
	path string
	now  func() time.Time
	log  *slog.Logger
	// write replaces a file as a whole or not at all.
	write func(path string, b []byte) error

	// remove takes a content off the disk; rest says that a try before failed, and that
	// nothing but what that left may go. Nil: there is no disk. drop is what else is done
	// about a content. Both are set before anything is added.
	remove func(id task.ID, rest bool) error
	drop   []func(task.ID)

	// turn is held while orders are taken in, dropping included, so that all is dropped once
	// Add returns.
	turn sync.Mutex
	// mu is held to look at the orders and to change them, never while a disk is written.
	mu sync.Mutex
	// orders are all that are known, as they were learned.
	orders []*order
	known  map[orderName]*order
	// forgotten are the names of orders that were followed and made room for others: hosts that
	// learned of more than all remember, each in another order, would tell each other of them for ever.
	forgotten map[orderName]struct{}
	// saved is when the file was written, by the wall clock of then.
	saved time.Time
	// unsaved says that the file lags behind.
	unsaved bool
	// mark is that of the list at markAt; empty when it must be worked out.
	mark   string
	markAt time.Time
}

// orderName tells orders apart.
type orderName struct {
	task task.ID
	at   int64 // nanoseconds since 1970
}

// order is one withdrawal.
type order struct {
	api.Withdrawal
	// learned is this process's time, and age how old the order was then; AgeMillis is that in the
	// file or of who told it.
	learned time.Time
	age     time.Duration
	// tried says that this process began to drop the content, and failed why it did not end.
	tried  bool
	failed error
	// underway says that it is new and is followed now for the first time.
	underway bool
}

func nameOf(x api.Withdrawal) orderName { return orderName{x.Task, x.At.UnixNano()} }

// ageNow is how long ago the order was given. A clock that was set back makes nothing younger.
func (o *order) ageNow(now time.Time) time.Duration { return o.age + max(0, now.Sub(o.learned)) }

// ageOf is how old an order is that comes from another host, or from a file of a former version.
func ageOf(x api.Withdrawal, now time.Time) time.Duration {
	if x.AgeMillis > 0 {
		return min(time.Duration(min(x.AgeMillis, 1<<40))*time.Millisecond, api.WithdrawalLife)
	}
	return min(max(0, now.Sub(x.At)), api.WithdrawalLife)
}

// markLife is how long a mark stands while nothing is added; an order that grows too old
// changes it.
const markLife = time.Minute

// openWithdrawals reads what the node remembers. A file that cannot be read is an error:
// what it said may not have been dropped yet.
func openWithdrawals(dir string, log *slog.Logger) (*Withdrawals, error) {
	w := &Withdrawals{path: filepath.Join(dir, withdrawalsFile), now: time.Now, log: log, write: atomicfile.Write, known: map[orderName]*order{}, forgotten: map[orderName]struct{}{}}
	b, err := os.ReadFile(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what was withdrawn: %w", err)
	}
	file, err := api.DecodeWithdrawals(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w; delete the file to forget what was withdrawn", w.path, err)
	}
	w.saved = file.Saved
	for _, x := range file.List {
		w.note(x, 0, time.Time{})
	}
	return w, nil
}

// time is the time now. The first time it works out how old the orders of the file are: while
// no process ran, there is only the wall clock to say. mu is held.
func (w *Withdrawals) time() time.Time {
	now := w.now()
	for _, o := range w.orders {
		if !o.learned.IsZero() {
			break // those of the file come first
		}
		o.age = ageOf(o.Withdrawal, now)
		if o.AgeMillis > 0 && !w.saved.IsZero() {
			o.age += max(0, now.Sub(w.saved))
		}
		o.learned = now
	}
	return now
}

// note keeps an order that is not known yet, or returns nil. mu is held, or nobody else knows w.
func (w *Withdrawals) note(x api.Withdrawal, age time.Duration, now time.Time) *order {
	if w.known[nameOf(x)] != nil {
		return nil
	}
	o := &order{Withdrawal: x, learned: now, age: age}
	w.orders = append(w.orders, o)
	w.known[nameOf(x)] = o
	w.mark = ""
	return o
}

// forgottenMax bounds the names of forgotten orders, of some 100 bytes each.
const forgottenMax = 8 * api.WithdrawalsMax

// trim forgets the orders that were learned first, those that are followed before others.
// mu is held.
func (w *Withdrawals) trim() {
	for len(w.orders) > api.WithdrawalsMax {
		i := max(0, slices.IndexFunc(w.orders, func(o *order) bool { return !o.Pending }))
		name := nameOf(w.orders[i].Withdrawal)
		delete(w.known, name)
		if len(w.forgotten) >= forgottenMax {
			clear(w.forgotten)
		}
		if !w.orders[i].Pending {
			w.forgotten[name] = struct{}{}
		}
		w.mark = ""
		w.orders = slices.Delete(w.orders, i, i+1)
	}
}

// Order makes a new order to drop a content, for [Withdrawals.Add] and for other hosts. Its
// name is one that nobody knows, whatever the clock says.
func (w *Withdrawals) Order(id task.ID) api.Withdrawal {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.time()
	at := now
	for _, o := range w.orders {
		// Hosts of a former version follow the later of two names alone, and none that is a day
		// ahead of them.
		if o.Task == id && !o.At.Before(at) && o.At.Before(now.Add(identity.ClockSkew)) {
			at = o.At.Add(1)
		}
	}
	for w.known[orderName{id, at.UnixNano()}] != nil {
		at = at.Add(1)
	}
	return api.Withdrawal{Task: id, At: at.UTC(), AgeMillis: 1}
}

// Add takes orders in and follows those that are new, and those of the list that could not be
// followed before. An order that is older than [api.WithdrawalLife] is passed over.
//
// The error wraps [ErrNotDropped] where a content could not be dropped. Any other is of the
// disk that should remember: the content is dropped all the same, and dropped again when the
// order is told after a restart.
func (w *Withdrawals) Add(list []api.Withdrawal) error {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	now := w.time()
	var due []*order
	fresh := false
	for _, x := range list {
		if o := w.known[nameOf(x)]; o != nil {
			if o.Pending && !slices.Contains(due, o) {
				due = append(due, o)
			}
			continue
		}
		age := ageOf(x, now)
		if _, followed := w.forgotten[nameOf(x)]; followed || age >= api.WithdrawalLife {
			continue
		}
		x.Pending = true
		if o := w.note(x, age, now); o != nil {
			o.underway = true
			due, fresh = append(due, o), true
		}
	}
	w.mu.Unlock()
	var err error
	if fresh {
		err = w.save()
	}
	return errors.Join(err, w.follow(due))
}

// Resume follows what was not followed to its end when the process ended or the disk failed.
// It must return before anything is served.
func (w *Withdrawals) Resume() error {
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	var due []*order
	for _, o := range w.orders {
		if o.Pending {
			due = append(due, o)
		}
	}
	unsaved := w.unsaved
	w.mu.Unlock()
	err := w.follow(due)
	if unsaved && len(due) == 0 {
		err = w.save()
	}
	return err
}

// Run tries again until ctx ends what could not be followed or noted.
func (w *Withdrawals) Run(ctx context.Context) error {
	wait := followAgainMin
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if w.Resume() != nil { // told where it happened
			wait = min(2*wait, followAgainMax)
		} else {
			wait = followAgainMin
		}
		timer.Reset(wait)
	}
}

// follow drops what orders name, and notes them as done. turn is held.
func (w *Withdrawals) follow(due []*order) error {
	if len(due) == 0 {
		return nil
	}
	var failures []error
	done := map[task.ID]error{}
	for _, o := range due {
		err, met := done[o.Task]
		if !met {
			err = w.dropOf(o)
			done[o.Task] = err
		}
		w.mu.Lock()
		again := o.failed != nil && err != nil && o.failed.Error() == err.Error()
		o.tried, o.failed, o.Pending, o.underway = true, err, err != nil, false
		w.mu.Unlock()
		switch {
		case err == nil:
			w.log.Info("content withdrawn", "task", o.Task)
		case !again && !met:
			w.log.Error("withdrawn content cannot be dropped: it is tried again, and not served from here", "task", o.Task, "error", err)
		}
		if err != nil && !met {
			failures = append(failures, fmt.Errorf("%w: %w", ErrNotDropped, err))
		}
	}
	return errors.Join(append(failures, w.save())...)
}

// dropOf drops the content of one order.
func (w *Withdrawals) dropOf(o *order) error {
	w.mu.Lock()
	tried := o.tried
	w.mu.Unlock()
	var err error
	if w.remove != nil {
		err = w.remove(o.Task, tried)
	}
	if !tried || err == nil {
		for _, f := range w.drop {
			f(o.Task)
		}
	}
	return err
}

// List is what other hosts are told, as it was learned: orders of less than
// [api.WithdrawalLife], followed here or not.
func (w *Withdrawals) List() (out []api.Withdrawal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.time()
	for _, o := range w.orders {
		if age := o.ageNow(now); age < api.WithdrawalLife {
			out = append(out, api.Withdrawal{Task: o.Task, At: o.At.UTC(), AgeMillis: max(1, age.Milliseconds())})
		}
	}
	return out
}

// Unfollowed lists the contents that could not be dropped so far, at most
// [api.UnfollowedMax], and why. One that is being dropped for the first time is no trouble yet.
func (w *Withdrawals) Unfollowed() (out []api.Unfollowed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range w.orders {
		if !o.Pending || o.underway || len(out) == api.UnfollowedMax || slices.ContainsFunc(out, func(u api.Unfollowed) bool { return u.Task == o.Task }) {
			continue
		}
		why := "it is being dropped"
		if o.failed != nil {
			why = o.failed.Error()
		}
		out = append(out, api.Unfollowed{Task: o.Task, Why: strings.ToValidUTF8(why[:min(len(why), api.UnfollowedWhy)], "")})
	}
	return out
}

// Mark tells two lists apart; it is empty when nothing is told. Hosts that know the same
// orders have the same one.
func (w *Withdrawals) Mark() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.time()
	if since := now.Sub(w.markAt); len(w.orders) == 0 || w.mark != "" && since >= 0 && since < markLife {
		return w.mark // nearly always, and asked with every announce
	}
	w.mark, w.markAt = "", now
	var names []orderName
	for _, o := range w.orders {
		if o.ageNow(now) < api.WithdrawalLife {
			names = append(names, nameOf(o.Withdrawal))
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.SortFunc(names, func(a, b orderName) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.task, b.task)) })
	h := sha256.New()
	for _, x := range names {
		h.Write([]byte(x.task))
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(x.at)))
	}
	w.mark = hex.EncodeToString(h.Sum(nil)[:8])
	return w.mark
}

// save writes all orders, as a whole or not at all. turn is held.
func (w *Withdrawals) save() error {
	w.mu.Lock()
	now := w.time()
	w.trim()
	file := api.Withdrawals{Version: api.Version, Saved: now.UTC()}
	for _, o := range w.orders {
		file.List = append(file.List, api.Withdrawal{
			Task: o.Task, At: o.At.UTC(), AgeMillis: max(1, o.ageNow(now).Milliseconds()), Pending: o.Pending,
		})
	}
	w.mu.Unlock()
	b, err := json.Marshal(file)
	if err == nil {
		err = w.write(w.path, b)
	}
	w.mu.Lock()
	w.unsaved = err != nil
	w.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remembering what was withdrawn: %w", err)
	}
	return nil
}
