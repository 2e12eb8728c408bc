package httporigin

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Pin is the SHA-256 of the public key of a certificate (SubjectPublicKeyInfo, RFC 5280 §4.1.2.7).
type Pin [sha256.Size]byte

// PinOf returns the pin of a certificate.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// String is the pin as curl's --pinnedpubkey takes it: sha256//BASE64.
func (p Pin) String() string { return "sha256//" + base64.StdEncoding.EncodeToString(p[:]) }

// ParsePins reads pins as curl's --pinnedpubkey takes them, with ";" between two. An empty text has none.
func ParsePins(text string) (pins []Pin, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		encoded, ok := strings.CutPrefix(strings.TrimSpace(part), "sha256//")
		b, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil || len(b) != sha256.Size {
			return nil, errors.New("a pin is sha256// and the SHA-256 of the certificate's public key in base64, as " +
				"dfdaemon doctor prints it")
		}
		pins = append(pins, Pin(b))
	}
	return pins, nil
}

// PinError reports a certificate whose key is none of the pins.
type PinError struct{ Certificate *x509.Certificate }

func (e *PinError) Error() string {
	return fmt.Sprintf("the key of the certificate is %s, which is none of the pins", PinOf(e.Certificate))
}

// pinned returns a TLS configuration for the hosts that a name and pins are for. With pins the key alone decides:
// authority, name and dates do not count.
func pinned(base *tls.Config, serverName string, pins []Pin) *tls.Config {
	out := base.Clone()
	out.ServerName = serverName // also the name that the host is asked for; empty is the host's own
	if len(pins) == 0 {
		return out
	}
	out.InsecureSkipVerify = true // VerifyConnection compares the key instead, also of a resumed session
	out.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		if leaf := s.PeerCertificates[0]; !slices.Contains(pins, PinOf(leaf)) {
			return &PinError{leaf}
		}
		return nil
	}
	return out
}

// places sends requests to the trusted hosts by their own TLS settings, and to all others, to which a redirect or a
// token service leads, by the usual ones. Safe for concurrent use.
type places struct {
	trusted   map[string]bool
	own, rest *versions // own is nil if the trusted hosts have no settings of their own
}

// RoundTrip implements [http.RoundTripper].
func (p *places) RoundTrip(req *http.Request) (*http.Response, error) {
	if p.own != nil && p.trusted[hostPort(req.URL)] {
		return p.own.RoundTrip(req)
	}
	return p.rest.RoundTrip(req)
}

// without returns such places that send no client certificate and keep no connection.
func (p *places) without() *places {
	bare := func(v *versions) *versions {
		if v == nil {
			return nil
		}
		t := v.one.Clone()
		t.TLSClientConfig.GetClientCertificate = nil
		t.DisableKeepAlives = true // no one would close idle connections
		return newVersions(v.observe, t)
	}
	return &places{p.trusted, bare(p.own), bare(p.rest)}
}

func (p *places) closeIdle() {
	p.rest.closeIdle()
	if p.own != nil {
		p.own.closeIdle()
	}
}
