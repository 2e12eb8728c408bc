package identity

import (
	"bytes"
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
	id  *Identity
	now func() time.Time

	// mu is held to find or store a key, never during a check of a signature.
	mu           sync.Mutex
	keys         *simplelru.LRU[piece.KeyID, *signingKey]
	certificates map[[sha256.Size]byte]piece.KeyID // of keys, by the SHA-256 of their certificate
}

// signingKey is a coordinator's key under its latest certificate; it is never changed.
type signingKey struct {
	id                  piece.KeyID
	public              ed25519.PublicKey
	der                 []byte
	certificate         [sha256.Size]byte // SHA-256 of der
	notBefore, notAfter time.Time
	// by is the authority that issued der; vouched is the one in force that vouches for the key: by, or the first one
	// of a later time at which by was accepted.
	by, vouched *authority
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
	v := &Verifier{id: i, now: i.now, certificates: make(map[[sha256.Size]byte]piece.KeyID)}
	forget := func(_ piece.KeyID, k *signingKey) { delete(v.certificates, k.certificate) }
	v.keys, _ = simplelru.NewLRU(KeysMax, forget) // it only fails for a size below 1
	i.changing.mu.Lock()
	defer i.changing.mu.Unlock()
	i.changing.verifiers = append(i.changing.verifiers, v)
	return v
}

// follow adapts the known keys to new secrets: the first new one vouches for keys for which one that is still accepted
// vouched, and other keys are forgotten.
func (v *Verifier) follow(now *secrets) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range v.keys.Keys() { // the least recently used one first, so that the order stays
		k, _ := v.keys.Get(id)
		if !slices.Contains(now.all, k.vouched) {
			v.keys.Remove(id)
			continue
		}
		next := *k
		next.vouched = now.first()
		v.keys.Add(id, &next)
	}
}

// trusts reports whether a secret in force vouches for a key. One that was added while the secrets changed can lack it.
func (v *Verifier) trusts(k *signingKey) bool { return slices.Contains(v.id.trusted().all, k.vouched) }

// Current returns a certificate of the same key under the first secret, with the same time, for a certificate that any
// accepted secret or a known key proves. So a host that got a certificate before a change of the secret passes on one
// that hosts accept after the change. It returns der itself if it already is one, or if nothing proves it: the receiver
// refuses it then.
func (v *Verifier) Current(der []byte) []byte {
	k := v.byCertificate(sha256.Sum256(der))
	if k == nil && len(der) <= CertificateMax {
		// Another certificate of the same key may be known, even if nothing proves this one any more.
		key, err := v.AddCertificate(der)
		if c, parsed := x509.ParseCertificate(der); err != nil && parsed == nil {
			if public, ok := c.PublicKey.(ed25519.PublicKey); ok {
				key = keyID(public)
			}
		}
		k = v.byID(key)
	}
	first := v.id.trusted().first()
	switch {
	case k == nil || k.vouched != first:
		return der // forgotten, or the secrets change at this moment
	case k.by == first:
		return k.der
	}
	fresh, err := first.sign(coordinatorTemplate(k.notBefore, k.notAfter), k.public)
	if err != nil {
		return der
	}
	if _, err := v.AddCertificate(fresh); err != nil {
		return der
	}
	return fresh
}

// AddCertificate adds the key of a certificate, so that its signatures can be verified. der comes from the network,
// and the caller may change it afterwards. A known certificate costs one hash. The error wraps [ErrCertificate],
// [ErrWrongRole] or [ErrExpired].
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
	k := &signingKey{id: keyID(public), public: public, der: bytes.Clone(der), certificate: sum,
		notBefore: c.NotBefore, notAfter: c.NotAfter}
	trusted := v.id.trusted()
	// The role is checked after the chain, so that the error for a stranger's certificate does not depend on its
	// content. The time is checked separately, so that an old certificate does not count as a forged one.
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: trusted.roots, CurrentTime: c.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
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
	k.by = trusted.by(chains)
	if k.by == nil {
		return piece.KeyID{}, fmt.Errorf("%w: its chain ends at no cluster secret", ErrCertificate)
	}
	k.vouched = trusted.first()
	if err := v.keep(k, now); err != nil {
		return piece.KeyID{}, err
	}
	return k.id, nil
}

// byID returns a key and counts it as used, or nil.
func (v *Verifier) byID(id piece.KeyID) *signingKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k, known := v.keys.Get(id); known && v.trusts(k) {
		return k
	}
	return nil
}

// byCertificate returns the key of a certificate and counts it as used, or nil.
func (v *Verifier) byCertificate(sum [sha256.Size]byte) *signingKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	id, known := v.certificates[sum]
	if !known {
		return nil
	}
	if k, _ := v.keys.Get(id); v.trusts(k) {
		return k
	}
	return nil
}

// keep stores a key whose certificate was verified and is valid now. Of two certificates of one key it keeps the one
// under the first secret, and of two such the one that ends later, unless that one is not valid now: after a clock was
// set back, a certificate can begin in the future.
func (v *Verifier) keep(k *signingKey, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old, known := v.keys.Get(k.id); known {
		if !old.public.Equal(k.public) {
			return fmt.Errorf("%w: another key is known as %s already", ErrCertificate, k.id)
		}
		first := v.id.trusted().first()
		better := k.notAfter.After(old.notAfter)
		if (k.by == first) != (old.by == first) {
			better = k.by == first
		}
		if !better && old.valid(now) == nil && v.trusts(old) {
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
