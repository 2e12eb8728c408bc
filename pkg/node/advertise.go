package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
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
// It sends nothing except the look-ups of the given hosts' names, which take at most two seconds together and end with
// ctx. If they give no address, it logs a warning: on a machine with several addresses the result may be another one.
func Advertise(
	ctx context.Context, listening net.Addr, wanted config.Address, towards []config.Address, log *slog.Logger,
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
	ip, err := sourceOf(ctx, towards)
	if ctx.Err() != nil {
		return "", fmt.Errorf("choosing this host's address: %w", context.Cause(ctx))
	}
	if ip == nil {
		if ip, _ = sourceOf(ctx, anyHost); ip == nil {
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
// if there is none, with an error if that is because names could not be looked up. It looks all names up at once, so
// that one without an answer takes no time from the others.
func sourceOf(ctx context.Context, hosts []config.Address) (net.IP, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupsMax)
	found := make([]chan route, len(hosts))
	var looking sync.WaitGroup
	defer looking.Wait()
	defer cancel()
	for i, to := range hosts {
		found[i] = make(chan route, 1)
		looking.Go(func() { found[i] <- sourceTo(ctx, string(to)) })
	}
	var failed error
	for _, one := range found {
		s := <-one
		if s.ip != nil {
			return s.ip, nil
		}
		if s.err != nil {
			failed = s.err
		}
	}
	return nil, failed
}

// route is an address of this machine, or why the name of the other host has none.
type route struct {
	ip  net.IP
	err error
}

// sourceTo returns the address that this machine uses towards a host; neither if it has no route to it.
func sourceTo(ctx context.Context, to string) route {
	// Connecting a UDP socket chooses a source address and sends nothing.
	c, err := new(net.Dialer).DialContext(ctx, "udp", to)
	if err != nil {
		if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
			return route{err: err}
		}
		return route{}
	}
	defer c.Close()
	if local := c.LocalAddr().(*net.UDPAddr); !local.IP.IsUnspecified() {
		return route{ip: local.IP}
	}
	return route{}
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
