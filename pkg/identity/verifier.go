package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Bounds on a Verifier's input from the network.
const (
	// CertificateMax is the longest DER certificate, in bytes; real ones have some 350.
	CertificateMax = 4096
	// KeysMax bounds the coordinators' keys that a Verifier remembers; it forgets the least recently used one. A
	// cluster has one key per start of a coordinator.
	KeysMax = 1024
)

// The errors of a Verifier.
var (
	// ErrCertificate: no certificate that this cluster's authority issued, or a broken one.
	ErrCertificate = errors.New("invalid coordinator certificate")
	// ErrWrongRole: a certificate of this cluster, but not a coordinator's.
	ErrWrongRole = errors.New("certificate is not a coordinator's")
	// ErrExpired: a coordinator's certificate outside its time.
	ErrExpired = errors.New("coordinator certificate is outside its time")
	// ErrUnknownKey: no certificate of that key was added, or the Verifier has forgotten it: request the certificate
	// and add it.
	ErrUnknownKey = errors.New("unknown signing key")
	// ErrBadSignature: the key did not sign this. The sender is malicious or faulty.
	ErrBadSignature = errors.New("bad signature")
)

// Verifier checks the signatures of coordinators. Safe for concurrent use.
type Verifier struct {
	roots *x509.CertPool
	now   func() time.Time

	// mu is held to find or store a key, never during a check of a signature.
	mu           sync.Mutex
	keys         *simplelru.LRU[piece.KeyID, *signingKey]
	certificates map[[sha256.Size]byte]piece.KeyID // of keys, by the SHA-256 of their certificate
}

// signingKey is a coordinator's key under its latest certificate; it is never changed.
type signingKey struct {
	id                  piece.KeyID
	public              ed25519.PublicKey
	certificate         [sha256.Size]byte // SHA-256 of its DER
	notBefore, notAfter time.Time
}

// valid reports whether the key's certificate is valid now.
func (k *signingKey) valid(now time.Time) error {
	if now.Before(k.notBefore) || now.After(k.notAfter) {
		return fmt.Errorf("%w: key %s is good from %s to %s", ErrExpired, k.id,
			k.notBefore.Format(time.DateOnly), k.notAfter.Format(time.DateOnly))
	}
	return nil
}

// NewVerifier returns a Verifier that accepts the coordinators of i's cluster.
func NewVerifier(i *Identity) *Verifier {
	v := &Verifier{roots: i.coordinators.roots, now: i.now, certificates: make(map[[sha256.Size]byte]piece.KeyID)}
	forget := func(_ piece.KeyID, k *signingKey) { delete(v.certificates, k.certificate) }
	v.keys, _ = simplelru.NewLRU(KeysMax, forget) // it only fails for a size below 1
	return v
}

// AddCertificate adds the key of a certificate, so that its signatures can be verified. der comes from the network and
// is not kept. A known certificate costs one hash. The error wraps [ErrCertificate], [ErrWrongRole] or [ErrExpired].
func (v *Verifier) AddCertificate(der []byte) (piece.KeyID, error) {
	if len(der) > CertificateMax {
		return piece.KeyID{}, fmt.Errorf("%w: it has %d bytes, more than %d", ErrCertificate, len(der), CertificateMax)
	}
	sum := sha256.Sum256(der)
	now := v.now()
	if k := v.byCertificate(sum); k != nil {
		if err := k.valid(now); err != nil {
			return piece.KeyID{}, err
		}
		return k.id, nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return piece.KeyID{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	public, ok := c.PublicKey.(ed25519.PublicKey)
	if !ok || c.IsCA {
		return piece.KeyID{}, fmt.Errorf("%w: key of type %s, authority %t", ErrCertificate,
			c.PublicKeyAlgorithm, c.IsCA)
	}
	k := &signingKey{id: keyID(public), public: public, certificate: sum, notBefore: c.NotBefore, notAfter: c.NotAfter}
	// The role is checked after the chain, so that the error for a stranger's certificate does not depend on its
	// content. The time is checked separately, so that an old certificate does not count as a forged one.
	_, err = c.Verify(x509.VerifyOptions{
		Roots: v.roots, CurrentTime: c.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return piece.KeyID{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if !isCoordinator(c) {
		return piece.KeyID{}, fmt.Errorf("%w: key %s", ErrWrongRole, k.id)
	}
	if err := k.valid(now); err != nil {
		return piece.KeyID{}, err
	}
	if err := v.keep(k, now); err != nil {
		return piece.KeyID{}, err
	}
	return k.id, nil
}

// byID returns a key and counts it as used, or nil.
func (v *Verifier) byID(id piece.KeyID) *signingKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, _ := v.keys.Get(id)
	return k
}

// byCertificate returns the key of a certificate and counts it as used, or nil.
func (v *Verifier) byCertificate(sum [sha256.Size]byte) *signingKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	id, known := v.certificates[sum]
	if !known {
		return nil
	}
	k, _ := v.keys.Get(id)
	return k
}

// keep stores a key whose certificate was verified and is valid now. Of two certificates of one key it keeps the one
// that ends later, unless that one is not valid now: after a clock was set back, a certificate can begin in the future.
func (v *Verifier) keep(k *signingKey, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, known := v.keys.Get(k.id); known {
		if !old.public.Equal(k.public) {
			return fmt.Errorf("%w: another key is known as %s already", ErrCertificate, k.id)
		}
		if !k.notAfter.After(old.notAfter) && old.valid(now) == nil {
			return nil
		}
		delete(v.certificates, old.certificate)
	}
	v.certificates[k.certificate] = k.id
	v.keys.Add(k.id, k)
	return nil
}

// isCoordinator reports whether a certificate has the role. The caller has verified the chain.
func isCoordinator(c *x509.Certificate) bool {
	if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) || c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return false
	}
	for _, u := range c.URIs {
		if u.String() == coordinatorURI {
			return true
		}
	}
	return false
}

// VerifyRun checks that a known coordinator signed exactly this run for exactly this task.
// The error wraps [piece.ErrInvalidMetadata], [ErrUnknownKey], [ErrExpired] or
// [ErrBadSignature].
func (v *Verifier) VerifyRun(id task.ID, r piece.DigestRun) error {
	if err := r.Check(); err != nil {
		return fmt.Errorf("verifying a run of task %s: %w", id.Short(), err)
	}
	if err := v.verify(r.Key, r.SigningBytes(id), r.Signature); err != nil {
		return fmt.Errorf("verifying the run of pieces [%d, %d) of task %s: %w", r.First, r.End(), id.Short(), err)
	}
	return nil
}

// VerifyRevocation checks that a known coordinator revoked this epoch of this task. The
// error wraps [ErrUnknownKey], [ErrExpired] or [ErrBadSignature].
func (v *Verifier) VerifyRevocation(id task.ID, r piece.Revocation) error {
	if err := v.verify(r.Key, r.SigningBytes(id), r.Signature); err != nil {
		return fmt.Errorf("verifying the revocation of task %s: %w", id.Short(), err)
	}
	return nil
}

func (v *Verifier) verify(key piece.KeyID, message, signature []byte) error {
	k := v.byID(key)
	if k == nil {
		return fmt.Errorf("%w %s", ErrUnknownKey, key)
	}
	if err := k.valid(v.now()); err != nil {
		return err
	}
	if !ed25519.Verify(k.public, message, signature) {
		return fmt.Errorf("%w by key %s", ErrBadSignature, key)
	}
	return nil
}
