package httpserver

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/telemetry"
)

// connMax is how many connections may be open at one listener.
type connMax struct {
	// total is for all, each for one remote address; loopback has all of total.
	total, each int
	// fresh is for those that have said nothing yet, or whose handshake is not done; freshEach
	// for those of one address.
	fresh, freshEach int
}

// bounds are those of a listener: a quarter of the files that the process may have, so that
// strangers at one port leave the others, and the store, enough.
func bounds() connMax {
	files := uint64(1024)
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil {
		files = r.Cur
	}
	total := int(min(max(files/4, 64), 1<<16))
	return connMax{total: total, each: max(total/4, 32), fresh: max(min(total/2, 1024), 32),
		freshEach: max(min(total/4, 256), 16)}
}

// Limit bounds a listener's connections. If one more is too many, it closes the oldest that waits for something, of
// the same address if that address has too many: a client that sends its request at once is served, however many
// others hold silent connections. It waits for a temporary failure to accept to pass.
func (d *Limiter) Limit(l net.Listener) net.Listener { return d.limit(l, bounds()) }

func (d *Limiter) limit(l net.Listener, most connMax) net.Listener {
	return &limited{Listener: l, d: d, most: most, from: map[string]*remote{}}
}

type limited struct {
	net.Listener
	d    *Limiter
	most connMax
	// secure is true if connections are fresh until their handshake is reported.
	secure atomic.Bool

	// mu is held to record connections that open, close and wait.
	mu          sync.Mutex
	from        map[string]*remote
	open        int
	fresh, idle list.List // of *limitedConn, the oldest in front
}

// remote is one address's connections.
type remote struct {
	open        int
	fresh, idle list.List
}

// standing is what a connection waits for.
type standing int

const (
	fresh standing = iota
	idle
	busy
)

// limitedConn is a connection of a limited listener. It embeds the TCP connection, so that
// the kernel can move a file's bytes to it.
type limitedConn struct {
	*net.TCPConn
	g    *limited
	addr string

	spoke atomic.Bool // it sent something; of plain connections alone
	heard atomic.Bool // its first bytes were looked at; of plain connections alone
	// asks means that it is an HTTP server's, which tells when a request has come.
	asks atomic.Bool
	once sync.Once
	// The listener's mu guards these.
	standing  standing
	all, each *list.Element
}

// Accept gives the next connection. An error that passes, as when no file is left, is waited for.
func (g *limited) Accept() (net.Conn, error) {
	pause := acceptPauseMin
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.Is(err, net.ErrClosed) || !errors.As(err, &temporary) || !temporary.Temporary() {
				return nil, err
			}
			g.d.failing(g.Addr(), err)
			g.relieve()
			time.Sleep(pause)
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPauseMin
		if tcp, ok := c.(*net.TCPConn); !ok {
			return c, nil
		} else if held := g.admit(tcp); held != nil {
			return held, nil
		}
	}
}

// acceptPauseMin and acceptPauseMax bound how long after a failure that may pass the next
// connection is accepted.
const acceptPauseMin, acceptPauseMax = 5 * time.Millisecond, time.Second

// addressOf is what connections are counted by: an IPv4 address, or the network of an IPv6 one.
func addressOf(a net.Addr) (addr string, loopback bool) {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String(), false
	}
	ip := at.Addr().Unmap().WithZone("")
	if network, err := ip.Prefix(64); ip.Is6() && !ip.IsLoopback() && err == nil {
		return network.String(), false
	}
	return ip.String(), ip.IsLoopback()
}

