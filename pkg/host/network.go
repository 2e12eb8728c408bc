package host

import "net/netip"

// Network returns the network that bounds count by: an IPv4 address, or the /64 network of an IPv6 address, because one
// machine can use all addresses of such a network. Any other text stays as it is.
func Network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if ip = ip.Unmap(); err != nil || ip.Is4() || ip.IsLoopback() {
		return addr
	}
	network, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return addr
	}
	return network.String()
}
