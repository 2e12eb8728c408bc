package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"time"
)

// TLSCertificate is what a thief of a signing key would show in a handshake.
func TLSCertificate(s *Signer) tls.Certificate {
	c, _ := s.certificate.get()
	return *c
}

// MemberWith issues a member certificate of the host's ID for a key that need not be its own.
func MemberWith(i *Identity, key ed25519.PrivateKey) (tls.Certificate, error) {
	c, err := i.trusted().first().certify(&x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{memberName},
		URIs:        []*url.URL{{Scheme: uriScheme, Host: "host", Path: "/" + string(i.host)}},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return *c, nil
}

// Nameless issues a member certificate without a host.
func Nameless(i *Identity) (tls.Certificate, error) {
	c, err := i.trusted().first().issue(&x509.Certificate{
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{memberName},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return *c, err
}

// SignerWith makes a signer whose certificate was edited before it was issued.
func SignerWith(i *Identity, edit func(*x509.Certificate)) ([]byte, error) {
	template := &x509.Certificate{
		NotBefore: i.now().Add(-ClockSkew), NotAfter: i.now().Add(SignerLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	edit(template)
	c, err := i.trusted().first().issue(template)
	if err != nil {
		return nil, err
	}
	return c.Certificate[0], nil
}

// MemberCertificate is the DER of the host's own certificate.
func MemberCertificate(i *Identity) []byte {
	c, _ := i.leaf.get()
	return c.Certificate[0]
}

// Keys are the bytes that nothing may print.
func Keys(i *Identity, s *Signer) [][]byte {
	keys := [][]byte{i.trusted().first().key.Seed(), s.key.Seed()}
	for _, k := range i.GossipKeys() {
		keys = append(keys, []byte(k.Reveal()))
	}
	return keys
}

// Known is how many keys a verifier remembers.
func (v *Verifier) Known() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.certificates) != v.keys.Len() {
		return -1
	}
	return v.keys.Len()
}
