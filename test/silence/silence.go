// Package silence stands between a client and its server and measures how long the client had
// to wait for a byte, whatever client it is.
//
// It changes nothing of what passes, and never ends a connection otherwise than its server
// did, but for a reset, which becomes one again. Start at [Relay.Serve].
package silence

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Relay passes connections on. The zero value needs Dial to be set.
type Relay struct {
	// Dial connects to the server.
	Dial func(context.Context) (net.Conn, error)

	// mu is held to note a moment, never while bytes move.
	mu      sync.Mutex
	longest time.Duration
	open    map[*wait]struct{}
}

// wait is what is known of one connection: when the client last asked for something, when the
// server last said something.
type wait struct{ asked, heard time.Time }

// since is when the silence began, the zero time where nothing was asked.
func (w *wait) since() time.Time {
	if w.asked.IsZero() {
		return time.Time{}
	}
	if w.heard.After(w.asked) {
		return w.heard
	}
	return w.asked
}

// Longest is the longest time that a client waited for the next byte of an answer. A wait that
// no byte ended is not known: the stuck client tells of it.
func (r *Relay) Longest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.longest
}

// Reset begins anew.
func (r *Relay) Reset() {
	r.mu.Lock()
	r.longest = 0
	now := time.Now()
	for w := range r.open {
		if !w.asked.IsZero() {
			w.heard = now
		}
	}
	r.mu.Unlock()
}

// Serve takes connections until the listener is closed, which is no error.
func (r *Relay) Serve(l net.Listener) error {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go r.pass(client)
	}
}

func (r *Relay) pass(client net.Conn) {
	defer client.Close()
	server, err := r.Dial(context.Background())
	if err != nil {
		reset(client) // the nearest thing to a refused connection
		return
	}
	defer server.Close()
	w := &wait{}
	r.mu.Lock()
	if r.open == nil {
		r.open = map[*wait]struct{}{}
	}
	r.open[w] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.open, w)
		r.mu.Unlock()
	}()

	go func() {
		_ = pump(server, client, func() { r.note(func(now time.Time) { w.asked = now }) })
		half(server)
	}()
	err = pump(client, server, func() {
		r.note(func(now time.Time) {
			r.ended(now, w)
			w.heard = now
		})
	})
	if err != nil {
		reset(client)
		return
	}
	half(client)
	// The server said all it will; what the client still sends goes nowhere but must be read,
	// or the client is reset.
	_ = client.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, client)
}

// ended takes a silence that is over into account.
func (r *Relay) ended(now time.Time, w *wait) {
	if s := w.since(); !s.IsZero() && now.Sub(s) > r.longest {
		r.longest = now.Sub(s)
	}
}

func (r *Relay) note(f func(now time.Time)) {
	r.mu.Lock()
	f(time.Now())
	r.mu.Unlock()
}

// pump copies until the end, telling of each portion before it is passed on.
func pump(to, from net.Conn, passed func()) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			passed()
			if _, err := to.Write(buf[:n]); err != nil {
				return nil // whoever left needs nothing more
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func half(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
		_ = t.Close()
	}
}
