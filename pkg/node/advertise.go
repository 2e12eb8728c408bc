package node

import (
	"errors"
	"net"
	"strconv"

	"github.com/darter-io/darter/pkg/config"
)

// Advertise returns the address of a listener that other hosts use: the operator's setting, or the address listened
// on, or if that is every address, the one that this machine uses towards the given hosts, or towards the Internet.
// It sends nothing to find out.
func Advertise(listening net.Addr, wanted config.Address, towards []config.Address) (string, error) {
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
	port := strconv.Itoa(a.Port)
	// Connecting a UDP socket chooses a source address and sends nothing. The last two are
	// addresses for documentation (RFC 5737, RFC 3849), which stand for the world.
	for _, to := range append(towards, "192.0.2.1:9", "[2001:db8::1]:9") {
		c, err := net.Dial("udp", string(to))
		if err != nil {
			continue
		}
		local := c.LocalAddr().(*net.UDPAddr)
		c.Close()
		if !local.IP.IsUnspecified() {
			return net.JoinHostPort(local.IP.String(), port), nil
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return net.JoinHostPort(n.IP.String(), port), nil
		}
	}
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.IsLoopback() {
			return net.JoinHostPort(n.IP.String(), port), nil
		}
	}
	return "", errors.New("this machine has no address that others could use")
}
