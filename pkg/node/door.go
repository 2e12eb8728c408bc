package node

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/telemetry"
)

// door is what all listeners of a node share: how long strangers may take, and what is said of
// those that were turned away.
type door struct {
	log     *slog.Logger
	metrics *telemetry.Door
	// handshake is how long a TLS handshake may take, header how long a request's header, and
	// body how long a request's body may stand still in all before it must come at bodyRate.
	handshake, header, body time.Duration

	// mu is held to count what is not logged.
	mu     sync.Mutex
	logged map[telemetry.Turned]*quiet
	errors quiet
}

// bodyRate is the least bytes a second of a request's body, once its time is used up.
const bodyRate = 1 << 10

func newDoor(l *slog.Logger, m *telemetry.Door) *door {
	return &door{log: l, metrics: m, handshake: handshakeTimeout, header: headerTimeout, body: bodyTimeout, logged: map[telemetry.Turned]*quiet{}}
}

// quiet lets one log line a minute through, and counts the others.
type quiet struct {
	last time.Time
	more int
}

// quietFor is how long after a log line the next of its kind comes.
const quietFor = time.Minute

func (q *quiet) tell(now time.Time) (tell bool, more int) {
	if now.Sub(q.last) < quietFor {
		q.more++
		return false, 0
	}
	more = q.more
	*q = quiet{last: now}
	return true, more
}

// turned counts a connection that was turned away, and tells of one a minute for each reason.
func (d *door) turned(why telemetry.Turned, at net.Addr, remote string, err error) {
	d.metrics.Turned(why)
	d.mu.Lock()
	q := d.logged[why]
	if q == nil {
		q = new(quiet)
		d.logged[why] = q
	}
	tell, more := q.tell(time.Now())
	d.mu.Unlock()
	if tell {
		d.log.Warn("connection turned away", "at", at, "from", remote, "why", string(why), "error", err, "more", more)
	}
}

// failing tells once a minute that no connection can be accepted.
func (d *door) failing(at net.Addr, err error) {
	d.mu.Lock()
	tell, more := d.errors.tell(time.Now())
	d.mu.Unlock()
	if tell {
		d.log.Warn("cannot accept connections, trying again; if files ran out, raise LimitNOFILE (ulimit -n)", "at", at, "error", err, "more", more)
	}
}

// reason is why a TLS handshake failed, and what a person can do about it.
func reason(err error) (telemetry.Turned, error) {
	text := err.Error()
	var timeout net.Error
	var notTLS tls.RecordHeaderError
	told := identity.Explain(err)
	switch {
	case strings.Contains(text, "didn't provide a certificate"):
		return telemetry.TurnedNoCertificate, errors.Join(err, errors.New("its other end has no cluster secret, or is no Darter program"))
	case errors.Is(told, identity.ErrNotMember) && errors.As(err, &notTLS):
		return telemetry.TurnedNoTLS, told
	case errors.Is(told, identity.ErrNotMember), strings.Contains(text, "unknown certificate authority"), strings.Contains(text, "bad certificate"):
		return telemetry.TurnedOtherSecret, told
	case strings.Contains(text, "expired"), strings.Contains(text, "not yet valid"):
		return telemetry.TurnedClock, told
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
		return telemetry.TurnedSilent, err
	}
	return telemetry.TurnedOther, told
}

// crowd is how many connections may be open at one listener.
type crowd struct {
	// total is for all, each for one remote address; loopback has all of total.
	total, each int
	// fresh is for those that have said nothing yet, or whose handshake is not done; freshEach
	// for those of one address.
	fresh, freshEach int
}

// bounds are those of a listener: a quarter of the files that the process may have, so that
// strangers at one port leave the others, and the store, enough.
func bounds() crowd {
	files := uint64(1024)
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil {
		files = r.Cur
	}
	total := int(min(max(files/4, 64), 1<<16))
	return crowd{total: total, each: max(total/4, 32), fresh: max(min(total/2, 1024), 32), freshEach: max(min(total/4, 256), 16)}
}

// guard bounds a listener's connections. Where one more is too many, the oldest that waits for
// something is closed for it, of the same address if that one has too many: a client that
// speaks at once is served, however many others hold their connections open and say nothing.
func (d *door) guard(l net.Listener, most crowd) net.Listener {
	return &guarded{Listener: l, d: d, most: most, from: map[string]*remote{}}
}

