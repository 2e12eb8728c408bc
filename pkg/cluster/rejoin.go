package cluster

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

// How many addresses one attempt tries: of those that the configuration names, and of
// members that this host saw before.
const (
	joinsMax   = 3
	formersMax = 2
	// firstWait is the pause after the first attempt of a host that is still alone.
	firstWait = time.Second
	// resolveMax bounds one attempt's look-ups.
	resolveMax = 5 * time.Second
)

// rejoin tries, as long as ctx lasts, the members that this host should see and does not.
func (c *Cluster) rejoin(ctx context.Context, ml *memberlist.Memberlist) {
	alone := firstWait
	for {
		c.tryJoin(ctx, ml)
		wait := c.cfg.RejoinInterval
		if len(c.View()) == 1 && alone < wait {
			wait, alone = alone, alone*2
		}
		// Half as long to half longer, so that a cluster that was cut does not heal in one blow.
		wait = wait/2 + rand.N(wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// tryJoin makes one attempt.
func (c *Cluster) tryJoin(ctx context.Context, ml *memberlist.Memberlist) {
	named := c.resolve(ctx)
	for _, a := range c.targets(named, time.Now()) {
		if ctx.Err() != nil {
			return
		}
		if _, err := ml.Join([]string{a.String()}); err != nil {
			c.log.Debug("a member did not answer", "address", a, "error", err)
		}
	}
}

// resolve looks up what Join names now. A name without an answer is no error: a cluster
// that starts has none yet.
func (c *Cluster) resolve(ctx context.Context) (found []netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, resolveMax)
	defer cancel()
	for _, j := range c.cfg.Join {
		name, portText, _ := net.SplitHostPort(j)
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			if n, lookErr := net.DefaultResolver.LookupPort(ctx, "tcp", portText); lookErr == nil {
				port, err = uint64(n), nil
			}
		}
		var ips []netip.Addr
		if err == nil {
			if ip, parseErr := netip.ParseAddr(name); parseErr == nil {
				ips = []netip.Addr{ip}
			} else {
				ips, err = c.cfg.Resolve(ctx, name)
			}
		}
		if err != nil {
			c.log.Debug("a name to join has no address", "name", j, "error", err)
			continue
		}
		for _, ip := range ips {
			found = append(found, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return found
}

// targets chooses whom to try: some of the named that are not alive here, and some that
// were. Others are tried at other times, since the choice is random.
func (c *Cluster) targets(named []netip.AddrPort, now time.Time) []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	skip := map[netip.AddrPort]bool{}
	for _, m := range c.members {
		skip[m.GossipAddr] = true
	}
	var out []netip.AddrPort
	add := func(from []netip.AddrPort, most int) {
		rand.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		for _, a := range from {
			if most > 0 && !skip[a] {
				skip[a] = true
				out = append(out, a)
				most--
			}
		}
	}
	add(named, joinsMax)
	var former []netip.AddrPort
	for a, since := range c.former {
		if now.Sub(since) <= formerFor {
			former = append(former, a)
		}
	}
	add(former, formersMax)
	return out
}
