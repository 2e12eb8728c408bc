package identity

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// ErrInsecureListen means that strangers could reach an address without any proof.
var ErrInsecureListen = errors.New("refusing to listen without a cluster secret")

// CheckListen refuses an address (host:port, as [net.Listen] takes it) that others can reach, unless
// there is a secret or Insecure is set. The error wraps [ErrInsecureListen] and states the remedy.
func (i *Identity) CheckListen(addr string) error {
	if i.secure || i.insecure {
		return nil
	}
	if !loopback(addr) {
		return fmt.Errorf("%w on %s, which others can reach: set a cluster secret (%s), listen on 127.0.0.1, "+
			"or accept the risk with --insecure",
			ErrInsecureListen, addr, makeOne)
	}
	return nil
}

// loopback reports whether only this machine can reach addr. Names other than localhost
// count as reachable: the resolver decides what they mean, and it may change.
func loopback(addr string) bool {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}
