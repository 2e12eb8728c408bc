// Package hostmatch matches host names against the patterns of an allow-list.
//
// A pattern has one of three forms, and any other form never matches a host:
//
//	example.com    this host alone, in any case
//	*.example.com  every name below example.com at any depth, and not example.com itself
//	*              every host
//
// An empty list allows no host. Ports, brackets and a final dot are not part of a host here; the caller removes them or
// gets no match. Start at [Match].
package hostmatch

import (
	"net/netip"
	"strings"
)

// Any is the pattern of every host.
const Any = "*"

// Match reports whether one of the patterns allows the host, a name or an IP address without brackets and port.
func Match(patterns []string, host string) bool {
	for _, p := range patterns {
		if matches(p, host) {
			return true
		}
	}
	return false
}

func matches(pattern, host string) bool {
	parent, wild := strings.CutPrefix(pattern, "*.")
	switch {
	case host == "" || pattern == "":
		return false
	case pattern == Any:
		return true
	case !wild:
		return strings.EqualFold(pattern, host)
	case parent == "" || strings.HasPrefix(parent, "."):
		return false // "*." and "*..com" would match by their dots alone
	}
	label, isBelow := cutSuffixFold(host, "."+parent)
	if !isBelow || label == "" || strings.HasPrefix(host, ".") || strings.Contains(host, "..") {
		return false
	}
	_, err := netip.ParseAddr(host)
	return err != nil // "*.0.0.1" is no name that 127.0.0.1 lies below
}

// cutSuffixFold is [strings.CutSuffix] that ignores case.
func cutSuffixFold(s, suffix string) (before string, found bool) {
	n := len(s) - len(suffix)
	if n < 0 || !strings.EqualFold(s[n:], suffix) {
		return s, false
	}
	return s[:n], true
}
