package announce

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/darter-io/darter/pkg/api"
)

// errPlaintext is the reason why no owner receives a task whose spec holds credentials.
var errPlaintext = errors.New("credentials go to owners over TLS only, so the host leads this task itself; " +
	"set a cluster secret to get TLS")

// staysHere reports whether no other host may receive an entry: its task is for this host alone, or
// its spec would carry credentials in plain text over a network other than loopback.
func (c *Client) staysHere(e api.Entry) bool {
	if e.Event == api.Completed || e.Event == api.Stopped {
		return false
	}
	c.mu.Lock()
	spec := e.Spec
	if d := c.downloads[e.Task]; spec == nil && d != nil {
		spec = d.spec // it goes to an owner that takes the task over
	}
	members, standbys := c.view.Members(), c.view.Standbys()
	c.mu.Unlock()
	remote := func(addr string) bool { return !isLoopback(addr) }
	switch {
	case spec == nil:
		return false
	case spec.Alone:
		return true
	case c.cfg.Scheme == "https", spec.Authorization == "" && len(spec.Header) == 0:
		return false
	case slices.ContainsFunc(members, remote):
		c.warnPlaintext.Do(func() {
			c.log.Warn("this host gets blobs that need a login from their registries by itself", "reason", errPlaintext)
		})
		return true
	}
	return slices.ContainsFunc(standbys, remote)
}

func isLoopback(addr string) bool {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(name)
	return strings.EqualFold(name, "localhost") || err == nil && ip.IsLoopback()
}
