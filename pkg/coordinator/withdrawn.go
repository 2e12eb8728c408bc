package coordinator

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/task"
)

// withdrawnBy is what a host said of withdrawals in its last announce.
type withdrawnBy struct {
	mark       string
	unfollowed []api.Unfollowed
}

// noteWithdrawn takes in what a host says of withdrawals. mu is held.
func (c *Coordinator) noteWithdrawn(r api.AnnounceRequest) {
	switch {
	case r.Leaving:
		delete(c.told, r.Host.ID)
	case r.Withdrawn != "" || len(r.Unfollowed) > 0:
		c.told[r.Host.ID] = withdrawnBy{r.Withdrawn, r.Unfollowed}
	}
}

// Followed tells which of the hosts that announce here have dropped a withdrawn content. A
// host has when it took in all that is withdrawn here and names no trouble with this content.
func (c *Coordinator) Followed(id task.ID) api.Followed {
	mark := ""
	if c.cfg.Withdrawn != nil {
		mark = c.cfg.Withdrawn()
	}
	out := api.Followed{Version: api.Version}
	hosts := c.Hosts()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hosts {
		said := c.told[h.ID]
		at := api.HostFollowed{Host: cmp.Or(h.Name, string(h.ID)), State: api.FollowDropped}
		if i := slices.IndexFunc(said.unfollowed, func(u api.Unfollowed) bool { return u.Task == id }); i >= 0 {
			at.State, at.Why = api.FollowFailed, said.unfollowed[i].Why
		} else if said.mark != mark {
			at.State = api.FollowUnheard
		}
		switch {
		case at.State == api.FollowDropped:
			out.Dropped++
		case len(out.Others) < api.OthersMax:
			out.Others = append(out.Others, at)
		default:
			out.Missing++
		}
	}
	return out
}

// Unfollowed lists the hosts that could not follow a withdrawal so far, by name, at most
// [api.OthersMax]; Why names the content, too.
func (c *Coordinator) Unfollowed() (out []api.HostFollowed) {
	hosts := c.Hosts()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hosts {
		for _, u := range c.told[h.ID].unfollowed {
			if len(out) < api.OthersMax {
				out = append(out, api.HostFollowed{Host: cmp.Or(h.Name, string(h.ID)), State: api.FollowFailed, Why: u.Task.Short() + ": " + u.Why})
			}
		}
	}
	return out
}

// apartEvery is how often hosts with another clock are told of.
const apartEvery = time.Minute

// checkClock refuses a host whose clock is so far from this one's that no new connection
// between the two would come about: nobody is sent to it, and it does not wait for pieces
// that cannot come. A host of a former version tells no clock.
func (c *Coordinator) checkClock(r api.AnnounceRequest) error {
	if r.Clock.IsZero() || r.Leaving || r.Host.ID == c.cfg.Host.ID {
		return nil
	}
	err := identity.Apart("host "+cmp.Or(r.Host.Name, string(r.Host.ID)), c.cfg.Now(), r.Clock)
	if err == nil {
		return nil
	}
	c.mu.Lock()
	changes := c.sched.Leave(time.Now(), r.Host.ID)
	delete(c.told, r.Host.ID)
	c.apartWhy, c.apartAt = err.Error(), time.Now()
	c.mu.Unlock()
	c.seed(changes.Seeds)
	if c.cfg.Apart != nil {
		c.cfg.Apart()
	}
	c.apart.Do(func() {
		c.log.Warn("host refused because of its clock", "host", r.Host.ID, "name", r.Host.Name, "error", err)
	})
	// The host reads it with its own eyes.
	return &RequestError{Status: api.StatusClock, Reason: strings.Replace(err.Error(), "this host's clock", "this owner's clock", 1)}
}

// Clocks says which host was refused last because of its clock, and why; empty where none was
// for a minute.
func (c *Coordinator) Clocks() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apartWhy == "" || time.Since(c.apartAt) > apartEvery {
		return ""
	}
	return c.apartWhy
}
