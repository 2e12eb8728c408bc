package announce

import (
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
)

// ClockOf reads the clock of an owner off its answer; ok is false where it tells none.
func ClockOf(h http.Header) (there time.Time, ok bool) {
	if there, err := time.Parse(time.RFC3339Nano, h.Get(api.HeaderClock)); err == nil {
		return there, true
	}
	there, err := http.ParseTime(h.Get("Date"))
	return there, err == nil
}

// compareClocks looks at an owner's clock on its answer. The error is an *[identity.ClockError]:
// its connection lives, but none to a host that it names would come about.
func (c *Client) compareClocks(addr string, h http.Header) error {
	there, ok := ClockOf(h)
	if !ok {
		return nil
	}
	here := c.cfg.Now()
	apart := identity.Apart("owner "+addr, here, there)
	skew := there.Sub(here).Truncate(time.Second)
	c.mu.Lock()
	o := c.senders[addr]
	var tell bool
	if o != nil {
		o.skew = skew
		switch {
		case skew.Abs() < identity.ClockNotice:
			o.logged = 0
		case (skew - o.logged).Abs() >= identity.ClockNotice:
			o.logged, tell = skew, true
		}
	}
	c.mu.Unlock()
	if tell && apart == nil { // else it is told as a failure
		c.log.Warn("clocks differ: set the one that is wrong (NTP)", "owner", addr, "here", here.UTC().Format(time.RFC3339),
			"there", there.UTC().Format(time.RFC3339), "differ", skew.Abs())
	}
	return apart
}
