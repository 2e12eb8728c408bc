package announce

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
)

// errClear tells why owners are not asked about a content that wants a login.
var errClear = errors.New("credentials go to owners over TLS only, so the host leads this task itself; a cluster secret gives TLS")

// exposes reports whether an announce is none for others: a task that is to stay here, or one that would
// carry credentials in the clear, over anything but this machine's loopback.
func (c *Client) exposes(e api.Entry) bool {
	if e.Event == api.Completed || e.Event == api.Stopped {
		return false
	}
	stays, clear := c.staysHere(e)
	if clear {
		c.clear.Do(func() { c.log.Warn("contents that want a login are brought by this host alone", "reason", errClear) })
	}
	return stays
}

// staysHere reports whether an entry is for no other host; clear says that it stays because its
// credentials would go to an owner in the clear.
func (c *Client) staysHere(e api.Entry) (stays, clear bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	spec := e.Spec
	if t := c.active[e.Task]; spec == nil && t != nil {
		spec = t.spec // it goes to whoever takes the task over
	}
	switch {
	case spec != nil && spec.Alone:
		return true, false
	case c.cfg.Scheme == "https", spec == nil, spec.Authorization == "" && len(spec.Header) == 0:
		return false, false
	}
	for addr := range c.owners {
		if !isLoopback(addr) {
			return true, true
		}
	}
	return slices.ContainsFunc(c.standbys, func(addr string) bool { return !isLoopback(addr) }), false
}

func isLoopback(addr string) bool {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(name)
	return strings.EqualFold(name, "localhost") || err == nil && ip.IsLoopback()
}

// isHere reports whether an address is that at which this host itself takes announces.
func (c *Client) isHere(addr string) bool { return c.cfg.Local != nil && addr == c.cfg.Host.Addr }

// patience is how long owners that are silent are asked before others are.
func (c *Client) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.patienceNow()
}

// patienceNow is patience; mu is held.
func (c *Client) patienceNow() time.Duration {
	if len(c.standbys) > 0 && !c.standing {
		return c.cfg.Patience * 3 / 4
	}
	return c.cfg.Patience
}

func (c *Client) isStanding() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.standing
}

// callStandbys has standbys lead, when there are any and they do not do so yet.
func (c *Client) callStandbys() bool {
	c.mu.Lock()
	called := c.call()
	c.mu.Unlock()
	if called {
		c.tellStandbysLead()
	}
	return called
}

// tellStandbysLead writes the line of a call.
func (c *Client) tellStandbysLead() {
	c.log.Warn("no owner answers, so standbys lead", "standbys", c.Standbys())
}

// call is callStandbys without its line; mu is held.
func (c *Client) call() bool {
	if c.standing || c.cfg.Local == nil || len(c.standbys) == 0 || slices.ContainsFunc(c.listed, c.isHere) {
		return false
	}
	c.standing = true
	for _, addr := range c.standbys {
		if c.owners[addr] == nil && !c.isHere(addr) {
			o := newOwner(addr)
			o.standby = true
			c.owners[addr] = o
		}
	}
	c.change()
	return true
}

// heard takes in what an owner that answers says of others; standbys are not needed then. It
// returns them when they are others than before. mu is held.
func (c *Client) heard(r api.AnnounceResponse) (named []string) {
	if c.standing {
		c.standing = false
		for _, o := range c.owners {
			if o.standby {
				c.disown(o.addr)
				c.dismiss(o)
			}
		}
		c.change()
	}
	if len(r.Owners) > 0 && !slices.Equal(r.Owners, c.listed) {
		c.list(r.Owners)
	}
	if len(r.Standbys) > 0 && !slices.Equal(r.Standbys, c.standbys) {
		c.standbys, named = r.Standbys, r.Standbys
	}
	return named
}
