package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// writeCertificate writes a certificate for 127.0.0.1 and its key, and returns their files and the serial number.
func writeCertificate(t *testing.T, serial int64) (certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"supernode.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return certFile, keyFile
}

func TestListenForStrangers(t *testing.T) {
	n, err := New(settings(t))
	require.NoError(t, err)
	defer n.Close()
	var c Certificate
	load := func(serial int64) {
		use, err := c.Read(writeCertificate(t, serial))
		require.NoError(t, err)
		use()
	}
	load(1)
	l, err := n.ListenFor("preheat.doors.listen", "127.0.0.1:0", &c)
	require.NoError(t, err)
	defer l.Close()
	shown := func() int64 {
		done := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				err = conn.(*tls.Conn).Handshake()
				conn.Close()
			}
			done <- err
		}()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, <-done)
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	assert.EqualValues(t, 1, shown())
	load(2)
	assert.EqualValues(t, 2, shown(), "the next connection gets the new certificate")
	certFile, _ := writeCertificate(t, 3)
	_, otherKey := writeCertificate(t, 4)
	_, err = c.Read(certFile, otherKey)
	require.ErrorContains(t, err, certFile)
	use, err := c.Read("", "")
	require.NoError(t, err)
	use()
	assert.EqualValues(t, 2, shown())
}
