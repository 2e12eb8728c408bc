package httpproxy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Lives of certificates, and how many are kept.
const (
	// AuthorityLife is the life of an authority that [NewAuthority] makes.
	AuthorityLife = 5 * 365 * 24 * time.Hour
	leafLife      = 7 * 24 * time.Hour
	leafRenew     = 24 * time.Hour
	leavesMax     = 1024
)

// Authority issues certificates in the names of registries, for clients that trust it by their operator's
// setting. Safe for concurrent use.
type Authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	leafKey     *ecdsa.PrivateKey
	now         func() time.Time

	// mu is held to find or issue a certificate, which takes less than a millisecond.
	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// LoadAuthority reads an authority's certificate and key, PEM files.
func LoadAuthority(certFile, keyFile string) (*Authority, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the proxy's authority: %w; make one with \"dfdaemon proxy-ca\"", err)
	}
	return newAuthority(pair, time.Now)
}

func newAuthority(pair tls.Certificate, now func() time.Time) (*Authority, error) {
	c := pair.Leaf
	signer, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, errors.New("the proxy's authority has a key that cannot sign: make one with \"dfdaemon proxy-ca\"")
	case !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil,
			errors.New("the proxy's authority is a certificate that may not issue others: make one with \"dfdaemon " +
				"proxy-ca\"")
	case now().After(c.NotAfter):
		return nil, fmt.Errorf("the proxy's authority ended on %s: make a new one with \"dfdaemon proxy-ca\"",
			c.NotAfter.Format(time.DateOnly))
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the proxy's certificates: %w", err)
	}
	return &Authority{certificate: c, key: signer, leafKey: leafKey, now: now, leaves: map[string]*tls.Certificate{}},
		nil
}

// Until is when the authority ends.
func (a *Authority) Until() time.Time { return a.certificate.NotAfter }

// For returns a certificate in the name of a host, without a port. The error says why the authority may not
// issue it.
func (a *Authority) For(host string) (*tls.Certificate, error) {
	host = strings.ToLower(strings.Trim(host, "[]"))
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.leaves[host]; ok && now.Before(c.Leaf.NotAfter.Add(-leafRenew)) {
		return c, nil
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: shorten(host)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.certificate.NotAfter) {
		template.NotAfter = a.certificate.NotAfter
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, a.leafKey.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", host, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issuing a certificate for %s: %w", host, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: now}); err != nil {
		return nil, fmt.Errorf("the proxy's authority may not issue a certificate for %s: %w; make one that may with "+
			"\"dfdaemon proxy-ca\"", host, err)
	}
	for old := range a.leaves {
		if len(a.leaves) < leavesMax {
			break
		}
		delete(a.leaves, old)
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.certificate.Raw}, PrivateKey: a.leafKey, Leaf: leaf}
	a.leaves[host] = c
	return c, nil
}

// shorten cuts a name to the longest common name of a certificate.
func shorten(name string) string { return name[:min(len(name), 64)] }

// NewAuthority makes an authority that can issue certificates for the given hosts alone (names or addresses,
// without ports), valid from now on for [AuthorityLife]. A thief of its key can pose as these registries
// towards the clients that trust it, and as no other host.
func NewAuthority(hosts []string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Darter proxy " + now.Format(time.DateOnly)},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(AuthorityLife), KeyUsage: x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, PermittedDNSDomainsCritical: true,
	}
	for _, h := range hosts {
		h = strings.Trim(h, "[]")
		if ip := net.ParseIP(h); ip != nil {
			bits := 128
			if v4 := ip.To4(); v4 != nil {
				ip, bits = v4, 32
			}
			template.PermittedIPRanges = append(template.PermittedIPRanges,
				&net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)})
			continue
		}
		template.PermittedDNSDomains = append(template.PermittedDNSDomains, h)
	}
	// A kind of name without a constraint would be unlimited.
	if template.PermittedIPRanges == nil {
		template.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
	if template.PermittedDNSDomains == nil {
		template.PermittedDNSDomains = []string{"none.invalid"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the proxy's authority: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the proxy's authority: %w", err)
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

// WriteAuthority writes an authority to two files that must not exist yet; only their owner may read the key.
func WriteAuthority(certFile, keyFile string, certPEM, keyPEM []byte) error {
	write := func(name string, mode os.FileMode, content []byte) error {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		return errors.Join(err, f.Close())
	}
	if err := write(keyFile, 0o600, keyPEM); err != nil {
		return fmt.Errorf("writing the authority's key: %w", err)
	}
	if err := write(certFile, 0o644, certPEM); err != nil {
		return errors.Join(fmt.Errorf("writing the authority's certificate: %w", err), os.Remove(keyFile))
	}
	return nil
}