// admit counts a connection, closing another where there are too many; nil where it is the one
// too many itself.
func (g *limited) admit(c *net.TCPConn) *limitedConn {
	addr, loopback := addressOf(c.RemoteAddr())
	each := g.most.each
	if loopback {
		each = g.most.total
	}
	held := &limitedConn{TCPConn: c, g: g, addr: addr}
	g.mu.Lock()
	r := g.from[addr]
	if r == nil {
		r = new(remote)
		g.from[addr] = r
	}
	var out *limitedConn
	full := false
	switch {
	case r.open >= each:
		out, full = oldest(&r.fresh, &r.idle), true
	case g.open >= g.most.total:
		// An address that has few is not asked to make room for one that has many.
		if out, full = oldest(&r.fresh, &r.idle), true; out == nil || r.open*8 < g.open {
			out = oldest(&g.fresh, &g.idle)
		}
	case r.fresh.Len() >= g.most.freshEach:
		out = oldest(&r.fresh)
	case g.fresh.Len() >= g.most.fresh:
		out = oldest(&g.fresh)
	}
	if full && out == nil {
		if r.open == 0 {
			delete(g.from, addr)
		}
		g.mu.Unlock()
		c.Close()
		g.d.turned(telemetry.ConnCrowded, g.Addr(), addr, errCrowded)
		return nil
	}
	g.open++
	r.open++
	g.put(held, fresh)
	g.mu.Unlock()
	if out != nil {
		out.Close()
		g.d.turned(telemetry.ConnCrowded, g.Addr(), out.addr, errCrowded)
	}
	return held
}

var errCrowded = errors.New("as many connections are open as may be, in all or from this address")

func oldest(lists ...*list.List) *limitedConn {
	for _, l := range lists {
		if e := l.Front(); e != nil {
			return e.Value.(*limitedConn)
		}
	}
	return nil
}

// relieve closes the oldest connection that waits, because there is no file for another.
func (g *limited) relieve() {
	g.mu.Lock()
	out := oldest(&g.fresh, &g.idle)
	g.mu.Unlock()
	if out != nil {
		out.Close()
	}
}

// put moves a connection to the list of its standing. mu is held.
func (g *limited) put(c *limitedConn, to standing) {
	r := g.from[c.addr]
	if c.all != nil {
		if c.standing == fresh {
			g.fresh.Remove(c.all)
			r.fresh.Remove(c.each)
		} else {
			g.idle.Remove(c.all)
			r.idle.Remove(c.each)
		}
		c.all, c.each = nil, nil
	}
	c.standing = to
	switch to {
	case fresh:
		c.all, c.each = g.fresh.PushBack(c), r.fresh.PushBack(c)
	case idle:
		c.all, c.each = g.idle.PushBack(c), r.idle.PushBack(c)
	}
}

// stand notes what a connection does now.
func (c *limitedConn) stand(to standing) {
	g := c.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from[c.addr] != nil && c.standing != to && c.standing >= 0 {
		g.put(c, to)
	}
}

// gone is the standing of a closed connection.
const gone standing = -1

// Read takes a plain connection out of those that have said nothing. For one of an HTTP server a byte is
// no word: else a stranger that sends one holds its place until the header's time is over.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 && !c.g.secure.Load() && !c.heard.Swap(true) && p[0] == tlsHandshake {
		c.g.d.turned(telemetry.ConnTLS, c.LocalAddr(), c.addr, errTLS)
	}
	if n > 0 && !c.asks.Load() && !c.spoke.Load() && !c.g.secure.Load() {
		c.spoke.Store(true)
		c.stand(busy)
	}
	return n, err
}

// tlsHandshake is the first byte of each TLS connection (RFC 8446 §5.1), and of no HTTP request and no piece wire.
const tlsHandshake = 0x16

var errTLS = errors.New("it speaks TLS, and this port does not: a member of a cluster with a secret, while this host " +
	"has none, or a client with https:// in place of http://")

// Close gives the place back.
func (c *limitedConn) Close() error {
	c.once.Do(func() {
		g := c.g
		g.mu.Lock()
		defer g.mu.Unlock()
		g.put(c, gone)
		g.open--
		r := g.from[c.addr]
		if r.open--; r.open == 0 {
			delete(g.from, c.addr)
		}
	})
	return c.TCPConn.Close()
}

// limitedOf finds the limited connection beneath others, or nil.
func limitedOf(c net.Conn) *limitedConn {
	for range 4 {
		if held, ok := c.(*limitedConn); ok {
			return held
		}
		under, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = under.NetConn()
	}
	return nil
}

// watchState tells a server's connections how they stand.
func watchState(c net.Conn, s http.ConnState) {
	held := limitedOf(c)
	if held == nil {
		return
	}
	switch s {
	case http.StateNew:
		if held.asks.Store(true); !held.g.secure.Load() {
			held.stand(fresh)
		}
	case http.StateActive:
		held.stand(busy)
	case http.StateIdle:
		held.stand(idle)
	}
}
