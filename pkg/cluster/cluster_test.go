package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/time/rate"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/test/programs"
)

func TestMain(m *testing.M) {
	// Memberlist's tickers end a moment after it was shut down. A probe that is under way then waits its time
	// out, up to eight intervals where others were lost before, which is longer than goleak has patience.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

// patience bounds each wait for what has to come, on a busy machine too.
const patience = time.Minute

var keyA, keyB = secret.String(strings.Repeat("a", 32)), secret.String(strings.Repeat("b", 32))

// member is a running Cluster.
type member struct {
	*Cluster
	stop context.CancelFunc
	done chan struct{}
	err  error
	net  *network
}

// network stands between a member and the others.
type network struct {
	memberlist.NodeAwareTransport
	mu  sync.Mutex
	cut func(addr string) bool
}

func (n *network) setCut(cut func(string) bool) { n.mu.Lock(); defer n.mu.Unlock(); n.cut = cut }

func (n *network) blocked(addr string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut != nil && n.cut(addr)
}

func (n *network) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if n.blocked(a.Addr) {
		return time.Now(), nil
	}
	return n.NodeAwareTransport.WriteToAddress(b, a)
}

func (n *network) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if n.blocked(a.Addr) {
		return nil, errors.New("cut")
	}
	return n.NodeAwareTransport.DialAddressTimeout(a, timeout)
}

// quick are intervals that a test can wait for.
func quick(n int, edit ...func(*Config)) Config {
	cfg := Config{
		Host: host.NewID(), Bind: "127.0.0.1:0",
		Meta:          Meta{APIAddr: fmt.Sprintf("127.0.0.1:%d", 65000+n), Role: Supernode, Zone: "z", Version: "v0"},
		ProbeInterval: 100 * time.Millisecond, GossipInterval: 10 * time.Millisecond,
		PushPullInterval: 200 * time.Millisecond, RejoinInterval: 100 * time.Millisecond,
	}
	for _, e := range edit {
		e(&cfg)
	}
	return cfg
}

func start(t *testing.T, cfg Config) *member {
	t.Helper()
	c, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	m := &member{Cluster: c, stop: cancel, done: make(chan struct{}), net: &network{}}
	c.wrap = func(inner memberlist.NodeAwareTransport) memberlist.NodeAwareTransport {
		m.net.NodeAwareTransport = inner
		return m.net
	}
	go func() {
		defer close(m.done)
		m.err = c.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-m.done })
	select {
	case <-c.Started():
	case <-m.done:
		require.NoError(t, m.err)
	}
	return m
}

func (m *member) addr() string { return m.address().String() }

func (m *member) address() netip.AddrPort {
	for _, v := range m.View() {
		if v.ID == m.cfg.Host {
			return v.GossipAddr
		}
	}
	panic("a view without its own host")
}

func joining(to ...*member) func(*Config) {
	return func(c *Config) {
		for _, m := range to {
			c.Join = append(c.Join, m.addr())
		}
	}
}

// sees waits until a member's view is exactly those.
func (m *member) sees(t *testing.T, want ...*member) {
	t.Helper()
	ids := map[host.ID]bool{}
	for _, w := range want {
		ids[w.cfg.Host] = true
	}
	deadline := time.After(patience)
	for {
		changed := m.Changed()
		view := m.View()
		same := len(view) == len(ids)
		for _, v := range view {
			same = same && ids[v.ID]
		}
		if same {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%s sees %v, want %v", m.cfg.Host.Short(), view, ids)
		}
	}
}

// Three members find each other through one of them.
func TestJoin(t *testing.T) {
	a := start(t, quick(1))
	b := start(t, quick(2, joining(a)))
	c := start(t, quick(3, joining(a), func(c *Config) { c.Meta.Role = "another"; c.Meta.Zone = "other" }))
	for _, m := range []*member{a, b, c} {
		m.sees(t, a, b, c)
	}
	assert.Equal(t, a.View(), b.View(), "one order and the same words everywhere")
	assert.Equal(t, a.View(), c.View())
	for i, m := range a.View()[1:] {
		assert.Less(t, a.View()[i].ID, m.ID)
	}
	for _, m := range b.View() {
		if m.ID == c.cfg.Host {
			assert.Equal(t, Member{ID: m.ID, GossipAddr: c.address(), Meta: c.cfg.Meta}, m)
		}
	}
}

