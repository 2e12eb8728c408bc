// Package identity proves which host is which: from one cluster secret it derives the cluster's
// certificate authority, the member certificates of its TLS, the gossip key and the certificates under
// which coordinators sign runs of piece digests.
//
// A connection that it accepts belongs to a member, and a run that it verifies was signed by a
// coordinator of this cluster. Without a secret it proves neither, and [Identity.CheckListen] keeps the
// host on its loopback addresses. An ID that names a key ([host.OfKey]) is accepted only with a
// certificate for that key. This package never writes a key to disk, prints or logs one. Start at [New];
// docs/security.md describes what the secret protects and what it does not.
package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/secret"
)

// The validity of certificates. A member's is short because renewal is cheap; a coordinator's is long because disks
// hold its signed runs.
const (
	// ClockSkew is the largest allowed difference of two members' clocks: every certificate is valid this long before
	// its creation, and is renewed this long before its end.
	ClockSkew = 24 * time.Hour
	// MemberLife is how long a member certificate is valid after its creation. The next handshake after half of this
	// time renews it.
	MemberLife = 48 * time.Hour
	// SignerLife is how long a coordinator's certificate is valid after its creation. Hosts accept runs of a dead
	// coordinator for this time; stored pieces stay readable afterwards.
	SignerLife = 365 * 24 * time.Hour
)

// Config identifies a host and its cluster.
type Config struct {
	// Secret is the secret that all hosts of a cluster share. During a change of the secret there are several, one in
	// each line: the host uses the first one, and accepts the members and the signatures of all. White space around a
	// line is ignored, such as a file's last newline. Empty means no secret: no TLS, no gossip key, and signatures that
	// prove nothing. [Identity.SetSecret] changes it later.
	Secret secret.String
	// HostID is the ID that this host proves to others.
	HostID host.ID
	// Key is the host's own key, whose name is HostID ([host.OfKey]). Without a key, each certificate gets a new one,
	// and HostID must be random: other members refuse an ID that names a key.
	Key ed25519.PrivateKey
	// Insecure allows addresses that others can reach although there is no secret.
	Insecure bool
	// Now is the clock for making and checking certificates. Default [time.Now].
	Now func() time.Time
}

// Identity proves this host's membership and checks the membership of others. Safe for concurrent use. It prints and
// logs as the host's ID.
type Identity struct {
	host     host.ID
	secure   bool
	insecure bool
	now      func() time.Time

	// key is the host's own key, nil if each certificate has a new one.
	key  ed25519.PrivateKey
	leaf *renewing

	secrets  *atomic.Pointer[secrets]
	sessions *sessions
	changing *changing
}

// changing orders the changes of the secrets.
type changing struct {
	// mu is held while SetSecret changes the secrets, and to add a verifier.
	mu        sync.Mutex
	verifiers []*Verifier // which a change adapts
}

// New derives the cluster's authority and makes the host's member certificate. The error wraps
// [ErrWeakSecret] or [host.ErrInvalidID].
func New(cfg Config) (*Identity, error) {
	if _, err := host.ParseID(string(cfg.HostID)); err != nil {
		return nil, fmt.Errorf("making an identity: %w", err)
	}
	keyed := cfg.Key != nil || cfg.HostID.Keyed()
	if keyed &&
		(len(cfg.Key) != ed25519.PrivateKeySize || host.OfKey(cfg.Key.Public().(ed25519.PublicKey)) != cfg.HostID) {
		return nil, fmt.Errorf("making an identity: %w: host %s is not the name of the key",
			host.ErrInvalidID, cfg.HostID)
	}
	id := &Identity{host: cfg.HostID, key: cfg.Key, insecure: cfg.Insecure, now: cfg.Now,
		secrets: new(atomic.Pointer[secrets]), changing: new(changing)}
	if id.now == nil {
		id.now = time.Now
	}
	id.sessions = newSessions(id.now)
	all, err := deriveSecrets(cfg.Secret)
	if err != nil {
		return nil, err
	}
	id.secure = all.secure
	id.secrets.Store(all)
	id.leaf, err = newRenewing(id, MemberLife, id.issueMember)
	return id, err
}

// HostID returns the ID of the host.
func (i *Identity) HostID() host.ID { return i.host }

// Secure reports whether there is a cluster secret: only then does membership prove
// anything.
func (i *Identity) Secure() bool { return i.secure }

// GossipKeys returns the 32-byte keys (AES-256) of the gossip: the first one encrypts, all decrypt. Without a secret
// there are none.
func (i *Identity) GossipKeys() []secret.String {
	return append([]secret.String(nil), i.trusted().gossip...)
}

// NamesKey returns the 32-byte key (HMAC-SHA256) with which members hash the secrets of a file's request. So they
// compute the same task name, and no other host can test guesses of a secret against it. It is empty without a cluster
// secret, and changes with the first secret, so call NamesKey for each request.
func (i *Identity) NamesKey() secret.String { return i.trusted().names }

// Authority returns the DER certificate of the authority of the first secret. It is equal on every
// member and not secret.
func (i *Identity) Authority() []byte {
	return append([]byte(nil), i.trusted().first().certificate.Raw...)
}

// String is the host's ID, so that no verb prints a key.
func (i *Identity) String() string { return string(i.host) }

// Format keeps every verb from printing a key.
func (i *Identity) Format(f fmt.State, _ rune) { fmt.Fprint(f, i.String()) }

// LogValue keeps log/slog from printing a key.
func (i *Identity) LogValue() slog.Value { return slog.StringValue(i.String()) }

// issueMember makes a certificate for the host's key, or for a new one.
func (i *Identity) issueMember(by *authority, now time.Time) (*tls.Certificate, error) {
	issue := by.issue
	if i.key != nil {
		issue = func(t *x509.Certificate) (*tls.Certificate, error) { return by.certify(t, i.key) }
	}
	c, err := issue(&x509.Certificate{
		NotBefore:   now.Add(-ClockSkew),
		NotAfter:    now.Add(MemberLife),
		DNSNames:    []string{memberName},
		URIs:        []*url.URL{{Scheme: uriScheme, Host: "host", Path: "/" + string(i.host)}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("issuing the member certificate of host %s: %w", i.host.Short(), err)
	}
	return c, nil
}

// Names inside certificates.
const (
	// memberName is a SAN of every member: the name that a dialling member demands, so that
	// crypto/tls does its whole verification. A member's addresses may change at any time
	// and prove nothing; its host ID is in a URI of the same certificate.
	memberName = "member.darter.internal"
	uriScheme  = "darter"
	// coordinatorURI is the SAN that marks a coordinator's signing key.
	coordinatorURI = uriScheme + "://role/coordinator"
)

// ErrNotMember means that a connection's other end showed no member certificate.
var ErrNotMember = errors.New("not a member of this cluster")

// hostOf returns the host ID of a member certificate. An ID that names a key is valid only in a certificate for that
// key, because any holder of the cluster secret can write any ID into a certificate.
func hostOf(c *x509.Certificate) (host.ID, error) {
	for _, u := range c.URIs {
		if u.Scheme != uriScheme || u.Host != "host" || len(u.Path) == 0 {
			continue
		}
		id, err := host.ParseID(u.Path[1:])
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNotMember, err)
		}
		if public, ok := c.PublicKey.(ed25519.PublicKey); id.Keyed() && (!ok || host.OfKey(public) != id) {
			return "", fmt.Errorf("%w: it calls itself %s, and that host has another key", ErrNotMember, id)
		}
		return id, nil
	}
	return "", fmt.Errorf("%w: certificate %q names no host", ErrNotMember, c.Subject.CommonName)
}
