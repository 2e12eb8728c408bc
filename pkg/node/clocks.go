package node

import (
	"net/http"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
)

// clocks hold how far the clocks of other owners are ahead of this host's, by address. Equal clocks have no entry.
type clocks struct {
	// mu is held to look up or to store one.
	mu   sync.Mutex
	skew map[string]time.Duration
}

// note stores the difference between this host's clock and the time in an owner's response. It returns that time, and
// whether to warn: the difference is at least [identity.ClockNotice], and has changed by as much since the last
// warning.
func (c *clocks) note(addr string, h http.Header, here time.Time) (there time.Time, warn bool) {
	there, ok := announce.ClockOf(h)
	if !ok {
		return there, false
	}
	skew := there.Sub(here).Truncate(time.Second)
	if skew.Abs() < identity.ClockNotice {
		skew = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	warn = (skew-c.skew[addr]).Abs() >= identity.ClockNotice && skew != 0
	if c.skew == nil {
		c.skew = map[string]time.Duration{}
	}
	if skew == 0 {
		delete(c.skew, addr)
	} else {
		c.skew[addr] = skew
	}
	return there, warn
}

// Compared sets the Skew of an owner's status.
func (n *Node) Compared(o api.OwnerStatus) api.OwnerStatus {
	n.clocks.mu.Lock()
	defer n.clocks.mu.Unlock()
	o.Skew = n.clocks.skew[o.Addr].Seconds()
	return o
}

// skew returns the largest difference between an owner's clock and this host's, in whole seconds.
func (n *Node) skew() (most time.Duration) {
	if n.Owners != nil {
		for _, o := range n.Owners() {
			most = max(most, time.Duration(o.Skew*float64(time.Second)).Abs())
		}
	}
	n.clocks.mu.Lock()
	defer n.clocks.mu.Unlock()
	for _, s := range n.clocks.skew {
		most = max(most, s.Abs())
	}
	return most
}

// comparing is a transport to other owners that compares the clock of each response with this host's.
type comparing struct {
	*http.Transport
	n *Node
}

// RoundTrip implements [http.RoundTripper].
func (c comparing) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := c.Transport.RoundTrip(r)
	if err != nil {
		return nil, identity.Explain(err)
	}
	here := c.n.Clock()
	if there, warn := c.n.clocks.note(r.URL.Host, response.Header, here); warn {
		c.n.Log.Warn("clocks differ: set the one that is wrong (NTP)", "owner", r.URL.Host,
			"here", here.UTC().Format(time.RFC3339), "there", there.UTC().Format(time.RFC3339),
			"differ", there.Sub(here).Abs().Round(time.Second))
	}
	return response, nil
}