// A member that leaves is gone at once, one that crashes soon.
func TestLeaveAndCrash(t *testing.T) {
	a := start(t, quick(1))
	b := start(t, quick(2, joining(a)))
	c := start(t, quick(3, joining(a)))
	for _, m := range []*member{a, b, c} {
		m.sees(t, a, b, c)
	}
	c.stop()
	<-c.done
	require.NoError(t, c.err)
	a.sees(t, a, b)
	b.sees(t, a, b)

	// A crash says nothing and answers nothing.
	b.net.setCut(func(string) bool { return true })
	a.net.setCut(func(to string) bool { return to == b.addr() })
	a.sees(t, a)
}

// A partition heals although no member is configured to join one on the other side.
func TestPartitionHeals(t *testing.T) {
	a := start(t, quick(1))
	b := start(t, quick(2, joining(a)))
	c := start(t, quick(3, joining(a)))
	for _, m := range []*member{a, b, c} {
		m.sees(t, a, b, c)
	}
	// The one that all were told to join dies for good; the others are cut from each other.
	a.stop()
	<-a.done
	b.sees(t, b, c)
	c.sees(t, b, c)
	b.net.setCut(func(to string) bool { return to == c.addr() })
	c.net.setCut(func(to string) bool { return to == b.addr() })
	b.sees(t, b)
	c.sees(t, c)
	b.net.setCut(nil)
	c.net.setCut(nil)
	b.sees(t, b, c)
	c.sees(t, b, c)
}

func TestStrangersStayOut(t *testing.T) {
	withKey := func(k ...secret.String) func(*Config) { return func(c *Config) { c.Keys = k } }
	withLabel := func(l string) func(*Config) { return func(c *Config) { c.Label = l } }
	a := start(t, quick(1, withKey(keyA), withLabel("prod")))
	friend := start(t, quick(2, joining(a), withKey(keyA), withLabel("prod")))
	strangers := []*member{
		start(t, quick(3, joining(a, friend), withKey(keyB), withLabel("prod"))),
		start(t, quick(4, joining(a, friend), withLabel("prod"))),
		start(t, quick(5, joining(a, friend), withKey(keyA), withLabel("test"))),
		start(t, quick(6, joining(a, friend), withKey(keyA))),
	}
	a.sees(t, a, friend)
	friend.sees(t, a, friend)
	// Long enough for every stranger to have tried several times.
	changed := a.Changed()
	select {
	case <-changed:
		t.Fatalf("a stranger joined: %v", a.View())
	case <-time.After(500 * time.Millisecond):
	}
	for _, s := range strangers {
		s.sees(t, s)
	}
	a.sees(t, a, friend)
}

// Silent connections do not affect members.
func TestSilentStreams(t *testing.T) {
	a := start(t, quick(1))
	for range 200 {
		c, err := net.Dial("tcp", a.addr())
		require.NoError(t, err)
		defer c.Close()
	}
	b := start(t, quick(2, joining(a)))
	b.sees(t, a, b)
	a.sees(t, a, b)
}

// Connections are few, and a new one closes the oldest.
func TestStreamsMax(t *testing.T) {
	s := &streams{}
	var all []net.Conn
	for range 2 * streamsMaxEach {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		all = append(all, s.add(here))
	}
	assert.Len(t, s.list, streamsMaxEach)
	_, err := all[0].Write([]byte("x"))
	assert.Error(t, err, "the oldest was closed")
	for _, c := range all {
		require.NoError(t, c.Close())
	}
	assert.Empty(t, s.list)
}

// A key changes without an interruption.
func TestKeyChange(t *testing.T) {
	keys := func(k ...secret.String) func(*Config) { return func(c *Config) { c.Keys = k } }
	old := start(t, quick(1, keys(keyA, keyB)))
	middle := start(t, quick(2, joining(old), keys(keyB, keyA)))
	after := start(t, quick(3, joining(middle), keys(keyB)))
	middle.sees(t, old, middle, after)
	after.sees(t, old, middle, after)
}

