package access

import (
	"context"
	"errors"
	"sync"

	"github.com/darter-io/darter/pkg/source"
)

// ErrClosed reports that the Resolver was closed.
var ErrClosed = errors.New("the resolver is closed: this program is stopping")

// workers are the goroutines of a Resolver.
type workers struct {
	// ctx ends with close, and with it the context of every goroutine.
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	// mu is held to start a goroutine or to close, never while one runs.
	mu     sync.Mutex
	closed bool
}

func newWorkers() *workers {
	w := &workers{}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	return w
}

// start runs f in a goroutine with a context that also ends with close. It returns false after close.
func (w *workers) start(ctx context.Context, f func(context.Context)) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	w.wg.Go(func() {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(w.ctx, func() { cancel(ErrClosed) })()
		f(ctx)
	})
	return true
}

// close ends the contexts of all goroutines and waits for them.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel(ErrClosed)
	w.wg.Wait()
}

// group coalesces equal calls that overlap in time: one of them is made, and all callers get its result. Unlike a call
// of singleflight, this call ends when its last caller leaves, and not before. The zero value is ready.
type group[K comparable, V any] struct {
	// mu is held to join or leave, never during a call.
	mu    sync.Mutex
	calls map[K]*call[V]
}

type call[V any] struct {
	waiting int
	cancel  context.CancelFunc
	done    chan struct{}
	// v and err are set once done is closed.
	v   V
	err error
}

// errNoResult reports that a call ended without a result.
var errNoResult = errors.New("the call ended without a result")

// do returns what f returns, called here or by an earlier caller with the same key. f gets a context
// that lives as long as a caller waits. The error is f's, the cause of ctx's end, [ErrClosed], or a
// *[source.PanicError] where f panicked.
func (g *group[K, V]) do(ctx context.Context, w *workers, key K, f func(context.Context) (V, error)) (v V, err error) {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c = &call[V]{cancel: cancel, done: make(chan struct{}), err: errNoResult}
		if !w.start(own, func(ctx context.Context) { g.run(ctx, key, c, f) }) {
			g.mu.Unlock()
			cancel()
			return v, ErrClosed
		}
		if g.calls == nil {
			g.calls = map[K]*call[V]{}
		}
		g.calls[key] = c
	}
	c.waiting++
	g.mu.Unlock()

	select {
	case <-c.done:
		return c.v, c.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	if c.waiting--; c.waiting == 0 {
		g.remove(key, c) // a later caller must not join a cancelled call
		c.cancel()
	}
	g.mu.Unlock()
	return v, context.Cause(ctx)
}

// run makes one call. Its goroutine reads what registries send: a panic there becomes an error.
func (g *group[K, V]) run(ctx context.Context, key K, c *call[V], f func(context.Context) (V, error)) {
	defer c.cancel()
	defer func() {
		g.mu.Lock()
		g.remove(key, c)
		g.mu.Unlock()
		close(c.done)
	}()
	defer source.Rescue(&c.err, "asking a registry or an owner")
	c.v, c.err = f(ctx)
}

// remove takes a call out, unless a later one has taken its place. mu is held.
func (g *group[K, V]) remove(key K, c *call[V]) {
	if g.calls[key] == c {
		delete(g.calls, key)
	}
}
