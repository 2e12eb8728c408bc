package identity_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
)

const keySecret = secret.String("7c1f0a94d2b85e6630fbc4ae19d7285b")

func keyed(t *testing.T) (*identity.Identity, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	id, err := identity.New(identity.Config{Secret: keySecret,
		HostID: host.OfKey(key.Public().(ed25519.PublicKey)), Key: key})
	require.NoError(t, err)
	return id, key
}

func TestAnIDOfAKeyIsThatKeysAlone(t *testing.T) {
	mine, key := keyed(t)
	_, other := keyed(t)
	_, err := identity.New(identity.Config{Secret: keySecret, HostID: mine.HostID(), Key: other})
	assert.ErrorIs(t, err, host.ErrInvalidID)
	_, err = identity.New(identity.Config{Secret: keySecret, HostID: mine.HostID()})
	assert.ErrorIs(t, err, host.ErrInvalidID, "a fresh key would not be believed")
	_, err = identity.New(identity.Config{Secret: keySecret, HostID: host.NewID(), Key: key})
	assert.ErrorIs(t, err, host.ErrInvalidID)

	// A holder of the cluster secret can write what it likes into a certificate.
	forged, err := identity.MemberWith(mine, other)
	require.NoError(t, err)
	victim, _ := keyed(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	wrapped := victim.WrapListener(l)
	defer wrapped.Close()
	for name, c := range map[string]struct {
		certificate tls.Certificate
		member      bool
	}{"its own key": {mustMember(t, mine, key), true}, "another key": {forged, false}} {
		t.Run(name, func(t *testing.T) {
			told := make(chan error, 1)
			go func() {
				conn, err := wrapped.Accept()
				if err == nil {
					err = conn.(*tls.Conn).HandshakeContext(context.Background())
					if id, e := identity.HostOf(conn); err == nil && e == nil {
						assert.Equal(t, mine.HostID(), id)
					}
					conn.Close()
				}
				told <- err
			}()
			config := mine.ClientTLS()
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &c.certificate, nil
			}
			conn, err := tls.Dial("tcp", l.Addr().String(), config)
			if err == nil {
				conn.Read(make([]byte, 1))
				conn.Close()
			}
			err = <-told
			if c.member {
				assert.NoError(t, err)
				return
			}
			assert.ErrorIs(t, err, identity.ErrNotMember)
			assert.ErrorContains(t, err, "another key")
		})
	}
}

func mustMember(t *testing.T, i *identity.Identity, key ed25519.PrivateKey) tls.Certificate {
	t.Helper()
	c, err := identity.MemberWith(i, key)
	require.NoError(t, err)
	return c
}