// The keys change while members gossip, one member after the other.
func TestSetKeys(t *testing.T) {
	keys := func(k ...secret.String) func(*Config) { return func(c *Config) { c.Keys = k } }
	a := start(t, quick(1, keys(keyA)))
	b := start(t, quick(2, joining(a), keys(keyA)))
	members := []*member{a, b}
	a.sees(t, a, b)
	for step, list := range [][]secret.String{{keyA, keyB}, {keyB, keyA}, {keyB}} {
		for _, m := range members {
			require.NoError(t, m.SetKeys(list))
			// Each change arrives: a host that joins is seen by all.
			joins := start(t, quick(10+step, joining(a), keys(list...)))
			a.sees(t, a, b, joins)
			b.sees(t, a, b, joins)
			joins.stop()
			<-joins.done
			a.sees(t, a, b)
			b.sees(t, a, b)
		}
	}
	old := start(t, quick(20, joining(a), keys(keyA)))
	require.Eventually(t, func() bool { return len(old.Silent()) > 0 }, patience, 10*time.Millisecond,
		"the member with the removed key only is refused")
	old.sees(t, old)
	a.sees(t, a, b)
}

func TestOrderOfKeys(t *testing.T) {
	keyC, keyD := secret.String(strings.Repeat("c", 32)), secret.String(strings.Repeat("d", 32))
	c, err := New(quick(1, func(c *Config) { c.Keys = []secret.String{keyA} }))
	require.NoError(t, err)
	for _, list := range [][]secret.String{{keyA, keyB, keyC}, {keyC, keyA}, {keyD, keyC}, {keyB, keyD}, {keyA},
		{keyB}} {
		require.NoError(t, c.SetKeys(list))
		var got []secret.String
		for _, k := range c.keys.GetKeys() {
			got = append(got, secret.String(k))
		}
		assert.ElementsMatch(t, list, got)
		assert.Equal(t, list[0], got[0], "the first one encrypts")
	}
	require.ErrorContains(t, c.SetKeys([]secret.String{"brief"}), "5 bytes, want 32")
	require.ErrorContains(t, c.SetKeys(nil), "restart")
	plain, err := New(quick(2))
	require.NoError(t, err)
	require.NoError(t, plain.SetKeys(nil))
	require.ErrorContains(t, plain.SetKeys([]secret.String{keyA}), "restart")
}

// A member that restarts comes back under its name.
func TestRestart(t *testing.T) {
	a := start(t, quick(1))
	cfg := quick(2, joining(a))
	b := start(t, cfg)
	a.sees(t, a, b)
	b.sees(t, a, b)
	b.stop()
	<-b.done
	a.sees(t, a)
	cfg.Meta.Version = "v1"
	again := start(t, cfg)
	a.sees(t, a, again)
	require.Eventually(t, func() bool {
		for _, m := range a.View() {
			if m.ID == cfg.Host {
				return m.Version == "v1" && m.GossipAddr == again.address()
			}
		}
		return false
	}, patience, 10*time.Millisecond)
}

// A member that is killed and started again elsewhere, with its data, is a member again before the others take it for
// dead, and nothing is left of its former address.
func TestRestartAtAnotherAddress(t *testing.T) {
	var out lines
	log := func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) }
	a := start(t, quick(1, log))
	cfg := quick(2, joining(a))
	b := start(t, cfg)
	c := start(t, quick(3, joining(a), log))
	for _, m := range []*member{a, b, c} {
		m.sees(t, a, b, c)
	}
	b.net.setCut(func(string) bool { return true }) // no good-bye
	b.stop()
	<-b.done
	cfg.Meta.APIAddr = "127.0.0.2:65000"
	cfg.Join = append(cfg.Join, c.addr())
	again := start(t, cfg)
	for _, m := range []*member{a, c} {
		require.Eventually(t, func() bool {
			return slices.ContainsFunc(m.View(), func(v Member) bool {
				return v.ID == cfg.Host && v.GossipAddr == again.address() && v.APIAddr == cfg.Meta.APIAddr
			})
		}, patience, 10*time.Millisecond)
		assert.Len(t, m.View(), 3)
		require.Eventually(t, func() bool { return len(m.Silent()) == 0 }, patience, 10*time.Millisecond)
	}
	again.sees(t, a, again, c)
	assert.Zero(t, out.count("two hosts have one ID"))
}

