package node

import (
	"net/http"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/identity"
)

// clocks are by how much those of other owners are ahead of this host's.
type clocks struct {
	// mu is held to look one up or to note one.
	mu   sync.Mutex
	skew map[string]time.Duration
}

// note takes in what an owner's answer says of its clock, and returns it where it is worth a word
// and that word was not said yet.
func (c *clocks) note(addr string, h http.Header, here time.Time) (there time.Time, tell bool) {
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
	tell = (skew-c.skew[addr]).Abs() >= identity.ClockNotice && skew != 0
	if c.skew == nil {
		c.skew = map[string]time.Duration{}
	}
	if skew == 0 {
		delete(c.skew, addr) // the list holds those that differ
	} else {
		c.skew[addr] = skew
	}
	return there, tell
}

// Compared adds to what is known of another owner how far its clock is from this host's.
func (n *Node) Compared(o api.OwnerStatus) api.OwnerStatus {
	n.clocks.mu.Lock()
	defer n.clocks.mu.Unlock()
	o.Skew = n.clocks.skew[o.Addr].Seconds()
	return o
}

// skew is the largest difference between an owner's clock and this host's, in whole seconds.
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

// comparing is a way to another owner that looks at the clock on each answer.
type comparing struct {
	*http.Transport
	n *Node
}

// RoundTrip makes one request.
func (c comparing) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.Transport.RoundTrip(r)
	if err != nil {
		return nil, identity.Explain(err)
	}
	here := c.n.Clock()
	if there, tell := c.n.clocks.note(r.URL.Host, answer.Header, here); tell {
		c.n.Log.Warn("clocks differ: set the one that is wrong (NTP)", "owner", r.URL.Host,
			"here", here.UTC().Format(time.RFC3339), "there", there.UTC().Format(time.RFC3339),
			"differ", there.Sub(here).Abs().Round(time.Second))
	}
	return answer, nil
}
