package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/darter-io/darter/pkg/host"
)

// handshakeMax bounds the TLS handshake of a dialled member. It is below the five seconds for which a client may wait
// for a byte.
const handshakeMax = 3 * time.Second

// ServerTLS is the TLS of a listening member, or nil without a secret: TLS 1.3, and every
// client must show a member certificate of a secret that is in force at the handshake. Each call returns a
// configuration of its own.
func (i *Identity) ServerTLS() *tls.Config {
	if !i.secure {
		return nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13}
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		g, _ := hello.Conn.(*gather)
		now, own := i.baseTLS(g)
		now.NextProtos = c.NextProtos
		now.ClientAuth = tls.RequireAndVerifyClientCert
		now.ClientCAs = i.trusted().roots
		now.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own, nil }
		return now, nil
	}
	return c
}

// ClientTLS is the TLS of a dialling member, or nil without a secret: TLS 1.3, and the other end must be
// a member. The dialled address does not matter, since members move; a caller that wants one certain
// host compares [HostOf]. Each call returns a configuration of its own, with the secrets that are in force at the call.
func (i *Identity) ClientTLS() *tls.Config { return i.clientTLS(nil) }

func (i *Identity) clientTLS(g *gather) *tls.Config {
	if !i.secure {
		return nil
	}
	c, own := i.baseTLS(g)
	c.RootCAs = i.trusted().roots
	c.ServerName = memberName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own, nil }
	return c
}

// baseTLS returns the settings of both ends of one connection, and the certificate that this host shows on it. g counts
// the connection; nil counts its handshake only.
func (i *Identity) baseTLS(g *gather) (*tls.Config, *tls.Certificate) {
	own, shown := i.leaf.get()
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       i.now,
		// crypto/tls has verified the chain; this checks the host ID. It runs on every connection.
		VerifyConnection: func(s tls.ConnectionState) error {
			if _, err := memberOf(s); err != nil {
				return err
			}
			// A secret that was removed during the handshake proves nothing.
			by := i.trusted().by(s.VerifiedChains)
			if by == nil {
				return fmt.Errorf("%w: its cluster secret was removed here", ErrNotMember)
			}
			i.sessions.begin(g, shown.fingerprint(), by.fingerprint())
			return nil
		},
		// Every connection proves membership again, so no ticket can be stolen, and a new secret applies at once.
		// Tickets would save a fifth of a handshake, which costs both ends together some 1.5 ms of CPU once per pair
		// and task. A third of it is the hybrid key exchange, which protects recorded traffic against later decryption.
		SessionTicketsDisabled: true,
		// Small first records help pages in a browser; pieces need full records at once.
		DynamicRecordSizingDisabled: true,
	}, own
}

// memberOf returns the host ID of a verified connection's other end.
func memberOf(s tls.ConnectionState) (host.ID, error) {
	// Without verification there are no chains.
	if s.Version < tls.VersionTLS13 || len(s.VerifiedChains) == 0 || len(s.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: it showed no certificate of this cluster", ErrNotMember)
	}
	return hostOf(s.PeerCertificates[0])
}

// HostOf returns the host that the other end of a connection proved to be. The error wraps [ErrNotMember] if it proved
// none: the connection has no TLS, or its handshake is not complete.
func HostOf(c net.Conn) (host.ID, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return "", fmt.Errorf("%w: connection with %s has no TLS", ErrNotMember, c.RemoteAddr())
	}
	return memberOf(t.ConnectionState())
}

// HostOfTLS is [HostOf] for a server that has only the state of the connection.
func HostOfTLS(s tls.ConnectionState) (host.ID, error) { return memberOf(s) }

// WrapListener returns a listener whose connections prove membership; without a secret it returns l itself. Connections
// are *[tls.Conn], whose handshake begins at their first Read or Write, under the caller's deadline: Accept does not
// wait for it. protocols are the names (ALPN) that a dialling member may request; a member that requests none is
// accepted.
func (i *Identity) WrapListener(l net.Listener, protocols ...string) net.Listener {
	if !i.secure {
		return l
	}
	config := i.ServerTLS()
	config.NextProtos = protocols
	return tls.NewListener(gathering{l, i.sessions}, config)
}

// DialFunc opens a connection, as [net.Dialer.DialContext] does.
type DialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// WrapDialer returns a function whose connections prove membership; without a secret it returns dial itself. The result
// suits [net/http.Transport]'s DialTLSContext and the piece wire.
//
// In TLS 1.3, the dialling end completes its handshake before the other end has checked it: the first Read reports a
// refusal. protocols are the requested names (ALPN), for a listener that serves several.
func (i *Identity) WrapDialer(dial DialFunc, protocols ...string) DialFunc {
	if !i.secure {
		return dial
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		g := &gather{Conn: raw, of: i.sessions}
		config := i.clientTLS(g)
		config.NextProtos = protocols
		c := tls.Client(g, config)
		ctx, cancel := context.WithTimeout(ctx, handshakeMax)
		defer cancel()
		if err := c.HandshakeContext(ctx); err != nil {
			g.Close()
			return nil, fmt.Errorf("TLS handshake with member %s: %w", addr, explain(err, i.now()))
		}
		return c, nil
	}
}

// Explain adds the most likely remedy to a TLS error. It returns errors that do not concern membership unchanged.
func Explain(err error) error { return explain(err, time.Now()) }

// explain is Explain with the time of this host's clock.
func explain(err error, now time.Time) error {
	var unknown x509.UnknownAuthorityError
	var expired x509.CertificateInvalidError
	var notTLS tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.Is(err, ErrNotMember):
		return err // it holds its remedy already
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: %w: it has another cluster secret", ErrNotMember, err)
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		there := "is unknown"
		if c := expired.Cert; c != nil {
			there = "said " + stamp(c.NotBefore.Add(ClockSkew)) + " when it made its certificate, a day ago or less"
		}
		return fmt.Errorf("%w (this host's clock says %s, the other's %s: more than %v apart; set the clock that is "+
			"wrong, NTP)", err, stamp(now), there, ClockSkew)
	case refusedAsExpired(err):
		return fmt.Errorf("%w (the other side refused this host's certificate as outside its time: this host's clock "+
			"says %s, the other's must be more than %v apart; set the clock that is wrong, NTP)", err,
			stamp(now), ClockSkew)
	case errors.As(err, &notTLS):
		return fmt.Errorf("%w: %w: it speaks no TLS, so it has no cluster secret", ErrNotMember, err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("%w (the other side refused this host: are the cluster secrets the same?)", err)
	}
	return err
}