// judged is a Cluster that heard of a host at two addresses, of which some answer.
func judged(t *testing.T, c *Cluster, id host.ID, answering ...string) {
	t.Helper()
	c.ping = func(of host.ID, at netip.AddrPort) bool {
		assert.Equal(t, id, of)
		return slices.Contains(answering, at.String())
	}
	delegate{c}.NotifyConflict(node(t, id, "10.0.0.1"), node(t, id, "10.0.0.2"))
	c.judges.Wait()
}

func node(t *testing.T, id host.ID, ip string) *memberlist.Node {
	t.Helper()
	meta, err := encodeMeta(Meta{APIAddr: ip + ":65000", Role: Supernode})
	require.NoError(t, err)
	return &memberlist.Node{Name: string(id), Addr: net.ParseIP(ip), Port: 7, Meta: meta}
}

// Of two addresses of one host, the one that answers counts.
func TestOneOfTwoAddresses(t *testing.T) {
	const was, is = "10.0.0.1:7", "10.0.0.2:7"
	id := host.NewID()
	build := func() (*Cluster, *lines, func() string) {
		out := new(lines)
		c, err := New(quick(1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(out, nil)) }))
		require.NoError(t, err)
		delegate{c}.NotifyJoin(node(t, id, "10.0.0.1"))
		return c, out, func() string {
			for _, m := range c.View() {
				if m.ID == id {
					return m.GossipAddr.String()
				}
			}
			return ""
		}
	}
	t.Run("the host has moved", func(t *testing.T) {
		c, out, at := build()
		judged(t, c, id, is)
		assert.Equal(t, is, at())
		delegate{c}.NotifyLeave(node(t, id, "10.0.0.1"))
		assert.Equal(t, is, at(), "the end of its former life is not its own")
		assert.Empty(t, c.Silent())
		delegate{c}.NotifyJoin(node(t, id, "10.0.0.2"))
		assert.Empty(t, c.moved)
		delegate{c}.NotifyLeave(node(t, id, "10.0.0.2"))
		assert.Empty(t, at())
		assert.Len(t, c.Silent(), 1)
		delegate{c}.NotifyJoin(node(t, id, "10.0.0.3"))
		assert.Empty(t, c.Silent(), "its former address leaves the status")
		assert.Empty(t, c.former)
		assert.Zero(t, out.count("two hosts have one ID"))
	})
	t.Run("memberlist does not follow", func(t *testing.T) {
		c, _, at := build()
		judged(t, c, id, is)
		c.dropMoved(time.Now(), nil)
		assert.Equal(t, is, at())
		c.dropMoved(time.Now().Add(moveFor), []*memberlist.Node{node(t, id, "10.0.0.1")})
		assert.Equal(t, was, at())
		judged(t, c, id, is)
		c.dropMoved(time.Now().Add(moveFor), nil)
		assert.Empty(t, at())
	})
	t.Run("its first address was silent for a moment", func(t *testing.T) {
		c, out, at := build()
		judged(t, c, id, is)
		judged(t, c, id, was, is)
		assert.Equal(t, was, at())
		assert.Equal(t, 1, out.count("two hosts have one ID"))
	})
	t.Run("the news is old, or the host is gone", func(t *testing.T) {
		c, out, at := build()
		judged(t, c, id, was)
		assert.Equal(t, was, at())
		judged(t, c, id)
		assert.Equal(t, was, at())
		assert.Zero(t, out.count("two hosts have one ID"))
	})
}

// Two hosts with one ID get one log line.
func TestIDConflict(t *testing.T) {
	var out lines
	a := start(t, quick(1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) }))
	cfg := quick(2, joining(a))
	b := start(t, cfg)
	a.sees(t, a, b)
	twin := start(t, cfg)
	require.Eventually(t, func() bool { return out.count("two hosts have one ID") > 0 }, patience, 10*time.Millisecond)
	twin.stop()
	<-twin.done
	assert.Equal(t, 1, out.count("two hosts have one ID"))
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// A holder of the key cannot invent so many members that hosts refuse the list of owners.
func TestInventedMembersAreFew(t *testing.T) {
	var out lines
	c, err := New(quick(1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) }))
	require.NoError(t, err)
	d := delegate{c}
	join := func(n *memberlist.Node) error { // as memberlist does
		err := d.NotifyAlive(n)
		if err == nil {
			d.NotifyJoin(n)
		}
		return err
	}
	real := node(t, host.NewID(), "10.0.0.1")
	require.NoError(t, join(node(t, c.cfg.Host, "10.0.0.2")))
	require.NoError(t, join(real))
	for i := range 3 * membersMax {
		invented := node(t, host.NewID(), "10.0.0.3")
		if i%2 == 0 {
			invented.Name, invented.Meta = fmt.Sprintf("no ID %d", i), []byte("no metadata")
		}
		_ = join(invented)
	}
	assert.LessOrEqual(t, len(c.View()), membersMax)
	assert.Len(t, c.alive, membersMax)
	assert.Equal(t, 1, out.count("too many members gossip"))
	require.NoError(t, join(real), "a known member stays")
	newcomer := node(t, host.NewID(), "10.0.0.4")
	require.ErrorIs(t, join(newcomer), errCrowd)
	d.NotifyLeave(real)
	require.NoError(t, join(newcomer), "a member has gone")
}