type guarded struct {
	net.Listener
	d    *door
	most crowd
	// secure says that connections are fresh until somebody says that they shook hands.
	secure atomic.Bool

	// mu is held to note who comes, goes and waits.
	mu          sync.Mutex
	from        map[string]*remote
	open        int
	fresh, idle list.List // of *guardedConn, the oldest in front
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

// guardedConn is a connection of a guarded listener. It is a TCP connection besides, so that
// the kernel can move a file's bytes to it.
type guardedConn struct {
	*net.TCPConn
	g    *guarded
	addr string

	spoke atomic.Bool // it sent something; of plain connections alone
	// asks says that it is an HTTP server's, which tells when a request has come.
	asks atomic.Bool
	once sync.Once
	// The listener's mu guards these.
	standing  standing
	all, each *list.Element
}

// Accept gives the next connection. An error that passes, as when no file is left, is waited for.
func (g *guarded) Accept() (net.Conn, error) {
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
func (g *guarded) admit(c *net.TCPConn) *guardedConn {
	addr, loopback := addressOf(c.RemoteAddr())
	each := g.most.each
	if loopback {
		each = g.most.total
	}
	held := &guardedConn{TCPConn: c, g: g, addr: addr}
	g.mu.Lock()
	r := g.from[addr]
	if r == nil {
		r = new(remote)
		g.from[addr] = r
	}
	var out *guardedConn
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
		g.d.turned(telemetry.TurnedCrowded, g.Addr(), addr, errCrowded)
		return nil
	}
	g.open++
	r.open++
	g.put(held, fresh)
	g.mu.Unlock()
	if out != nil {
		out.Close()
		g.d.turned(telemetry.TurnedCrowded, g.Addr(), out.addr, errCrowded)
	}
	return held
}

var errCrowded = errors.New("as many connections are open as may be, in all or from this address")

func oldest(lists ...*list.List) *guardedConn {
	for _, l := range lists {
		if e := l.Front(); e != nil {
			return e.Value.(*guardedConn)
		}
	}
	return nil
}

// relieve closes the oldest connection that waits, because there is no file for another.
func (g *guarded) relieve() {
	g.mu.Lock()
	out := oldest(&g.fresh, &g.idle)
	g.mu.Unlock()
	if out != nil {
		out.Close()
	}
}

// put moves a connection to the list of its standing. mu is held.
func (g *guarded) put(c *guardedConn, to standing) {
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
func (c *guardedConn) stand(to standing) {
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
func (c *guardedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 && !c.asks.Load() && !c.spoke.Load() && !c.g.secure.Load() {
		c.spoke.Store(true)
		c.stand(busy)
	}
	return n, err
}

// Close gives the place back.
func (c *guardedConn) Close() error {
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

// guardedOf finds the guarded connection beneath others, or nil.
func guardedOf(c net.Conn) *guardedConn {
	for range 4 {
		if held, ok := c.(*guardedConn); ok {
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
	held := guardedOf(c)
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

// shaking is a listener that gives connections once their TLS handshake is done, so that no
// server has to bear those whose handshake never ends, and one place tells of all that fail.
type shaking struct {
	net.Listener
	d     *door
	conns chan net.Conn
	ended chan struct{}

	started, end sync.Once
	wait         sync.WaitGroup
	err          error // why, before ended is closed
	// mu is held to note who shakes hands.
	mu      sync.Mutex
	open    map[net.Conn]struct{}
	closing bool
}

// shaking returns a listener whose connections have shaken hands where they have TLS.
func (d *door) shaking(l, raw net.Listener, secure bool) net.Listener {
	if !secure {
		return l
	}
	if g, ok := raw.(*guarded); ok {
		g.secure.Store(true)
	}
	return &shaking{Listener: l, d: d, conns: make(chan net.Conn), ended: make(chan struct{}), open: map[net.Conn]struct{}{}}
}

// Accept gives the next connection whose handshake is done.
func (s *shaking) Accept() (net.Conn, error) {
	s.started.Do(func() { s.wait.Go(s.run) })
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.ended:
		return nil, s.err
	}
}

func (s *shaking) stop(err error) {
	s.end.Do(func() {
		s.err = err
		close(s.ended)
	})
}

// Close ends the listener and all handshakes, and waits for them.
func (s *shaking) Close() error {
	s.started.Do(func() {}) // nothing begins any more
	err := s.Listener.Close()
	s.stop(net.ErrClosed)
	s.mu.Lock()
	s.closing = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.wait.Wait()
	return err
}

func (s *shaking) run() {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			s.stop(err)
			return
		}
		t, ok := c.(*tls.Conn)
		if !ok {
			s.give(c)
			continue
		}
		s.mu.Lock()
		closing := s.closing
		if !closing {
			s.open[c.(*tls.Conn).NetConn()] = struct{}{}
		}
		s.mu.Unlock()
		if closing {
			c.Close()
			continue
		}
		s.wait.Go(func() { s.shake(t) })
	}
}

func (s *shaking) shake(t *tls.Conn) {
	raw := t.NetConn()
	ctx, cancel := context.WithTimeout(context.Background(), s.d.handshake)
	err := t.HandshakeContext(ctx)
	cancel()
	s.mu.Lock()
	delete(s.open, raw)
	closing := s.closing
	s.mu.Unlock()
	switch {
	case closing:
		raw.Close()
	case err != nil:
		var notTLS tls.RecordHeaderError
		if errors.As(err, &notTLS) && notTLS.Conn != nil && speaksHTTP(notTLS.RecordHeader) {
			// As net/http does, so that a client learns why it was turned away.
			_ = raw.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(raw, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		}
		raw.Close()
		remote := raw.RemoteAddr().String()
		if host, _, e := net.SplitHostPort(remote); e == nil {
			remote = host
		}
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			// It went by itself: a probe of the port, or a member whose patience ended.
			s.d.metrics.Turned(telemetry.TurnedOther)
			return
		}
		why, told := reason(err)
		s.d.turned(why, s.Addr(), remote, told)
	default:
		if held := guardedOf(t); held != nil {
			held.stand(busy)
		}
		s.give(t)
	}
}

// speaksHTTP reports whether the first bytes of a connection are those of an HTTP request.
func speaksHTTP(first [5]byte) bool {
	switch string(first[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET":
		return true
	}
	return false
}

func (s *shaking) give(c net.Conn) {
	select {
	case s.conns <- c:
	case <-s.ended:
		c.Close()
	}
}

// unhurried is the body of a request that has to come at some rate. Only the time counts in
// which somebody waits for it: a handler may read as slowly as it likes.
type unhurried struct {
	body interface {
		Read([]byte) (int, error)
		Close() error
	}
	control *http.ResponseController
	d       *door
	at      net.Addr
	remote  string
	// held is its connection, nil where that is not guarded. While somebody waits for the body, it may be
	// closed for another one, the longest waiting first.
	held *guardedConn

	waited time.Duration
	got    int64
	// mu is held to set a deadline: none may be set once the connection belongs to the next
	// request.
	mu    sync.Mutex
	ended bool
}

func (b *unhurried) deadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ended {
		_ = b.control.SetReadDeadline(t)
	}
}

// Read implements [io.Reader]; a body that comes too slowly ends with [os.ErrDeadlineExceeded].
func (b *unhurried) Read(p []byte) (int, error) {
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
			b.d.turned(telemetry.TurnedSlow, b.at, b.remote, errSlow)
		}
		b.deadline(time.Time{})
	}
	return n, err
}

var errSlow = errors.New("the body of its request came at less than 1 KiB a second")

// Close implements [io.Closer].
func (b *unhurried) Close() error { return b.body.Close() }

func (b *unhurried) stand(to standing) {
	if b.held != nil {
		b.held.stand(to)
	}
}

// finish bounds what the server itself reads of a body that its handler left.
func (b *unhurried) finish() {
	b.stand(idle) // the server says how it stands when it has read
	b.deadline(time.Now().Add(b.d.body))
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
}

type heldKey struct{}

// withHeld lets handlers find the guarded connection of a request.
func withHeld(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, heldKey{}, guardedOf(c))
}

// hurry serves requests whose bodies have to come at some rate.
func (d *door) hurry(at net.Addr, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			h.ServeHTTP(w, r)
			return
		}
		remote, _, _ := net.SplitHostPort(r.RemoteAddr)
		held, _ := r.Context().Value(heldKey{}).(*guardedConn)
		b := &unhurried{held: held, body: r.Body, control: http.NewResponseController(w), d: d, at: at, remote: remote}
		defer b.finish()
		r.Body = b
		h.ServeHTTP(w, r)
	})
}
