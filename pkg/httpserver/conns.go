package httpserver

import (
	"container/list"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/telemetry"
)

// connMax bounds the open connections of one listener.
type connMax struct {
	// total bounds all connections, each those of one remote address; loopback may use all of total.
	total, each int
	// fresh bounds the connections that have sent nothing yet, or whose handshake is not complete; freshEach those of
	// one address.
	fresh, freshEach int
}

// bounds returns the bounds of a listener: a quarter of the process's file descriptors, so that strangers at one port
// leave enough for the other ports and the store.
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

// remote holds the connections of one address.
type remote struct {
	open        int
	fresh, idle list.List
}

// standing is the state of a connection: fresh without a request or handshake, idle between requests, or busy.
type standing int

const (
	fresh standing = iota
	idle
	busy
)

// limitedConn is a connection of a limited listener. It embeds the TCP connection, so that sendfile works.
type limitedConn struct {
	*net.TCPConn
	g    *limited
	addr string

	spoke atomic.Bool // it sent a byte; only for plain connections
	heard atomic.Bool // its first byte was checked; only for plain connections
	// asks is true for a connection of an HTTP server, which reports when a request has arrived.
	asks atomic.Bool
	once sync.Once
	// The listener's mu guards these.
	standing  standing
	all, each *list.Element
}

// Accept returns the next connection. After a temporary error, such as no free file descriptor, it tries again.
func (g *limited) Accept() (net.Conn, error) {
	pause := acceptPauseMin
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !passes(err) {
				return nil, err
			}
			g.d.failing(g.Addr(), err)
			if !isOneOf(err, ofOne) {
				g.relieve()
			}
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

// scarce are the errors of accept(2) by which a machine without memory fails. ofOne are those of one connection: a
// firewall refuses it, or its network is gone. Package net calls none of them temporary.
var (
	scarce = []error{unix.ENOBUFS, unix.ENOMEM}
	ofOne  = []error{unix.ECONNABORTED, unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ENETDOWN,
		unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH}
)

func isOneOf(err error, list []error) bool {
	return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
}

// passes reports whether a later Accept may succeed.
func passes(err error) bool {
	var temporary interface{ Temporary() bool }
	return errors.As(err, &temporary) && temporary.Temporary() || isOneOf(err, scarce) || isOneOf(err, ofOne)
}

// acceptPauseMin and acceptPauseMax bound the pause after a temporary error.
const acceptPauseMin, acceptPauseMax = 5 * time.Millisecond, time.Second

// addressOf returns the key by which connections are counted: an IPv4 address, or the network of an IPv6 one.
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

// admit counts a connection. If there are too many, it closes another one, or refuses the new one and returns nil.
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
		// A connection of an address with few connections is not closed for an address with many.
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
		g.d.refused(telemetry.ConnCrowded, g.Addr(), addr, errCrowded)
		return nil
	}
	g.open++
	r.open++
	g.put(held, fresh)
	g.mu.Unlock()
	if out != nil {
		out.Close()
		g.d.refused(telemetry.ConnCrowded, g.Addr(), out.addr, errCrowded)
	}
	return held
}

var errCrowded = errors.New("too many connections are open, in all or from this address")

func oldest(lists ...*list.List) *limitedConn {
	for _, l := range lists {
		if e := l.Front(); e != nil {
			return e.Value.(*limitedConn)
		}
	}
	return nil
}

// relieve closes the oldest waiting connection, because there is no file descriptor for another one.
func (g *limited) relieve() {
	g.mu.Lock()
	out := oldest(&g.fresh, &g.idle)
	g.mu.Unlock()
	if out != nil {
		out.Close()
	}
}

// put moves a connection to the list of its state. mu is held.
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

// stand sets the state of a connection.
func (c *limitedConn) stand(to standing) {
	g := c.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from[c.addr] != nil && c.standing != to && c.standing >= 0 {
		g.put(c, to)
	}
}

// gone is the state of a closed connection.
const gone standing = -1

// Read marks a plain connection as busy after its first byte. It does not for a connection of an HTTP server: a
// stranger could otherwise send one byte and keep its place until the header's timeout.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 && !c.g.secure.Load() && !c.heard.Swap(true) && p[0] == tlsHandshake {
		c.g.d.refused(telemetry.ConnTLS, c.LocalAddr(), c.addr, errTLS)
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

// Close closes the connection and frees its place.
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

// limitedOf returns the limited connection that others wrap, or nil.
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

// watchState sets the state of a server's connections. It is the server's ConnState.
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
