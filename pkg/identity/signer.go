package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Signer signs for one coordinator, with a key that lives as long as the process. Safe for
// concurrent use. It prints and logs as its key's ID.
type Signer struct {
	key         ed25519.PrivateKey
	id          piece.KeyID
	certificate *renewing
}

// NewSigner generates a coordinator's signing key, which the cluster's authority certifies.
func NewSigner(i *Identity) (*Signer, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing a signing key: %w", err)
	}
	s := &Signer{key: key, id: keyID(public)}
	s.certificate, err = newRenewing(i, SignerLife, func(by *authority, now time.Time) (*tls.Certificate, error) {
		c, err := by.certify(coordinatorTemplate(now.Add(-ClockSkew), now.Add(SignerLife)), key)
		if err != nil {
			return nil, fmt.Errorf("issuing the certificate of signing key %s: %w", s.id, err)
		}
		return c, nil
	})
	return s, err
}

// coordinatorTemplate is the certificate of a coordinator's signing key.
func coordinatorTemplate(notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		NotBefore: notBefore,
		NotAfter:  notAfter,
		URIs:      []*url.URL{{Scheme: uriScheme, Host: "role", Path: "/coordinator"}},
		KeyUsage:  x509.KeyUsageDigitalSignature,
		// Neither client nor server: a signing key opens no connection.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
}

// KeyID returns the ID of the signer's key.
func (s *Signer) KeyID() piece.KeyID { return s.id }

// Certificate returns the DER certificate of the signer's key, which is sent with its runs. A long-running process
// renews it for the same key, also after a change of the first secret, so call Certificate for each message.
// The caller must not change the bytes.
func (s *Signer) Certificate() []byte {
	c, _ := s.certificate.get()
	return c.Certificate[0]
}

// SignRun sets r's Key and Signature.
func (s *Signer) SignRun(id task.ID, r *piece.DigestRun) {
	r.Key = s.id
	r.Signature = ed25519.Sign(s.key, r.SigningBytes(id))
}

// SignRevocation sets r's Key and Signature.
func (s *Signer) SignRevocation(id task.ID, r *piece.Revocation) {
	r.Key = s.id
	r.Signature = ed25519.Sign(s.key, r.SigningBytes(id))
}

// String is the key's ID, so that no verb prints the key.
func (s *Signer) String() string { return s.id.String() }

// Format keeps every verb from printing the key.
func (s *Signer) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// LogValue keeps log/slog from printing the key.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }

func keyID(public ed25519.PublicKey) (id piece.KeyID) {
	sum := sha256.Sum256(public)
	copy(id[:], sum[:])
	return id
}
