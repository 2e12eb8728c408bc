package httpserver

import (
	"net/http"
	"sync"
)

// gate counts the requests that run, and refuses new ones once it is closed. The zero value is open.
type gate struct {
	// mu is held to count, never during a request.
	mu      sync.Mutex
	running int
	// idle is closed when the gate is closed and nothing runs; nil while the gate is open.
	idle chan struct{}
}

// close refuses new requests from now on, and returns a channel that is closed when those from before have ended.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		g.idle = make(chan struct{})
		if g.running == 0 {
			close(g.idle)
		}
	}
	return g.idle
}

// enter admits a request and returns what ends it, or nil if the gate is closed. A request whose handler takes the
// connection has ended for the gate.
func (g *gate) enter() (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle != nil {
		return nil
	}
	g.running++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.running--; g.running == 0 && g.idle != nil {
			close(g.idle)
		}
	})
}

// guard answers a request with 503 if the gate is closed, and if its handler returns without a response: net/http would
// send a 200 with an empty body and the headers that the handler set. It does not recover a panic, so net/http ends the
// connection.
func (g *gate) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leave := g.enter()
		if leave == nil {
			refuse(w, r, stopping)
			return
		}
		defer leave()
		a := &answer{ResponseWriter: w, hijacked: leave}
		h.ServeHTTP(a, r)
		if !a.begun {
			refuse(w, r, unanswered)
		}
	})
}
