package node

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/darter-io/darter/pkg/config"
)

// Certificate is the certificate of a server for clients that are no members, from files of the operator. The zero
// value holds none. Safe for concurrent use.
type Certificate struct {
	now atomic.Pointer[tls.Certificate]
}

// Read reads a certificate; use makes it that of connections from then on. With empty names, use changes nothing.
func (c *Certificate) Read(certFile, keyFile string) (use func(), err error) {
	if certFile == "" {
		return func() {}, nil
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate %s with the key %s: %w", certFile, keyFile, err)
	}
	return func() { c.now.Store(&pair) }, nil
}

// ListenFor is [Node.Listen] for a server with a certificate; without a certificate it is plain HTTP.
func (n *Node) ListenFor(key string, a config.Address, c *Certificate) (net.Listener, error) {
	l, err := n.Listen(key, a)
	if err != nil || c.now.Load() == nil {
		return l, err
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now.Load(), nil },
	}), nil
}
