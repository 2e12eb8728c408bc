package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/darter-io/darter/pkg/config"
)

// lookupsMax bounds all look-ups of host names at the start. Without an answering DNS one look-up alone may take 10 s
// or more, and the program has to start.
const lookupsMax = 2 * time.Second

// anyHost are addresses for documentation (RFC 5737, RFC 3849), which stand for the Internet.
var anyHost = []config.Address{"192.0.2.1:9", "[2001:db8::1]:9"}

// Advertise returns the address of a listener that other hosts use: the operator's setting, or the address listened
// on, or if that is every address, the one that this machine uses towards the given hosts, or towards the Internet.
//
// It sends nothing except the look-ups of the given hosts' names, which take at most two seconds together. If they
// give no address, it logs a warning: on a machine with several addresses the result may be another one.
func Advertise(
	listening net.Addr, wanted config.Address, towards []config.Address, log *slog.Logger,
) (string, error) {
	if wanted != "" {
		return string(wanted), nil
	}
	a, ok := listening.(*net.TCPAddr)
	if !ok {
		return listening.String(), nil
	}
	if !a.IP.IsUnspecified() {
		return a.String(), nil
	}
	ip, err := sourceOf(towards)
	if ip == nil {
		if ip, _ = sourceOf(anyHost); ip == nil {
			var err error
			if ip, err = ownAddress(); err != nil {
				return "", err
			}
		}
	}
	addr := net.JoinHostPort(ip.String(), strconv.Itoa(a.Port))
	if err != nil {
		log.Warn("cannot tell which address of this machine the other hosts reach; it takes the one with which it "+
			"reaches the Internet; set peer.advertise if that is wrong", "address", addr, "error", err)
	}
	return addr, nil
}

// sourceOf returns the address that this machine uses towards the first of the hosts that it has a route to. It is nil
// if there is none, with an error if that is because names could not be looked up.
func sourceOf(hosts []config.Address) (net.IP, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookupsMax)
	defer cancel()
	var failed error
	for _, to := range hosts {
		// Connecting a UDP socket chooses a source address and sends nothing.
		c, err := new(net.Dialer).DialContext(ctx, "udp", string(to))
		if err != nil {
			if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
				failed = err
			}
			continue
		}
		local := c.LocalAddr().(*net.UDPAddr)
		c.Close()
		if !local.IP.IsUnspecified() {
			return local.IP, nil
		}
	}
	return nil, failed
}

// ownAddress returns an address of this machine that is not loopback, or else one of loopback.
func ownAddress() (net.IP, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var loopback net.IP
	for _, addr := range addrs {
		n, ok := addr.(*net.IPNet)
		switch {
		case ok && n.IP.IsGlobalUnicast():
			return n.IP, nil
		case ok && n.IP.IsLoopback() && loopback == nil:
			loopback = n.IP
		}
	}
	if loopback == nil {
		return nil, errors.New("this machine has no address that others could use")
	}
	return loopback, nil
}
