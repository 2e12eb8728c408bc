package identity

import (
	"net"
	"sync"
)

// gatherSize is the size in bytes of one joined write of TLS: eight records. Measurements showed higher cost for half
// and for twice this size.
const gatherSize = 128 << 10

var gatherBuffers = sync.Pool{New: func() any { b := make([]byte, 0, gatherSize); return &b }}

// gather is the connection under a TLS connection. TLS writes records of at most 16 KiB. Between Hold and Release,
// gather joins several of them to one write, which saves both ends most of the system calls. It has a buffer only then.
type gather struct {
	net.Conn
	// of counts the connection, and guards ended, which is true after Close.
	of    *sessions
	ended bool
	// mu is held during a write, because both goroutines of a TLS connection can write.
	mu   sync.Mutex
	held *[]byte
}

// NetConn returns the wrapped connection.
func (g *gather) NetConn() net.Conn { return g.Conn }

// Close closes the connection, which then counts no more.
func (g *gather) Close() error {
	g.of.end(g)
	return g.Conn.Close()
}

// Hold begins to join writes.
func (g *gather) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		g.held = gatherBuffers.Get().(*[]byte)
	}
}

// Release writes the buffer; later writes go to the connection at once. After an error the connection is unusable.
func (g *gather) Release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == nil {
		return nil
	}
	err := g.flush()
	gatherBuffers.Put(g.held)
	g.held = nil
	return err
}

func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held != nil && len(*g.held)+len(p) > cap(*g.held) {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	if g.held == nil || len(p) > cap(*g.held) {
		return g.Conn.Write(p)
	}
	*g.held = append(*g.held, p...)
	return len(p), nil
}

// flush empties the buffer. The caller holds mu.
func (g *gather) flush() error {
	b := *g.held
	*g.held = b[:0]
	if len(b) == 0 {
		return nil
	}
	_, err := g.Conn.Write(b)
	return err
}

// gathering wraps the connections of a listener in gather.
type gathering struct {
	net.Listener
	of *sessions
}

func (l gathering) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gather{Conn: c, of: l.of}, nil
}
