package cluster

import (
	"errors"
	"net/netip"
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

// delegate receives memberlist's events. Memberlist holds its own lock meanwhile, so nothing here may
// block or call it.
type delegate struct{ c *Cluster }

func (d delegate) NodeMeta(int) []byte             { return d.c.meta }
func (d delegate) NotifyMsg([]byte)                {}
func (d delegate) GetBroadcasts(_, _ int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.c.put(n, "member joined") }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.c.put(n, "member changed") }

func (d delegate) NotifyLeave(n *memberlist.Node) {
	c := d.c
	id := host.ID(n.Name)
	if id == c.cfg.Host {
		return // this host, which is leaving
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, known := c.members[id]
	if !known {
		return
	}
	delete(c.members, id)
	c.remember(m.GossipAddr, time.Now())
	c.silent[m.GossipAddr.String()] = errGone
	c.publish()
	c.log.Info("member gone", "host", id, "api", m.APIAddr, "members", len(c.members))
}

// NotifyConflict receives that a host came back with another address, or that two hosts have one ID.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	c := d.c
	c.mu.Lock()
	_, alive := c.members[host.ID(existing.Name)]
	c.mu.Unlock()
	attrs := []any{"host", existing.Name, "address", existing.Address(), "other", other.Address()}
	c.conflict.Do(func() {
		if alive {
			c.log.Error("two hosts have one ID: was a data directory copied? Give one of them an empty one", attrs...)
			return
		}
		c.log.Info("a host that died is back at another address, and is a member again soon",
			append(attrs, "after", reclaim)...)
	})
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
	ip, _ := netip.AddrFromSlice(n.Addr)
	m := Member{ID: id, GossipAddr: netip.AddrPortFrom(ip.Unmap(), n.Port), Meta: meta}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members[id] == m {
		return
	}
	c.members[id] = m
	delete(c.former, m.GossipAddr)
	delete(c.silent, m.GossipAddr.String())
	c.publish()
	c.log.Info(what, "host", id, "api", m.APIAddr, "role", m.Role, "zone", m.Zone, "version", m.Version,
		"members", len(c.members))
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
}
