package httpproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/source"
)

// established is the response that opens the tunnel.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// hijack takes a client's connection from its server and tells the client that the tunnel is open. Nothing may
// have been written before.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	h := http.NewResponseController(w)
	conn, buffered, err := h.Hijack()
	if err != nil {
		return nil, fmt.Errorf("taking the connection: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, err
	}
	// An error shows at the first read as well.
	_, _ = io.WriteString(conn, established)
	sent, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if len(sent) == 0 || err != nil {
		return conn, nil
	}
	// Not the buffered reader itself: at the connection's end it would end the request, and with it the
	// other direction.
	return early{conn, io.MultiReader(bytes.NewReader(bytes.Clone(sent)), conn)}, nil
}

// early is a connection whose client sent bytes before it got the response.
type early struct {
	net.Conn
	all io.Reader
}

// Read implements [net.Conn].
func (c early) Read(p []byte) (int, error) { return c.all.Read(p) }

// CloseWrite ends this direction.
func (c early) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// tunnel copies in both directions until both ends have closed theirs, one of them fails, or no byte passes for
// the idle time. An end that has closed its direction may still read.
func tunnel(a, b net.Conn, idle time.Duration) {
	var moved atomic.Int64
	quiet := time.AfterFunc(idle, func() { a.Close(); b.Close() })
	defer quiet.Stop()
	tick := func() {
		// A timer reset for each chunk costs more than the chunk: once a second is enough.
		now := time.Now().Unix()
		if last := moved.Load(); last != now && moved.CompareAndSwap(last, now) {
			quiet.Reset(idle)
		}
	}
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			from, to := way[0], way[1]
			err := errors.New("it panicked")
			defer func() {
				if err != nil {
					a.Close()
					b.Close()
				}
			}()
			defer source.Rescue(&err, "copying through a tunnel")
			if _, err = io.CopyBuffer(struct{ io.Writer }{to}, ticking{from, tick}, make([]byte, 32<<10)); err == nil {
				_ = closeWrite(to)
			}
		})
	}
	wg.Wait()
}

type ticking struct {
	io.Reader
	tick func()
}

func (t ticking) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.tick()
	}
	return n, err
}
