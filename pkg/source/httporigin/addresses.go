package httporigin

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// special holds the forbidden ranges for which [netip.Addr] has no method: the metadata services of clouds
// outside the link-local range, "this network" (RFC 791), and addresses that no host can have.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("240.0.0.0/4"),        // reserved, broadcast
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
	netip.MustParsePrefix("fd00:ec2::/64"),      // AWS: ::254 metadata, ::23 credentials of pods
	netip.MustParsePrefix("fd20:ce::/64"),       // Google: ::254
	netip.MustParsePrefix("fd00:c1::/64"),       // Oracle: ::a9fe:a9fe
	netip.MustParsePrefix("fd00:42::42/128"),    // Scaleway
}

// metadataNames resolve to a metadata service on every host of a cloud, also at a proxy.
var metadataNames = []string{
	"metadata.google.internal", "metadata.goog", "metadata.azure.internal", "metadata.tencentyun.com", "metadata",
	"instance-data", "instance-data.ec2.internal",
}

// forbidden reports whether requests must not go to an address unless the operator allows it.
func forbidden(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
		return true
	}
	for _, p := range special {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// carriers are the ranges of IPv6 that embed an IPv4 address, at the given byte, to which packets are
// forwarded.
var carriers = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64 (RFC 6052)
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12},  // NAT64 of a network's own (RFC 8215)
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4 (RFC 3056)
	{netip.MustParsePrefix("::/96"), 12},           // IPv4-compatible (RFC 4291)
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // SIIT (RFC 2765)
	{netip.MustParsePrefix("2001::/32"), 4},        // Teredo's server (RFC 4380)
}

// embedded returns the IPv4 addresses to which an IPv6 address leads.
func embedded(addr netip.Addr) (out []netip.Addr) {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	four := func(at int, flip byte) {
		out = append(out, netip.AddrFrom4([4]byte{b[at] ^ flip, b[at+1] ^ flip, b[at+2] ^ flip, b[at+3] ^ flip}))
	}
	for _, c := range carriers {
		if c.prefix.Contains(addr) {
			four(c.at, 0)
		}
	}
	switch {
	case carriers[len(carriers)-1].prefix.Contains(addr):
		four(12, 0xff) // Teredo's client
	case b[10] == 0x5e && b[11] == 0xfe && b[9] == 0 && b[8]&^2 == 0:
		four(12, 0) // ISATAP (RFC 5214)
	}
	return out
}

// literal returns the address that a host name spells out, the zero Addr if the name needs a resolver. The
// error reports a number that resolvers read in more than one way (2852039166, 0xa9.254.43518,
// 0251.254.169.254).
func literal(host string) (netip.Addr, error) {
	// net/http asks a proxy for a name in this form: full-width digits and letters, and other dots, become those of
	// ASCII (UTS 46).
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	host = strings.TrimSuffix(host, ".")
	switch {
	case host == "localhost" || strings.HasSuffix(host, ".localhost"):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	case slices.Contains(metadataNames, host):
		return netip.AddrFrom4([4]byte{169, 254, 169, 254}), nil
	}
	addr, err := netip.ParseAddr(host)
	if err == nil {
		return addr, nil
	}
	// A host whose last label is a number is an address, not a name (WHATWG URL, "ends in a number").
	last := host[strings.LastIndexByte(host, '.')+1:]
	digits := strings.TrimPrefix(last, "0x")
	hex := len(digits) < len(last)
	if last != "" && strings.Trim(digits, "0123456789") == "" || hex && strings.Trim(digits, "0123456789abcdef") == "" {
		return netip.Addr{}, err
	}
	return netip.Addr{}, nil
}
