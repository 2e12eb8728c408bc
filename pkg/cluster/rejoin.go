package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// How many addresses one attempt tries: of those in the configuration, and of members that this host
// saw before.
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
		// Between half and one and a half of it, so that the members of a partition do not all
		// rejoin at once.
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
	c.dropMoved(time.Now(), ml.Members())
	named, failed := c.resolve(ctx)
	targets := c.targets(named, time.Now())
	for _, a := range targets {
		if ctx.Err() != nil {
			return
		}
		if _, err := ml.Join([]string{a.String()}); err != nil {
			failed[a.String()] = reasonOf(a.String(), err)
			c.log.Debug("a member did not answer", "address", a, "error", err)
		}
	}
	c.noteSilent(named, targets, failed)
}

// reasonOf is why a join failed, out of memberlist's list of one.
func reasonOf(addr string, err error) error {
	for {
		multi, ok := err.(interface{ Unwrap() error })
		inner := error(nil)
		if ok {
			inner = multi.Unwrap()
		}
		if inner == nil {
			text := strings.Join(strings.Fields(err.Error()), " ")
			return errors.New(strings.TrimPrefix(text, "failed to join "+addr+": "))
		}
		err = inner
	}
}

// Silence is an address where a member should be and none answered.
type Silence struct {
	// Addr is IP:port, or what Join names where that has no address.
	Addr string
	Err  error
}

// Silent lists, sorted by address, the members that did not answer the last attempt: those in the
// configuration, and those that this host saw within the last hour.
func (c *Cluster) Silent() (list []Silence) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, err := range c.silent {
		list = append(list, Silence{addr, err})
	}
	slices.SortFunc(list, func(a, b Silence) int { return strings.Compare(a.Addr, b.Addr) })
	return list
}

// aloneTries is how many attempts in vain are usual while a cluster starts.
const aloneTries = 3

// noteSilent records the result of an attempt: the failed addresses of those that were tried.
func (c *Cluster) noteSilent(named, tried []netip.AddrPort, failed map[string]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	expected := map[string]bool{}
	for _, a := range named {
		expected[a.String()] = true
	}
	for a := range c.former {
		expected[a.String()] = true
	}
	for _, a := range tried {
		delete(c.silent, a.String())
	}
	for _, m := range c.members {
		delete(expected, m.GossipAddr.String())
	}
	for addr := range c.silent {
		if !expected[addr] {
			delete(c.silent, addr)
		}
	}
	for addr, err := range failed {
		c.silent[addr] = err
	}
	switch {
	case len(c.members) > 1:
		c.lonely = 0
	case len(failed) > 0:
		if c.lonely++; c.lonely == aloneTries {
			addr := slices.Sorted(maps.Keys(failed))[0]
			c.log.Warn("no member to join answers: this host goes on alone, and keeps trying",
				"address", addr, "error", failed[addr], "silent", len(c.silent))
		}
	}
}

// resolve resolves the names in Join. A name without an address is no error: a cluster that starts has
// none yet.
func (c *Cluster) resolve(ctx context.Context) (found []netip.AddrPort, failed map[string]error) {
	failed = map[string]error{}
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
			failed[j] = fmt.Errorf("the name has no address: %w", err)
			c.log.Debug("a name to join has no address", "name", j, "error", err)
			continue
		}
		for _, ip := range ips {
			found = append(found, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
		}
	}
	return found, failed
}

// targets chooses the addresses to try: some of the named ones that are not alive here, and some former
// ones. The choice is random, so that other attempts try the others.
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
