package cluster

import (
	"context"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// listen opens the UDP and TCP sockets. One port must be free for both, so a port drawn by
// the kernel for one may need a few tries.
func listen(bind netip.AddrPort, logger *log.Logger) (*memberlist.NetTransport, error) {
	for try := 1; ; try++ {
		t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{bind.Addr().String()}, BindPort: int(bind.Port()), Logger: logger,
		})
		if err == nil || bind.Port() != 0 || try == 10 {
			return t, err
		}
	}
}

// transport is memberlist's own, whose connections end with a context: a host that shuts down does not
// wait for a silent one.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
	// streams are the connections of others that were admitted.
	streams chan net.Conn
}

// Bounds of the connections that others open: an exchange takes milliseconds, and each ends after
// tcpMax.
const (
	streamsMax     = 128
	streamsMaxEach = 16
)

// StreamCh gives the connections that were admitted.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// admit admits connections until ctx ends and memberlist takes no more. Beyond a bound it closes the
// oldest one, of the same address if that has too many: an exchange ends before others come, and a
// silent connection does not.
func (t *transport) admit(ctx context.Context) {
	open := &streams{}
	for {
		var c net.Conn
		select {
		case c = <-t.NetTransport.StreamCh():
		case <-ctx.Done():
			return
		}
		held := open.add(c)
		select {
		case t.streams <- held:
		case <-ctx.Done():
			held.Close()
			return
		}
	}
}

// streams are connections of others, the oldest first.
type streams struct {
	// mu is held to add or remove a connection.
	mu   sync.Mutex
	list []stream
}

type stream struct {
	net.Conn
	from netip.Addr
}

// add notes a connection, and closes another where there are too many.
func (s *streams) add(c net.Conn) net.Conn {
	at, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	from := at.Addr().Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	each, oldest := 0, -1
	for i, o := range s.list {
		if o.from == from {
			if each++; oldest < 0 {
				oldest = i
			}
		}
	}
	if each < streamsMaxEach {
		oldest = 0
	}
	if each >= streamsMaxEach || len(s.list) >= streamsMax {
		s.list[oldest].Close()
		s.list = slices.Delete(s.list, oldest, oldest+1)
	}
	s.list = append(s.list, stream{c, from})
	return &boundConn{c, func() bool { return s.remove(c) }}
}

// remove forgets a connection; false where it was closed for another.
func (s *streams) remove(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.list)
	s.list = slices.DeleteFunc(s.list, func(o stream) bool { return o.Conn == c })
	return len(s.list) < n
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &boundConn{c, context.AfterFunc(t.ctx, func() { c.Close() })}, nil
}

type boundConn struct {
	net.Conn
	forget func() bool
}

func (c *boundConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// bridge turns memberlist's log lines into slog's. A stranger on the gossip port can make it write a
// line for each packet, so lines beyond a rate are counted instead.
type bridge struct {
	log     *slog.Logger
	limit   *rate.Limiter
	dropped int
}

func newBridge(l *slog.Logger) *bridge {
	return &bridge{log: l, limit: rate.NewLimiter(rate.Every(time.Second), 20)}
}

// levels are those of this program. A single lost packet or a stranger can cause what memberlist calls
// an error, and an operator need not act on it at once.
var levels = map[string]slog.Level{
	"[ERR]": slog.LevelWarn, "[WARN]": slog.LevelInfo, "[INFO]": slog.LevelDebug, "[DEBUG]": slog.LevelDebug,
}

// Write takes one line; log.Logger never calls it twice at once.
func (b *bridge) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	tag, text, _ := strings.Cut(line, " ")
	level, known := levels[tag]
	if !known {
		level, text = slog.LevelInfo, line
	}
	if !b.log.Enabled(context.Background(), level) {
		return len(p), nil
	}
	if level > slog.LevelDebug && !b.limit.Allow() {
		b.dropped++
		return len(p), nil
	}
	attrs := []any{"text", strings.TrimPrefix(text, "memberlist: ")}
	if b.dropped > 0 {
		attrs = append(attrs, "dropped", b.dropped)
		b.dropped = 0
	}
	b.log.Log(context.Background(), level, "memberlist speaks", attrs...)
	return len(p), nil
}
