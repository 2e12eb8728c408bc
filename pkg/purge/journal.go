package purge

import (
	"context"
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
	"github.com/darter-io/darter/pkg/task"
)

// journalFile is where a node keeps its orders, in its data directory. The name is that of version 1.
const journalFile = "withdrawn.json"

// retryMin and retryMax bound the time between two attempts at an order that could not be carried out.
const (
	retryMin = time.Second
	retryMax = time.Minute
)

// ErrNotDropped means that an order is in the journal and the replica is not deleted yet. The node tries
// again by itself, also after a restart, before it serves anything.
var ErrNotDropped = errors.New("a purged task is not deleted yet")

// Dropper deletes what this host holds of a task.
type Dropper interface {
	// Drop deletes the replica. With rest, an earlier attempt failed, and Drop deletes only what that
	// attempt left behind.
	Drop(id task.ID, rest bool) error
}

// Journal is the write-ahead journal of the orders that this host knows. It carries out each order once,
// however often other hosts send it: it drops the replica that the host holds when it learns of the order,
// and keeps one that the host gets later. The name of an order alone decides whether it is known, so that
// clocks of other hosts decide nothing.
//
// An order is on the disk as pending before anything is deleted, and as done only after all is deleted. A
// crash in between has it carried out at the next start, before anything is served. Safe for concurrent use.
type Journal struct {
	path string
	now  func() time.Time
	log  *slog.Logger
	// write replaces a file as a whole or not at all.
	write func(path string, b []byte) error

	// dropper deletes replicas; nil: there is no disk. hooks run for each dropped task. Both are set before
	// the first Add.
	dropper Dropper
	hooks   []func(task.ID)

	// turn is held while orders are added and carried out, so that all replicas are deleted when Add returns.
	turn sync.Mutex
	// mu is held to look at the orders and to change them, never while a disk is written.
	mu     sync.Mutex
	orders orders
	// unsaved: the file lags behind.
	unsaved bool
}

// openJournal reads the orders that the node knows. A file that cannot be read is an error: one of its
// orders may be pending.
func openJournal(dir string, log *slog.Logger) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, journalFile), now: time.Now, log: log, write: atomicfile.Write,
		orders: newOrders()}
	b, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the purge orders: %w", err)
	}
	file, err := api.DecodePurgeOrders(b)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w; delete the file to forget all purge orders", j.path, err)
	}
	j.orders.saved = file.Saved
	for _, x := range file.List {
		j.orders.add(x, 0, time.Time{})
	}
	return j, nil
}

// locked runs f with mu held, at a time at which the orders of the file have their ages.
func (j *Journal) locked(f func(now time.Time)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.now()
	j.orders.settle(now)
	f(now)
}

// Order makes a new order to purge a task, for [Journal.Add] and for other hosts.
func (j *Journal) Order(id task.ID) (x api.PurgeOrder) {
	j.locked(func(now time.Time) { x = j.orders.make(id, now) })
	return x
}

// Add adds orders and carries out those that are new and those of the list that are pending. It ignores
// an order older than [api.PurgeOrderLife].
//
// The error wraps [ErrNotDropped] if a replica could not be deleted. Any other error is of the journal's
// disk: the task is dropped all the same, and dropped again if another host sends the order after a restart.
func (j *Journal) Add(list []api.PurgeOrder) error {
	j.turn.Lock()
	defer j.turn.Unlock()
	var due []*order
	fresh := false
	j.locked(func(now time.Time) { due, fresh = j.orders.learn(list, now) })
	var err error
	if fresh {
		err = j.save()
	}
	return errors.Join(err, j.carryOut(due))
}

// Resume carries out the orders that are pending since the process ended or the disk failed. It must return
// before anything is served.
func (j *Journal) Resume() error {
	j.turn.Lock()
	defer j.turn.Unlock()
	j.mu.Lock()
	due, unsaved := j.orders.pending(), j.unsaved
	j.mu.Unlock()
	err := j.carryOut(due)
	if unsaved && len(due) == 0 {
		err = j.save()
	}
	return err
}

// Run retries until ctx ends what could not be carried out or saved.
func (j *Journal) Run(ctx context.Context) error {
	wait := retryMin
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if j.Resume() != nil { // carryOut logs it
			wait = min(2*wait, retryMax)
		} else {
			wait = retryMin
		}
		timer.Reset(wait)
	}
}

// carryOut drops the tasks of orders, and saves those as done. turn is held.
func (j *Journal) carryOut(due []*order) error {
	if len(due) == 0 {
		return nil
	}
	var failures []error
	done := map[task.ID]error{}
	for _, o := range due {
		err, met := done[o.Task]
		if !met {
			err = j.drop(o)
			done[o.Task] = err
		}
		j.mu.Lock()
		again := o.failed != nil && err != nil && o.failed.Error() == err.Error()
		o.tried, o.failed, o.Pending, o.underway = true, err, err != nil, false
		j.mu.Unlock()
		switch {
		case err == nil:
			j.log.Info("task purged", "task", o.Task)
		case !again && !met:
			j.log.Error("cannot delete a purged task: trying again, and not serving it", "task", o.Task, "error", err)
		}
		if err != nil && !met {
			failures = append(failures, fmt.Errorf("%w: %w", ErrNotDropped, err))
		}
	}
	return errors.Join(append(failures, j.save())...)
}

// drop drops the task of one order.
func (j *Journal) drop(o *order) error {
	j.mu.Lock()
	tried := o.tried
	j.mu.Unlock()
	var err error
	if j.dropper != nil {
		err = j.dropper.Drop(o.Task, tried)
	}
	if !tried || err == nil {
		for _, f := range j.hooks {
			f(o.Task)
		}
	}
	return err
}

// List returns the orders that this host passes on, oldest first.
func (j *Journal) List() (out []api.PurgeOrder) {
	j.locked(func(now time.Time) { out = j.orders.live(now) })
	return out
}

// Mark identifies the list; it is empty if the list is. Hosts that know the same orders have the same mark.
func (j *Journal) Mark() (mark string) {
	j.locked(func(now time.Time) { mark = j.orders.markOf(now) })
	return mark
}

// Failures lists the tasks that could not be dropped so far and why, at most [api.PurgeFailuresMax]. An
// order whose first attempt runs is no failure.
func (j *Journal) Failures() (out []api.PurgeFailure) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range j.orders.pending() {
		if o.underway || len(out) == api.PurgeFailuresMax ||
			slices.ContainsFunc(out, func(f api.PurgeFailure) bool { return f.Task == o.Task }) {
			continue
		}
		why := "the deletion runs"
		if o.failed != nil {
			why = o.failed.Error()
		}
		why = strings.ToValidUTF8(why[:min(len(why), api.PurgeFailureWhyMax)], "")
		out = append(out, api.PurgeFailure{Task: o.Task, Why: why})
	}
	return out
}

// save writes all orders, as a whole or not at all. turn is held.
func (j *Journal) save() error {
	var file api.PurgeOrders
	j.locked(func(now time.Time) {
		j.orders.trim()
		file = j.orders.file(now)
	})
	b, err := json.Marshal(file)
	if err == nil {
		err = j.write(j.path, b)
	}
	j.mu.Lock()
	j.unsaved = err != nil
	j.mu.Unlock()
	if err != nil {
		return fmt.Errorf("saving the purge orders: %w", err)
	}
	return nil
}
