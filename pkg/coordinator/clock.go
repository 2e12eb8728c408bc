package coordinator

import (
	"cmp"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
)

// forgetReports forgets what a host reported about purge orders. mu is not held.
func (c *Coordinator) forgetReports(id host.ID) {
	if c.cfg.Purges != nil {
		c.cfg.Purges.ForgetHost(id)
	}
}

// apartEvery is how often the log names a host with another clock.
const apartEvery = time.Minute

// checkClock refuses a host whose clock is so far from this one's that TLS between the two would fail:
// no other host is sent to it, and it does not wait for pieces that cannot come. A host of a former
// version sends no clock.
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
	c.apartWhy, c.apartAt = err.Error(), time.Now()
	c.mu.Unlock()
	c.seed(changes.Seeds)
	c.forgetReports(r.Host.ID)
	if c.cfg.ClockRefused != nil {
		c.cfg.ClockRefused()
	}
	c.apart.Do(func() {
		c.log.Warn("host refused because of its clock", "host", r.Host.ID, "name", r.Host.Name, "error", err)
	})
	// The host that reads it is not the one that "this host" means here.
	reason := strings.Replace(err.Error(), "this host's clock", "this owner's clock", 1)
	return &RequestError{Status: api.StatusClock, Reason: reason}
}

// Clocks says which host was refused last because of its clock, and why; empty where none was within
// a minute.
func (c *Coordinator) Clocks() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apartWhy == "" || time.Since(c.apartAt) > apartEvery {
		return ""
	}
	return c.apartWhy
}
