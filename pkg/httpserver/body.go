package httpserver

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/telemetry"
)

// bodyRate is the minimum rate of a request's body in bytes per second, once its time is used up.
const bodyRate = 1 << 10

// boundedBody is the body of a request that must arrive at a minimum rate. Only the time of the handler's
// reads counts: a handler may pause between reads.
type boundedBody struct {
	body interface {
		Read([]byte) (int, error)
		Close() error
	}
	control *http.ResponseController
	d       *Limiter
	at      net.Addr
	remote  string
	// held is its connection, nil if that is not limited. While a handler waits for the body, the limiter may
	// close the connection for another one; it closes the one with the longest wait first.
	held *limitedConn

	waited time.Duration
	got    int64
	// mu is held to set a deadline. No deadline may be set once the connection serves the next request.
	mu    sync.Mutex
	ended bool
}

func (b *boundedBody) deadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		_ = b.control.SetReadDeadline(t)
	}
}

// Read implements [io.Reader]; a body that arrives too slowly ends with [os.ErrDeadlineExceeded].
func (b *boundedBody) Read(p []byte) (int, error) {
	begun := time.Now()
	left := b.d.body + time.Duration(b.got)*time.Second/bodyRate - b.waited
	b.deadline(begun.Add(max(left, 0)))
	b.stand(idle)
	n, err := b.body.Read(p)
	b.stand(busy)
	b.waited += time.Since(begun)
	b.got += int64(n)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			b.d.refused(telemetry.ConnSlow, b.at, b.remote, errSlow)
		}
		b.deadline(time.Time{})
	}
	return n, err
}

var errSlow = errors.New("the body of its request came at less than 1 KiB a second")

// Close implements [io.Closer].
func (b *boundedBody) Close() error { return b.body.Close() }

func (b *boundedBody) stand(to standing) {
	if b.held != nil {
		b.held.stand(to)
	}
}

// finish bounds the server's own reads of a body that its handler did not read.
func (b *boundedBody) finish() {
	b.stand(idle) // the server sets the next state when it has read the body
	b.deadline(time.Now().Add(b.d.body))
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
}

type connKey struct{}

// withConn stores the limited connection of a request in its context.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, limitedOf(c))
}

// boundBodies serves requests whose bodies must arrive at a minimum rate.
func (d *Limiter) boundBodies(at net.Addr, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			h.ServeHTTP(w, r)
			return
		}
		remote, _, _ := net.SplitHostPort(r.RemoteAddr)
		held, _ := r.Context().Value(connKey{}).(*limitedConn)
		b := &boundedBody{held: held, body: r.Body, control: http.NewResponseController(w), d: d, at: at,
			remote: remote}
		defer b.finish()
		r.Body = b
		h.ServeHTTP(w, r)
	})
}