// A member with metadata of a later version stays out of the view.
func TestLaterMeta(t *testing.T) {
	a := start(t, quick(1))
	c, err := New(quick(2, joining(a)))
	require.NoError(t, err)
	c.meta = []byte(`{"v":99}`)
	c.cfg.Logger = nil
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	defer func() { cancel(); <-done }()
	require.Eventually(t, func() bool { return len(c.View()) == 2 }, patience, 5*time.Millisecond, "it sees the other")
	a.sees(t, a)
}

// A host alone sees itself from the beginning.
func TestAlone(t *testing.T) {
	c, err := New(quick(1))
	require.NoError(t, err)
	require.Len(t, c.View(), 1)
	assert.Equal(t, c.cfg.Host, c.View()[0].ID)
}

// The error names a port that is in use.
func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := New(quick(1, func(c *Config) { c.Bind = l.Addr().String() }))
	require.NoError(t, err)
	err = c.Run(t.Context())
	require.ErrorContains(t, err, l.Addr().String())
	require.ErrorContains(t, err, "in use")
	require.ErrorContains(t, c.Run(t.Context()), "started before")
}

// A configuration that cannot work is refused.
func TestBadConfig(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"host ID":                    func(c *Config) { c.Host = "x" },
		"want IP:port":               func(c *Config) { c.Bind = "node-1:7946" },
		"advertise address: \"me\"":  func(c *Config) { c.Advertise = "me" },
		"no address that others can": func(c *Config) { c.Bind = ":7946" },
		"want host:port":             func(c *Config) { c.Join = []string{"supernode"} },
		"has 5 bytes, want 32":       func(c *Config) { c.Keys = []secret.String{keyA, "brief"} },
		"129 bytes":                  func(c *Config) { c.Label = strings.Repeat("x", 129) },
		"shorten the zone":           func(c *Config) { c.Meta.Zone = strings.Repeat("z", 600) },
		"API address":                func(c *Config) { c.Meta.APIAddr = "supernode" },
	} {
		_, err := New(quick(1, edit))
		require.ErrorContains(t, err, want)
		assert.NotContains(t, err.Error(), "brief", "a key is not printed")
	}
}

// Of a name with many addresses, three are tried at a time.
func TestResolveMany(t *testing.T) {
	var many []netip.Addr
	for i := range 50 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	cfg := quick(1, func(c *Config) {
		c.Join = []string{"supernode.test:7946", "gone.test:7946", "[fd00::1]:http"}
		c.Resolve = func(_ context.Context, name string) ([]netip.Addr, error) {
			if name == "supernode.test" {
				return many, nil
			}
			return nil, errors.New("no such host")
		}
	})
	c, err := New(cfg)
	require.NoError(t, err)
	named, failed := c.resolve(t.Context())
	require.Len(t, named, 51)
	require.Len(t, failed, 1)
	assert.ErrorContains(t, failed["gone.test:7946"], "the name has no address: no such host")
	assert.Contains(t, named, netip.MustParseAddrPort("[fd00::1]:80"))
	now := time.Now()
	alive := netip.MustParseAddrPort("10.0.0.7:7946")
	c.members["x"] = Member{GossipAddr: alive}
	for i := range 5 {
		c.former[netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), 1)] = now
	}
	tried := map[netip.AddrPort]bool{}
	for range 200 {
		got := c.targets(named, now)
		require.Len(t, got, joinsMax+formersMax)
		for _, a := range got {
			tried[a] = true
		}
	}
	assert.Len(t, tried, 50+5, "all in the end, but for the one that is alive")
	assert.NotContains(t, tried, alive)
	assert.Len(t, c.targets(named, now.Add(2*formerFor)), joinsMax, "a member that is gone for long is forgotten")
}

