package registryproxy

import (
	"context"
	"sync"
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
	v       V // once done is closed
}

// do returns what ask returns, of this caller or of one who asked already. The error is the
// cause of ctx's end. ask gets a context that lives as long as somebody waits.
func (f *flights[K, V]) do(ctx context.Context, key K, ask func(context.Context) V) (V, error) {
	f.mu.Lock()
	if f.flying == nil {
		f.flying = map[K]*flight[V]{}
	}
	x := f.flying[key]
	if x == nil {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		x = &flight[V]{cancel: cancel, done: make(chan struct{})}
		f.flying[key] = x
		go func() {
			defer cancel()
			x.v = ask(own)
			f.mu.Lock()
			f.remove(key, x)
			f.mu.Unlock()
			close(x.done)
		}()
	}
	x.waiting++
	f.mu.Unlock()

	select {
	case <-x.done:
		return x.v, nil
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
