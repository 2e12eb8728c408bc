package registryproxy

import (
	"context"
	"errors"
	"sync"

	"github.com/darter-io/darter/pkg/source"
)

// flights joins those who ask the same at the same time, so that one of them asks for all.
// Whoever leaves takes nobody along: the question ends when the last one has left.
type flights[K comparable, V any] struct {
	// mu is held to join or leave, never while anybody is asked.
	mu     sync.Mutex
	flying map[K]*flight[V]
}

type flight[V any] struct {
	waiting int
	cancel  context.CancelFunc
	done    chan struct{}
	// v and err stand once done is closed.
	v   V
	err error
}

// errNoOutcome tells that a question ended without an outcome.
var errNoOutcome = errors.New("the question ended without an outcome")

// do returns what ask returns, of this caller or of one who asked already. The error is the
// cause of ctx's end, or a *[source.PanicError] where ask panicked: it reads what registries say,
// in a goroutine of its own. ask gets a context that lives as long as somebody waits.
func (f *flights[K, V]) do(ctx context.Context, key K, ask func(context.Context) V) (V, error) {
	f.mu.Lock()
	if f.flying == nil {
		f.flying = map[K]*flight[V]{}
	}
	x := f.flying[key]
	if x == nil {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		x = &flight[V]{cancel: cancel, done: make(chan struct{}), err: errNoOutcome}
		f.flying[key] = x
		go func() {
			defer cancel()
			defer func() {
				f.mu.Lock()
				f.remove(key, x)
				f.mu.Unlock()
				close(x.done)
			}()
			defer source.Rescue(&x.err, "asking for others")
			x.v = ask(own)
			x.err = nil
		}()
	}
	x.waiting++
	f.mu.Unlock()

	select {
	case <-x.done:
		return x.v, x.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	if x.waiting--; x.waiting == 0 {
		f.remove(key, x) // a later caller must not join what is cancelled
		x.cancel()
	}
	f.mu.Unlock()
	var none V
	return none, context.Cause(ctx)
}

// remove takes x out, unless another has taken its place. mu is held.
func (f *flights[K, V]) remove(key K, x *flight[V]) {
	if f.flying[key] == x {
		delete(f.flying, key)
	}
}
