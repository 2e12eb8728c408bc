package config

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
)

// Size is a number of bytes, written with a unit: 4GiB, 500MB, 64KiB. A number without a unit is bytes.
type Size int64

// Rate is a number of bytes per second, written with a unit: 100MiB/s or 800Mbit/s. 0 and "unlimited" are no limit.
type Rate int64

// units, the binary ones first, each from large to small: a value is printed in the first unit that divides it.
var units = []struct {
	name  string
	bytes float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

var bitUnits = []struct {
	name  string
	bytes float64
}{{"Tbit", 1e12 / 8}, {"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8}}

func parseBytes(text string) (int64, bool) {
	i := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(text)
	}
	n, err := strconv.ParseFloat(text[:i], 64)
	if err != nil {
		return 0, false
	}
	unit, factor := strings.TrimSpace(text[i:]), 0.0
	if unit == "" {
		factor = 1
	}
	for _, u := range units {
		if strings.EqualFold(unit, u.name) {
			factor = u.bytes
		}
	}
	for _, u := range bitUnits {
		if strings.EqualFold(unit, u.name) {
			factor = u.bytes
		}
	}
	n *= factor
	if factor == 0 || n >= math.MaxInt64 || n != math.Trunc(n) {
		return 0, false
	}
	return int64(n), true
}

func formatBytes(n int64) string {
	for _, u := range units {
		if size := int64(u.bytes); n != 0 && n%size == 0 {
			return strconv.FormatInt(n/size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// UnmarshalText parses a size.
func (s *Size) UnmarshalText(b []byte) error {
	n, ok := parseBytes(string(b))
	if !ok || strings.Contains(strings.ToLower(string(b)), "bit") {
		return fmt.Errorf("%q is not a size; write for example 500MB, 64MiB or 4GiB", b)
	}
	*s = Size(n)
	return nil
}

// MarshalText writes the size so that it reads back the same.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string { return formatBytes(int64(s)) }

// Unit is the name of the value in --help.
func (Size) Unit() string { return "size" }

// UnmarshalText parses a rate.
func (r *Rate) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if text == "unlimited" {
		*r = 0
		return nil
	}
	text = strings.TrimSuffix(text, "/s")
	if unit := strings.TrimLeft(text, "0123456789. "); bits(unit) {
		number, prefix := strings.TrimSpace(strings.TrimSuffix(text, unit)), strings.TrimSuffix(unit, "b")
		upper := strings.ToUpper(prefix[:1]) + prefix[1:]
		if upper == "K" {
			upper = "k"
		}
		return fmt.Errorf("%q can mean bits or bytes; write %s%sB/s for bytes or %s%sbit/s for bits", b, number, upper,
			number, strings.TrimSuffix(upper, "i"))
	}
	n, ok := parseBytes(text)
	if !ok {
		return fmt.Errorf("%q is not a rate; write for example 100MiB/s, 800Mbit/s or unlimited", b)
	}
	*r = Rate(n)
	return nil
}

// bits reports whether a unit ends in a b that can mean bits: mb, Gb, kib.
func bits(unit string) bool {
	switch strings.ToLower(unit) {
	case "kb", "mb", "gb", "tb", "kib", "mib", "gib", "tib":
		return strings.HasSuffix(unit, "b")
	}
	return false
}

// MarshalText writes the rate so that it reads back the same.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	return formatBytes(int64(r)) + "/s"
}

// Unit is the name of the value in --help.
func (Rate) Unit() string { return "rate" }

// Address is host:port. The host is a name, an IPv4 address, an IPv6 address in brackets, or empty for every address of
// the machine, IPv4 and IPv6. Port 0 takes a free port. A template that does not know the family, such as
// [$(HOST_IP)]:65002, may write brackets around an IPv4 address, too; they are removed.
type Address string

// UnmarshalText parses an address.
func (a *Address) UnmarshalText(b []byte) error {
	text := string(b)
	if text == "" {
		*a = ""
		return nil
	}
	if strings.Contains(text, "://") {
		return fmt.Errorf("%q is a URL; write host:port", text)
	}
	if ip := net.ParseIP(text); ip != nil || strings.Count(text, ":") > 1 && !strings.HasPrefix(text, "[") {
		return fmt.Errorf("%q has no port; write %s", text, net.JoinHostPort(text, "PORT"))
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is not an address; write host:port, for example 10.0.0.7:65002, [::1]:65002 or :65002",
			text)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number up to 65535", text, port)
	} else if strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q: write the port as %d", text, n)
	}
	if strings.HasPrefix(text, "[") && !strings.Contains(host, ":") {
		text = net.JoinHostPort(host, port) // all hosts write an address alike
	}
	*a = Address(text)
	return nil
}

// Unit is the name of the value in --help.
func (Address) Unit() string { return "host:port" }

// Host returns the host without brackets.
func (a Address) Host() string {
	host, _, _ := net.SplitHostPort(string(a))
	return host
}

// Port returns the port as text.
func (a Address) Port() string {
	_, port, _ := net.SplitHostPort(string(a))
	return port
}

// Loopback reports whether only this machine can reach the address. A name other than localhost is not loopback,
// because a resolver decides where it leads.
func (a Address) Loopback() bool {
	host := a.Host()
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
