package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/darter-io/darter/pkg/host"
)

// Bounds of what is remembered of members that are gone.
const (
	formerMax = 64
	formerFor = time.Hour
)

// errGone is why a member is silent until the next attempt to join it.
var errGone = errors.New("it was a member, and has left or died")

// membersMax bounds the live members: a host takes no more owners from one answer (package announce). A holder of the
// gossip's key can invent members, and with too many of them no host would take an answer of any owner.
const membersMax = 64

// delegate receives memberlist's events. Memberlist holds its own lock meanwhile, so nothing here may
// block or call it.
type delegate struct{ c *Cluster }

func (d delegate) NodeMeta(int) []byte             { return d.c.meta }
func (d delegate) NotifyMsg([]byte)                {}
func (d delegate) GetBroadcasts(_, _ int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

// NotifyAlive refuses a new member beyond membersMax. Members that are known stay.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.alive[n.Name] || n.Name == string(c.cfg.Host) || len(c.alive) < membersMax {
		return nil
	}
	c.crowd.Do(func() {
		c.log.Error("too many members gossip, so this host refuses new ones; if there are fewer supernodes, a holder of "+
			"the cluster secret invents them: change it", "members", len(c.alive), "refused", fmt.Sprintf("%.80q", n.Name),
			"address", n.Address())
	})
	return errCrowd
}

var errCrowd = fmt.Errorf("%d members are known already, and that is the bound", membersMax)

func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.c.mu.Lock()
	d.c.alive[n.Name] = true
	d.c.mu.Unlock()
	d.c.put(n, "member joined")
}

func (d delegate) NotifyUpdate(n *memberlist.Node) { d.c.put(n, "member changed") }

func (d delegate) NotifyLeave(n *memberlist.Node) {
	c := d.c
	id := host.ID(n.Name)
	if id == c.cfg.Host {
		return // this host, which is leaving
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.alive, n.Name)
	m, known := c.members[id]
	if !known || m.GossipAddr != addrOf(n) { // it moved, and this is the end of its former life
		return
	}
	delete(c.members, id)
	c.remember(m.GossipAddr, time.Now())
	c.formers[m.GossipAddr] = id
	c.silent[m.GossipAddr.String()] = errGone
	c.publish()
	c.log.Info("member gone", "host", id, "api", m.APIAddr, "members", len(c.members))
}

// NotifyConflict receives that a host came back with another address, or that two hosts have one ID.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	c := d.c
	id, err := host.ParseID(existing.Name)
	if err != nil {
		return
	}
	was, is := *existing, *other
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ping == nil || c.judging[id] {
		return
	}
	c.judging[id] = true
	ping := c.ping
	c.judges.Go(func() {
		c.judge(id, &was, &is, ping)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.judging, id)
	})
}

// judgeTries is how often judge asks at each address.
const judgeTries = 2

// judge finds out at which of two addresses a host is. Memberlist keeps the first one until probes have failed for
// seconds, and a host that was killed and started again elsewhere would be no member for as long.
func (c *Cluster) judge(id host.ID, was, is *memberlist.Node, ping func(host.ID, netip.AddrPort) bool) {
	answers := func(n *memberlist.Node) (ok bool) {
		for range judgeTries {
			ok = ok || ping(id, addrOf(n))
		}
		return ok
	}
	var old bool
	var asking sync.WaitGroup
	asking.Go(func() { old = id == c.cfg.Host || answers(was) })
	next := answers(is)
	asking.Wait()
	switch {
	case old && next:
		c.conflict.Do(func() {
			c.log.Error("two hosts have one ID: was a data directory copied? Give one of them an empty one",
				"host", id, "address", addrOf(was), "other", addrOf(is))
		})
	case !old && next:
		c.move(id, is)
		return
	}
	c.mu.Lock()
	moved := !c.moved[id].IsZero()
	c.mu.Unlock()
	if moved && old { // its first address was silent for a moment
		c.put(was, "member is at its first address")
	}
}

// move records that a host is at another address than memberlist has. Memberlist follows once it takes the former one
// for dead; if it does not within moveFor, the host is no member any more.
func (c *Cluster) move(id host.ID, to *memberlist.Node) {
	meta, err := decodeMeta(to.Meta)
	if err != nil {
		return // put says so as soon as memberlist follows
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved[id] = time.Now()
	c.see(Member{ID: id, GossipAddr: addrOf(to), Meta: meta}, "member is back at another address")
}

// dropMoved ends what move recorded long ago and memberlist did not follow: its list of live nodes holds again.
func (c *Cluster) dropMoved(now time.Time, live []*memberlist.Node) {
	c.mu.Lock()
	var back []*memberlist.Node
	for id, since := range c.moved {
		if now.Sub(since) < moveFor {
			continue
		}
		delete(c.moved, id)
		i := slices.IndexFunc(live, func(n *memberlist.Node) bool { return n.Name == string(id) })
		if i >= 0 {
			back = append(back, live[i])
			continue
		}
		delete(c.members, id)
		c.publish()
		c.log.Info("member gone", "host", id, "members", len(c.members))
	}
	c.mu.Unlock()
	for _, n := range back {
		c.put(n, "member is at its first address")
	}
}

// put records a member that is new or has changed its metadata.
func (c *Cluster) put(n *memberlist.Node, what string) {
	id, err := host.ParseID(n.Name)
	if id == c.cfg.Host {
		return
	}
	var meta Meta
	if err == nil {
		meta, err = decodeMeta(n.Meta)
	}
	if err != nil {
		// It gossips, but no host could use it: a later version, or another program.
		c.log.Warn("gossip from a member that cannot be used", "address", n.Address(), "error", err)
		return
	}
	m := Member{ID: id, GossipAddr: addrOf(n), Meta: meta}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.moved, id)
	c.see(m, what)
}

// addrOf is where a node gossips.
func addrOf(n *memberlist.Node) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(ip.Unmap(), n.Port)
}

// see records a member, and forgets where it was before. mu is held.
func (c *Cluster) see(m Member, what string) {
	was := c.members[m.ID]
	if was == m {
		return
	}
	c.members[m.ID] = m
	c.forget(m.GossipAddr)
	if was.GossipAddr != m.GossipAddr {
		c.forget(was.GossipAddr)
	}
	for a, of := range c.formers {
		if of == m.ID {
			c.forget(a)
		}
	}
	c.publish()
	c.log.Info(what, "host", m.ID, "api", m.APIAddr, "role", m.Role, "zone", m.Zone, "version", m.Version,
		"members", len(c.members))
}

// forget forgets that a member was at an address, and that none answers there. mu is held.
func (c *Cluster) forget(a netip.AddrPort) {
	delete(c.former, a)
	delete(c.formers, a)
	delete(c.silent, a.String())
}

// remember keeps the address of a member that is gone, in place of the oldest one. mu is held.
func (c *Cluster) remember(a netip.AddrPort, now time.Time) {
	c.former[a] = now
	for a, since := range c.former {
		if now.Sub(since) > formerFor {
			delete(c.former, a)
		}
	}
	for len(c.former) > formerMax {
		var oldest netip.AddrPort
		for a, since := range c.former {
			if !oldest.IsValid() || since.Before(c.former[oldest]) {
				oldest = a
			}
		}
		delete(c.former, oldest)
	}
	maps.DeleteFunc(c.formers, func(a netip.AddrPort, _ host.ID) bool { return c.former[a].IsZero() })
}