// TestWhoDoesNotAnswerIsTold has a member that is alone at first, then finds another, which
// crashes.
func TestSilent(t *testing.T) {
	addrs, err := programs.FreeAddrs(1)
	require.NoError(t, err)
	later := addrs[0]
	var log lockedBuffer
	m := start(t, quick(1, func(c *Config) {
		c.Join = []string{later, "gone.test:7946"}
		c.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	}))
	silent := func(want map[string]string) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			got := m.Silent()
			assert.Len(c, got, len(want))
			for _, s := range got {
				assert.ErrorContains(c, s.Err, want[s.Addr], s.Addr)
				assert.NotContains(c, s.Err.Error(), "failed to join")
			}
		}, patience, 10*time.Millisecond)
	}
	gone := "the name has no address: no such host"
	silent(map[string]string{later: "connection refused", "gone.test:7946": gone})
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "goes on alone") }, patience,
		10*time.Millisecond)

	other := start(t, quick(2, func(c *Config) { c.Bind = later }))
	m.sees(t, m, other)
	silent(map[string]string{"gone.test:7946": gone})
	assert.Equal(t, 1, strings.Count(log.String(), "goes on alone"), "once is enough")

	other.net.setCut(func(string) bool { return true }) // no good-bye
	other.stop()
	<-other.done
	m.sees(t, m)
	assert.Len(t, m.Silent(), 2, "from the moment on that it is missing")
	silent(map[string]string{later: "connection refused", "gone.test:7946": gone})
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The number of remembered former members is bounded.
func TestFormerMax(t *testing.T) {
	c, err := New(quick(1))
	require.NoError(t, err)
	now := time.Now()
	for i := range 10 * formerMax {
		c.remember(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1),
			now.Add(time.Duration(i)*time.Second))
	}
	assert.Len(t, c.former, formerMax)
	c.remember(netip.MustParseAddrPort("10.1.1.1:1"), now.Add(10*formerFor))
	assert.Len(t, c.former, 1)
}

// Log lines of memberlist become lines of this program.
func TestLogBridge(t *testing.T) {
	var out bytes.Buffer
	b := newBridge(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for line, want := range map[string]string{
		"[ERR] memberlist: Push/Pull with x " +
			"failed: y\n": `level=WARN msg="memberlist speaks" text="Push/Pull with x failed: y"`,
		"[WARN] memberlist: Refuting\n":  `level=INFO msg="memberlist speaks" text=Refuting`,
		"[INFO] memberlist: Suspect x\n": `level=DEBUG msg="memberlist speaks" text="Suspect x"`,
		"what\n":                         `level=INFO msg="memberlist speaks" text=what`,
	} {
		out.Reset()
		fmt.Fprint(b, line)
		assert.Contains(t, out.String(), want)
	}
	out.Reset()
	for range 1000 {
		fmt.Fprint(b, "[ERR] memberlist: Decrypt packet failed\n")
	}
	assert.Less(t, strings.Count(out.String(), "\n"), 30, "a stranger that floods the port does not flood the log")
	b.limit.SetLimit(rate.Inf)
	fmt.Fprint(b, "[ERR] memberlist: Decrypt packet failed\n")
	assert.Contains(t, out.String(), "dropped=9")
}

func FuzzDecodeMeta(f *testing.F) {
	good, err := encodeMeta(Meta{APIAddr: "10.0.0.1:65000", Role: Supernode, Zone: "a", Version: "v1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"v":1,"a":"h:1","later":{"x":[1]}}`))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			if !errors.Is(err, ErrMeta) {
				t.Fatalf("%v is no ErrMeta", err)
			}
			return
		}
		if len(b) > memberlist.MetaMaxSize {
			t.Fatalf("took %d bytes", len(b))
		}
		if _, port, err := net.SplitHostPort(m.APIAddr); err != nil || port == "" {
			t.Fatalf("took the address %q", m.APIAddr)
		}
	})
}
