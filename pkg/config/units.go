package config

import (
	"fmt"
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Size is a number of bytes, written with a unit: 4GiB, 500MB, 64KiB. A number without a unit is bytes.
type Size int64

// Rate is a number of bytes per second, written with a unit: 100MiB/s or 800Mbit/s. 0 and "unlimited" are no limit.
type Rate int64

type unit struct {
	name  string
	bytes float64
}

// units are those of bytes, the binary ones first, each from large to small, and then those of bits. A value is printed
// in the first unit that divides it, which is "B" at the latest.
var units = []unit{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}, {"", 1},
	{"Tbit", 1e12 / 8}, {"Gbit", 1e9 / 8}, {"Mbit", 1e6 / 8}, {"kbit", 1e3 / 8},
}

// unitOf returns the unit with a name in any case, and a zero unit for an unknown one.
func unitOf(name string) unit {
	i := slices.IndexFunc(units, func(u unit) bool { return strings.EqualFold(u.name, name) })
	if i < 0 {
		return unit{}
	}
	return units[i]
}

// parseBytes reads exact numbers only. The package that prints sizes does not: it reads 1,5GiB as 15 GiB, and 0.3B as
// none.
func parseBytes(text string) (n int64, ok bool) {
	name := strings.TrimLeft(text, "0123456789.")
	number, err := strconv.ParseFloat(strings.TrimSuffix(text, name), 64)
	u := unitOf(strings.TrimSpace(name))
	number *= u.bytes
	return int64(number), err == nil && u.bytes > 0 && number < math.MaxInt64 && number == math.Trunc(number)
}

func formatBytes(n int64) string {
	for _, u := range units {
		if size := int64(u.bytes); n != 0 && n%size == 0 {
			return strconv.FormatInt(n/size, 10) + u.name
		}
	}
	return "0"
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

// UnmarshalText parses a rate.
func (r *Rate) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	if text == "unlimited" {
		*r = 0
		return nil
	}
	text = strings.TrimSuffix(text, "/s")
	if m := ambiguous.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%q can mean bits or bytes; write %s%s/s for bytes or %s%s/s for bits", b, m[1],
			unitOf(m[2]+m[3]+"B").name, m[1], unitOf(m[2]+"bit").name)
	}
	n, ok := parseBytes(text)
	if !ok {
		return fmt.Errorf("%q is not a rate; write for example 100MiB/s, 800Mbit/s or unlimited", b)
	}
	*r = Rate(n)
	return nil
}

// ambiguous matches a unit that ends in a b that can mean bits: mb, Gb, kib.
var ambiguous = regexp.MustCompile(`^([0-9.]*) *([kKmMgGtT])([iI]?)b$`)

// MarshalText writes the rate so that it reads back the same.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	if r == 0 {
		return "unlimited"
	}
	return formatBytes(int64(r)) + "/s"
}

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
