// Package simnet is an in-memory network for real engines in virtual time. It has hosts with uplinks and downlinks,
// latency, zones with links of their own, and hosts that die, hang, freeze, slow down or corrupt the bytes that they
// send.
//
// It must run inside a testing/synctest bubble: hundreds of engines then exchange pieces in seconds, a run shows how
// close they came to the bound of the links, and the load of the machine changes no result. It counts all bytes that
// cross a link. Connections are channels and sleeps, never sockets, because virtual time stands still while a goroutine
// waits for a socket. Start at [New] and [Network.Host].
package simnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config holds the settings of a network.
type Config struct {
	// Latency is the one-way latency between any two hosts. Default 250 µs, as in a data centre.
	Latency time.Duration
	// Chunk is how many bytes leave a link at once: flows share a link chunk by chunk. Smaller chunks are fairer and
	// slower to simulate. Default 64 KiB.
	Chunk int
	// Window bounds the bytes in flight in one direction of a connection, like TCP's buffers. Default 4 chunks.
	Window int
}

// Network is a set of hosts that can connect to each other.
type Network struct {
	cfg   Config
	mu    sync.Mutex
	hosts map[string]*Host
	zones map[string]*zone
}

// New returns an empty network.
func New(cfg Config) *Network {
	if cfg.Latency == 0 {
		cfg.Latency = 250 * time.Microsecond
	}
	if cfg.Chunk == 0 {
		cfg.Chunk = 64 << 10
	}
	if cfg.Window == 0 {
		cfg.Window = 4 * cfg.Chunk
	}
	return &Network{cfg: cfg, hosts: make(map[string]*Host), zones: make(map[string]*zone)}
}

// link sends one chunk after the other.
type link struct {
	mu    sync.Mutex
	rate  float64 // bytes per second, 0 for no limit
	free  time.Time
	bytes atomic.Int64
}

// pass reserves the link for n bytes that are ready at a given time, and returns when the last of them has left.
func (l *link) pass(n int, there time.Time) time.Time {
	l.bytes.Add(int64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return there
	}
	l.free = later(l.free, there).Add(time.Duration(float64(n) / l.rate * 1e9))
	return l.free
}

type zone struct{ up, down link }

// Zone sets the rates of the links between a zone and all others, in bytes per second each way; 0 is no limit.
func (n *Network) Zone(name string, up, down float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	z := n.zone(name)
	z.up.rate, z.down.rate = up, down
}

func (n *Network) zone(name string) *zone {
	z := n.zones[name]
	if z == nil {
		z = new(zone)
		n.zones[name] = z
	}
	return z
}

// ZoneBytes returns the bytes that a zone received from the others.
func (n *Network) ZoneBytes(name string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.zone(name).down.bytes.Load()
}

// Host is one machine.
type Host struct {
	net      *Network
	name     string
	zone     string
	up, down link
	dead     chan struct{}
	die      sync.Once
	hung     atomic.Bool
	corrupt  atomic.Bool
	mu       sync.Mutex
	// listeners are the listeners by port.
	listeners map[string]*listener
	// frozenAt and frozenTo are the beginning and the end of the last stop of the machine.
	frozenAt, frozenTo time.Time
}

// Host adds a machine with its links in bytes per second; 0 is no limit.
func (n *Network) Host(name, zone string, up, down float64) *Host {
	h := &Host{net: n, name: name, zone: zone, dead: make(chan struct{}), listeners: make(map[string]*listener)}
	h.up.rate, h.down.rate = up, down
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name] = h
	return h
}

// port is the port of the piece wire.
const port = "65002"

// Addr returns the address of the host's piece wire.
func (h *Host) Addr() string { return net.JoinHostPort(h.name, port) }

// Sent returns the bytes that left through the host's uplink.
func (h *Host) Sent() int64 { return h.up.bytes.Load() }

// Received returns the bytes that arrived through the host's downlink.
func (h *Host) Received() int64 { return h.down.bytes.Load() }

// Kill ends the machine: its connections break, and new ones to it fail.
func (h *Host) Kill() { h.die.Do(func() { close(h.dead) }) }

// Hang makes the machine silent: its connections stay open without any traffic.
func (h *Host) Hang() { h.hung.Store(true) }

// Freeze stops the machine for d, as a process that is stopped or gets no CPU time: it sends and receives nothing, and
// then everything at once. Its timers still fire, because one clock serves all machines: a program has to find out
// itself that it was stopped, as package lag does.
func (h *Host) Freeze(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if !now.Before(h.frozenTo) {
		h.frozenAt = now
	}
	h.frozenTo = later(h.frozenTo, now.Add(d))
}

