package announce

import (
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
)

// ClockOf reads the owner's clock in a response; ok is false where there is none.
func ClockOf(h http.Header) (there time.Time, ok bool) {
	if there, err := time.Parse(time.RFC3339Nano, h.Get(api.HeaderClock)); err == nil {
		return there, true
	}
	there, err := http.ParseTime(h.Get("Date"))
	return there, err == nil
}

// compareClocks compares the owner's clock in a response with this host's. The error is an
// *[identity.ClockError]: this connection lives, but TLS with the hosts that the owner names would fail.
func (c *Client) compareClocks(addr string, h http.Header) error {
	there, ok := ClockOf(h)
	if !ok {
		return nil
	}
	here := c.cfg.Now()
	apart := identity.CompareClocks("owner "+addr, here, there)
	skew := there.Sub(here).Truncate(time.Second)
	c.mu.Lock()
	o := c.senders[addr]
	var warn bool
	if o != nil {
		o.skew = skew
		switch {
		case skew.Abs() < identity.ClockNotice:
			o.logged = 0
		case (skew - o.logged).Abs() >= identity.ClockNotice:
			o.logged, warn = skew, true
		}
	}
	c.mu.Unlock()
	if warn && apart == nil { // otherwise it is logged as a failure
		c.log.Warn("clocks differ: set the one that is wrong (NTP)", "owner", addr,
			"here", here.UTC().Format(time.RFC3339),
			"there", there.UTC().Format(time.RFC3339), "differ", skew.Abs())
	}
	return apart
}
