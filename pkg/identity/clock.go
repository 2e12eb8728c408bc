package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// ClockNotice is the difference of two members' clocks at which the log warns, although nothing fails yet.
const ClockNotice = time.Minute

// ClockError means that the clocks of two members are more than [ClockSkew] apart. Neither would accept
// the other's certificate on a new connection, so they do not rely on an old one.
type ClockError struct {
	// Other names the other member, as in "owner 10.0.0.1:65001".
	Other string
	// Here and There are the times of the two clocks at the same moment.
	Here, There time.Time
}

// CompareClocks compares the times of two clocks at the same moment: nil, or a *[ClockError].
func CompareClocks(other string, here, there time.Time) error {
	if there.Sub(here).Abs() <= ClockSkew {
		return nil
	}
	return &ClockError{Other: other, Here: here, There: there}
}

// Error names both clocks and the remedy.
func (e *ClockError) Error() string {
	return fmt.Sprintf("this host's clock says %s, that of %s says %s: they differ by %s, and members more than %s "+
		"apart refuse each other's certificates; set the clock that is wrong (NTP)", stamp(e.Here), e.Other,
		stamp(e.There),
		e.There.Sub(e.Here).Abs().Round(time.Second), ClockSkew)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// OfClocks reports whether an error of a connection with a member is about clocks: a
// *[ClockError], or a certificate that one end refused as outside its time.
func OfClocks(err error) bool {
	var apart *ClockError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &apart) || errors.As(err, &invalid) && invalid.Reason == x509.Expired || refusedAsExpired(err)
}

// refusedAsExpired reports whether the other end refused this host's certificate as outside its
// time (RFC 8446, section 6.2, certificate_expired). Only the text of crypto/tls's error says so.
func refusedAsExpired(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "expired certificate")
}