// Frozen returns for how long the machine has been stopped; 0 if it runs.
func (h *Host) Frozen() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Before(h.frozenTo) {
		return now.Sub(h.frozenAt) + 1
	}
	return 0
}

// Awake waits until the machine runs.
func (h *Host) Awake() {
	for {
		h.mu.Lock()
		rest := time.Until(h.frozenTo)
		h.mu.Unlock()
		if rest <= 0 {
			return
		}
		time.Sleep(rest)
	}
}

// Wait sleeps for d, and then until the machine runs.
func (h *Host) Wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		h.Awake()
	case <-ctx.Done():
	}
}

// Corrupt simulates a faulty disk: the machine flips a bit in each long message that it sends.
func (h *Host) Corrupt() { h.corrupt.Store(true) }

// SetRate changes the links' rates, in bytes per second.
func (h *Host) SetRate(up, down float64) {
	for l, rate := range map[*link]float64{&h.up: up, &h.down: down} {
		l.mu.Lock()
		l.rate = rate
		l.mu.Unlock()
	}
}

func (h *Host) isDead() bool {
	select {
	case <-h.dead:
		return true
	default:
		return false
	}
}

type listener struct {
	host *Host
	port string
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

// Listen accepts the connections of other hosts to the piece wire.
func (h *Host) Listen() net.Listener { return h.ListenAt(port) }

// ListenAt accepts the connections of other hosts to a port.
func (h *Host) ListenAt(port string) net.Listener {
	l := &listener{host: h, port: port, in: make(chan net.Conn), done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listeners[port] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		l.host.Awake()
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-l.host.dead:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return address(net.JoinHostPort(l.host.name, l.port)) }

type address string

func (a address) Network() string { return "simnet" }
func (a address) String() string  { return string(a) }

var errRefused = errors.New("connection refused")

// Dial connects to another host; it takes a round trip.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	name, port, _ := net.SplitHostPort(addr)
	h.net.mu.Lock()
	other := h.net.hosts[name]
	h.net.mu.Unlock()
	h.Awake()
	if err := h.RoundTrip(ctx); err != nil {
		return nil, err
	}
	h.Awake()
	if other == nil || other.isDead() || h.isDead() {
		return nil, fmt.Errorf("dial %s: %w", addr, errRefused)
	}
	other.mu.Lock()
	l := other.listeners[port]
	other.mu.Unlock()
	if l == nil || other.hung.Load() {
		<-ctx.Done()
		return nil, fmt.Errorf("dial %s: %w", addr, context.Cause(ctx))
	}
	out, in := newHalf(h, other), newHalf(other, h)
	here, there := &conn{r: in, w: out, local: h, remote: other}, &conn{r: out, w: in, local: other, remote: h}
	select {
	case l.in <- there:
		return here, nil
	case <-l.done:
	case <-other.dead:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	here.Close()
	return nil, fmt.Errorf("dial %s: %w", addr, errRefused)
}

// RoundTrip waits for the time of a request and its response.
func (h *Host) RoundTrip(ctx context.Context) error {
	select {
	case <-time.After(2 * h.net.cfg.Latency):
		return nil
	case <-h.dead:
		return errRefused
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// half is one direction of a connection.
type half struct {
	from, to *Host
	chunks   chan chunk    // sent and not yet received
	done     chan struct{} // closed by either side
	once     sync.Once
	// eof is closed when the writer closes: bytes in flight still arrive.
	eof     chan struct{}
	eofOnce sync.Once
	rest    []byte
}

type chunk struct {
	data    []byte
	arrives time.Time
}

func newHalf(from, to *Host) *half {
	cfg := from.net.cfg
	return &half{from: from, to: to, chunks: make(chan chunk, max(1, cfg.Window/cfg.Chunk)), done: make(chan struct{}),
		eof: make(chan struct{})}
}

type conn struct {
	r, w          *half
	local, remote *Host
	readBy        deadline
	writeBy       deadline
}

// deadline is when an operation times out; a change wakes the waiting operations.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// wait returns a channel that fires at the deadline (nil without one), and one that fires when the deadline changes.
func (d *deadline) wait() (expired <-chan time.Time, changed <-chan struct{}, stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	if d.at.IsZero() {
		return nil, d.changed, func() {}
	}
	t := time.NewTimer(time.Until(d.at))
	return t.C, d.changed, func() { t.Stop() }
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

var errReset = errors.New("connection reset by peer")

func (c *conn) Write(p []byte) (sum int, err error) {
	h := c.w
	size := c.local.net.cfg.Chunk
	for len(p) > 0 {
		if c.writeBy.passed() {
			return sum, os.ErrDeadlineExceeded
		}
		n := min(len(p), size)
		data := append([]byte(nil), p[:n]...)
		if c.local.corrupt.Load() && n > 512 {
			data[n/2] ^= 1
		}
		if err := c.transmit(h, data); err != nil {
			return sum, err
		}
		sum += n
		p = p[n:]
	}
	return sum, nil
}

// transmit sends one chunk through the sender's links.
func (c *conn) transmit(h *half, data []byte) error {
	c.local.Awake()
	if c.local.hung.Load() || c.remote.hung.Load() {
		return c.hang(&c.writeBy)
	}
	now := time.Now()
	at := c.local.up.pass(len(data), now)
	if c.local.zone != c.remote.zone {
		n := c.local.net
		n.mu.Lock()
		up, down := &n.zone(c.local.zone).up, &n.zone(c.remote.zone).down
		n.mu.Unlock()
		at = later(later(at, up.pass(len(data), now)), down.pass(len(data), now))
	}
	time.Sleep(at.Sub(now))
	item := chunk{data, at.Add(c.local.net.cfg.Latency)}
	// The usual case needs no timer and no channels for the deadline.
	if !c.over() {
		select {
		case h.chunks <- item:
			return nil
		default:
		}
	}
	for {
		expired, changed, stop := c.writeBy.wait()
		select {
		case h.chunks <- item:
			stop()
			return nil
		case <-h.done:
			stop()
			return errReset
		case <-h.eof:
			stop()
			return net.ErrClosed
		case <-c.local.dead:
			stop()
			return errReset
		case <-c.remote.dead:
			stop()
			return errReset
		case <-expired:
			return os.ErrDeadlineExceeded
		case <-changed:
			stop()
			if c.writeBy.passed() {
				return os.ErrDeadlineExceeded
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// over reports whether writes fail.
func (c *conn) over() bool {
	select {
	case <-c.w.done:
	case <-c.w.eof:
	case <-c.local.dead:
	case <-c.remote.dead:
	default:
		return false
	}
	return true
}

// hang waits until the connection is closed or its deadline passes.
func (c *conn) hang(d *deadline) error {
	for {
		expired, changed, stop := d.wait()
		select {
		case <-c.r.done:
			stop()
			return errReset
		case <-c.w.eof:
			stop()
			return net.ErrClosed
		case <-c.local.dead:
			stop()
			return errReset
		case <-expired:
			return os.ErrDeadlineExceeded
		case <-changed:
			stop()
			if d.passed() {
				return os.ErrDeadlineExceeded
			}
		}
	}
}

func (c *conn) Read(p []byte) (int, error) {
	h := c.r
	for len(h.rest) == 0 {
		if c.readBy.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		if c.local.hung.Load() || c.remote.hung.Load() {
			return 0, c.hang(&c.readBy)
		}
		item, err := c.receive(h)
		if err != nil {
			return 0, err
		}
		// The downlink is reserved when the chunk is there, and not before: a chunk of another connection that this
		// connection's goroutine has not seen yet may arrive earlier.
		time.Sleep(time.Until(item.arrives))
		now := time.Now()
		time.Sleep(c.local.down.pass(len(item.data), now).Sub(now))
		c.local.Awake()
		h.rest = item.data
	}
	n := copy(p, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

func (c *conn) receive(h *half) (chunk, error) {
	for {
		select {
		case item := <-h.chunks:
			return item, nil
		default:
		}
		expired, changed, stop := c.readBy.wait()
		select {
		case item := <-h.chunks:
			stop()
			return item, nil
		case <-h.eof:
			stop()
			select {
			case item := <-h.chunks:
				return item, nil
			default:
				return chunk{}, io.EOF
			}
		case <-h.done:
			stop()
			return chunk{}, net.ErrClosed
		case <-c.local.dead:
			stop()
			return chunk{}, errReset
		case <-c.remote.dead:
			stop()
			return chunk{}, errReset
		case <-expired:
			return chunk{}, os.ErrDeadlineExceeded
		case <-changed:
			stop()
			if c.readBy.passed() {
				return chunk{}, os.ErrDeadlineExceeded
			}
		}
	}
}

// Close ends both directions: written bytes still arrive, and later writes to this side fail.
func (c *conn) Close() error {
	c.w.eofOnce.Do(func() { close(c.w.eof) })
	c.r.once.Do(func() { close(c.r.done) })
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return address(c.local.Addr()) }
func (c *conn) RemoteAddr() net.Addr { return address(c.remote.Addr()) }

func (c *conn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}
func (c *conn) SetReadDeadline(t time.Time) error  { c.readBy.set(t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.writeBy.set(t); return nil }
