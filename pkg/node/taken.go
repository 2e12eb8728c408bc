package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/darter-io/darter/pkg/piece/diskstore"
)

// ErrRenamed tells that a program ended because its host's ID is another live host's, too, and
// that the host has another ID now: run it again.
var ErrRenamed = errors.New("this host has taken another ID: start it again")

// takenID is the news that another host has this host's ID. Its zero value is no news.
type takenID struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (t *takenID) init() {
	t.once.Do(func() { t.ctx, t.cancel = context.WithCancelCause(context.Background()) })
}

// context ends when the news comes.
func (t *takenID) context() context.Context {
	t.init()
	return t.ctx
}

// renamesMax is how often a host takes another ID in the life of a process. One that was just
// drawn is nobody's, so an owner that goes on calling it another's is wrong or lies: the host
// leads its own tasks then, and goes on to ask.
const renamesMax = 3

// renames counts them by data directory: a node does not outlive its ID.
var renames struct {
	sync.Mutex
	of map[string]int
}

// Taken ends [Node.Run] because an owner said that the host's ID is another live host's; err
// holds its words. The host takes another ID, at most three times in the life of a process.
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

// retake gives the host another key where its ID was taken; the error wraps [ErrRenamed] then.
func (n *Node) retake() error {
	cause := context.Cause(n.taken.context())
	if cause == nil {
		return nil
	}
	key, err := diskstore.ReplaceHostKey(n.cfg.Node.DataDir)
	if err != nil {
		return fmt.Errorf("%w; taking another ID: %w", cause, err)
	}
	n.Log.Warn("this host's ID is another live host's, too: it takes a new one and begins again", "was", n.Host.ID,
		"is", key.ID(), "error", cause)
	return fmt.Errorf("%w: %w", ErrRenamed, cause)
}
