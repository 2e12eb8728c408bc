package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/darter-io/darter/pkg/piece/diskstore"
)

// ErrRenamed reports that the program ended because another live host has the same ID. The host now has a new ID: run
// the program again.
var ErrRenamed = errors.New("this host has taken a new ID: start it again")

// takenID is the event that another host has this host's ID. The zero value has not happened.
type takenID struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (t *takenID) init() {
	t.once.Do(func() { t.ctx, t.cancel = context.WithCancelCause(context.Background()) })
}

// context ends when the event happens.
func (t *takenID) context() context.Context {
	t.init()
	return t.ctx
}

// renamesMax bounds how often a host takes a new ID in the life of a process. A new ID is random, so an owner that
// still reports it as taken is wrong or lies. The host then leads its own tasks, and continues to announce.
const renamesMax = 3

// renames counts the new IDs by data directory, because each new ID means a new [Node].
var renames struct {
	sync.Mutex
	of map[string]int
}

// Taken ends [Node.Run] because an owner reported that another live host has this host's ID; err is that report. The
// host takes a new ID, at most three times in the life of a process.
func (n *Node) Taken(err error) {
	n.taken.init()
	if n.taken.ctx.Err() != nil {
		return
	}
	renames.Lock()
	defer renames.Unlock()
	if renames.of == nil {
		renames.of = map[string]int{}
	}
	if renames.of[n.cfg.Node.DataDir] >= renamesMax {
		return // the announce client logs the owner's error
	}
	renames.of[n.cfg.Node.DataDir]++
	n.taken.cancel(err)
}

// retake gives the host a new key if its ID was taken. The error then wraps [ErrRenamed].
func (n *Node) retake() error {
	cause := context.Cause(n.taken.context())
	if cause == nil {
		return nil
	}
	key, err := diskstore.ReplaceHostKey(n.cfg.Node.DataDir)
	if err != nil {
		return fmt.Errorf("%w; taking a new ID: %w", cause, err)
	}
	n.Log.Warn("another live host has the same ID: this host takes a new one and starts again", "was", n.Host.ID,
		"is", key.ID(), "error", cause)
	return fmt.Errorf("%w: %w", ErrRenamed, cause)
}
