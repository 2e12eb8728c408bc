package identity

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/secret"
)

// Bounds of a cluster secret.
const (
	// SecretMin is the shortest length of a secret in bytes: 16 random bytes in hexadecimal.
	SecretMin = 32
	// SecretMax is the longest length of a secret in bytes.
	SecretMax = 4096
	// secretBits is the smallest entropy of a secret's bytes, in bits.
	secretBits = 80
)

// ErrWeakSecret means that a cluster secret could be guessed or is no secret at all.
var ErrWeakSecret = errors.New("weak cluster secret")

const makeOne = `make one with "openssl rand -hex 32"`

// clean trims a secret and refuses one that is easy to guess. No slow hash protects the secret, and a host that can
// connect to a member can test guesses offline, so the secret must be random. The check finds mistakes (a word, a
// repeated word, a row of zeros); it cannot distinguish a sentence from random bytes.
func clean(s secret.String) (string, error) {
	v := strings.TrimSpace(s.Reveal())
	switch {
	case v == "" && s != "":
		return "", fmt.Errorf("%w: it is all white space; %s", ErrWeakSecret, makeOne)
	case v == "":
		return "", nil
	case len(v) < SecretMin:
		return "", fmt.Errorf("%w: it has %d characters and needs %d or more; %s", ErrWeakSecret, len(v),
			SecretMin, makeOne)
	case len(v) > SecretMax:
		return "", fmt.Errorf("%w: it has %d bytes, more than %d; is this the right file?", ErrWeakSecret,
			len(v), SecretMax)
	}
	if bits := entropy(period(v)); bits < secretBits {
		return "", fmt.Errorf("%w: its characters repeat (some %.0f bits, %d wanted); %s",
			ErrWeakSecret, bits, secretBits, makeOne)
	}
	return v, nil
}

// period returns the shortest prefix of s whose repetition is s.
func period(s string) string {
	for n := 1; n <= len(s)/2; n++ {
		if s[n:] == s[:len(s)-n] {
			return s[:n]
		}
	}
	return s
}

// entropy returns the Shannon entropy of all bytes of s in bits: an upper bound of the work to guess s, given the count
// of each byte.
func entropy(s string) float64 {
	var count [256]int
	for i := range len(s) {
		count[s[i]]++
	}
	bits := 0.0
	for _, n := range count {
		if n > 0 {
			bits -= float64(n) * math.Log2(float64(n)/float64(len(s)))
		}
	}
	return bits
}

// Contexts of HKDF (RFC 5869). With another context, the same secret makes another cluster.
const (
	saltSecure   = "darter cluster v1"
	saltInsecure = "darter cluster without a secret v1"
	infoCA       = "certificate authority ed25519"
	infoGossip   = "gossip aes-256"
	infoNames    = "names of files hmac-sha256"
)

// derive derives n bytes from the secret for one purpose. Without a secret, it derives them from a public constant with
// another salt, so that no secret gives the same bytes.
func derive(clusterSecret, info string, n int) []byte {
	salt := saltSecure
	if clusterSecret == "" {
		salt, clusterSecret = saltInsecure, "public"
	}
	key, err := hkdf.Key(sha256.New, []byte(clusterSecret), []byte(salt), info, n)
	if err != nil {
		// HKDF only refuses outputs of more than 255 hashes; these are constants of one hash.
		panic("identity: deriving a key: " + err.Error())
	}
	return key
}

func deriveGossipKey(clusterSecret string) secret.String {
	return secret.String(derive(clusterSecret, infoGossip, 32))
}

// authority issues certificates.
type authority struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

// fingerprint tells secrets apart for people. It is no secret: it is in the name of the authority's certificate.
func (a *authority) fingerprint() string { return fmt.Sprintf("%x", a.certificate.SubjectKeyId[:6]) }

// equal reports whether two authorities come from one secret.
func (a *authority) equal(b *authority) bool { return a.certificate.Equal(b.certificate) }

// deriveAuthority computes the certificate authority of a secret. Every field is fixed and Ed25519 is
// deterministic (RFC 8032), so every member computes the same certificate.
func deriveAuthority(clusterSecret string) (authority, error) {
	key := ed25519.NewKeyFromSeed(derive(clusterSecret, infoCA, ed25519.SeedSize))
	name := sha256.Sum256(key.Public().(ed25519.PublicKey))
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append([]byte{1}, name[:15]...)),
		// The name depends on the secret, so that people can compare two hosts.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("darter cluster %x", name[:6])},
		SubjectKeyId:          name[:20],
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return authority{}, fmt.Errorf("making the cluster's certificate authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("reading the cluster's certificate authority: %w", err)
	}
	return authority{certificate: certificate, key: key}, nil
}

// issue makes a fresh Ed25519 key and a certificate for it.
func (a *authority) issue(template *x509.Certificate) (*tls.Certificate, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing a key: %w", err)
	}
	return a.certify(template, key)
}

// certify makes a certificate for a key, with a random serial number.
func (a *authority) certify(template *x509.Certificate, key ed25519.PrivateKey) (*tls.Certificate, error) {
	der, err := a.sign(template, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// sign makes the DER of a certificate. CreateCertificate chooses a random serial number (RFC 5280 §4.1.2.2: positive,
// at most 20 bytes) if none is given.
func (a *authority) sign(template *x509.Certificate, public ed25519.PublicKey) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
}

// renewing is a certificate that the first call after half of its life renews, and the first one after a change of the
// first secret. It uses no timer, so a host that slept or whose clock was set has a valid certificate at the next call.
type renewing struct {
	id    *Identity
	life  time.Duration
	issue func(by *authority, now time.Time) (*tls.Certificate, error)

	// mu is held while a certificate is made, some 100 µs.
	mu      sync.Mutex
	current *tls.Certificate
	by      *authority // of current
}

// newRenewing makes the first certificate.
func newRenewing(id *Identity, life time.Duration,
	issue func(*authority, time.Time) (*tls.Certificate, error)) (*renewing, error) {
	by := id.trusted().first()
	first, err := issue(by, id.now())
	if err != nil {
		return nil, err
	}
	return &renewing{id: id, life: life, issue: issue, current: first, by: by}, nil
}

// get returns the certificate and the authority that issued it.
func (r *renewing) get() (*tls.Certificate, *authority) {
	now := r.id.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	leaf, by := r.current.Leaf, r.id.trusted().first()
	if by != r.by || now.After(leaf.NotAfter.Add(-r.life/2)) || now.Before(leaf.NotBefore) {
		// After an error the old certificate stays, which may still be valid; the other end checks it.
		if c, err := r.issue(by, now); err == nil {
			r.current, r.by = c, by
		}
	}
	return r.current, r.by
}
