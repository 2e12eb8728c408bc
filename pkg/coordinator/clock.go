package coordinator

import (
	"cmp"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/scheduler"
)

// forgetReports forgets what a host reported about purge orders. mu is not held.
func (c *Coordinator) forgetReports(id host.ID) {
	if c.cfg.Purges != nil {
		c.cfg.Purges.ForgetHost(id)
	}
}

// clockEvery is the interval of log lines about hosts with other clocks.
const clockEvery = time.Minute

// checkClock refuses a host whose clock differs so much from this owner's that TLS between members fails. No other host
// gets it as a neighbour, and so no host waits for its pieces in vain. A host of a former version sends no clock.
//
// It forgets the host, unless the announce may not speak for it: a copy of a host with a wrong clock, or a member that
// writes the host's ID into a certificate, must not end the membership of the other.
func (c *Coordinator) checkClock(r api.AnnounceRequest, from Sender) error {
	if r.Clock.IsZero() || r.Leaving || r.Host.ID == c.cfg.Host.ID {
		return nil
	}
	err := identity.CompareClocks("host "+cmp.Or(r.Host.Name, string(r.Host.ID)), c.cfg.Now(), r.Clock)
	if err == nil {
		return nil
	}
	report := scheduler.Report{Host: r.Host, Generation: r.Generation, Source: from.source()}
	c.mu.Lock()
	now := c.cfg.Lag.Now()
	own := c.sched.MayReport(now, report) == nil
	var changes scheduler.Changes
	if own {
		changes = c.sched.Leave(now, r.Host.ID)
	}
	c.clockWhy, c.clockAt = err.Error(), time.Now()
	c.mu.Unlock()
	c.seed(changes.Seeds)
	if own {
		c.forgetReports(r.Host.ID)
	}
	if c.cfg.ClockRefused != nil {
		c.cfg.ClockRefused()
	}
	c.clockLog.Do(func() {
		c.log.Warn("host refused because of its clock", "host", r.Host.ID, "name", r.Host.Name, "error", err)
	})
	// The text goes to the other host.
	reason := strings.Replace(err.Error(), "this host's clock", "this owner's clock", 1)
	return &RequestError{Status: api.StatusClock, Reason: reason}
}

// Clocks returns the reason of the last refusal because of a clock, with the name of the host; empty if there was none
// within a minute.
func (c *Coordinator) Clocks() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clockWhy == "" || time.Since(c.clockAt) > clockEvery {
		return ""
	}
	return c.clockWhy
}
