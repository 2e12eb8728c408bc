package identity_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
)

const (
	ours   = secret.String("7d1c5b0e9a3f4286b1d0c7e85f9a2b63")
	theirs = secret.String("f00dfacecafe0123456789abcdef9876")
)

// patience bounds a handshake on a loaded machine: each wait ends with an event.
const patience = time.Minute

func newIdentity(t testing.TB, s secret.String, edit ...func(*identity.Config)) *identity.Identity {
	t.Helper()
	cfg := identity.Config{Secret: s, HostID: host.NewID()}
	for _, e := range edit {
		e(&cfg)
	}
	id, err := identity.New(cfg)
	require.NoError(t, err)
	return id
}

func accepting(others ...secret.String) func(*identity.Config) {
	return func(c *identity.Config) {
		for _, o := range others {
			c.Secret += "\n" + o
		}
	}
}

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
func (c *clock) use(cfg *identity.Config) { cfg.Now = c.Now }

func newClock() *clock { return &clock{now: time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)} }

// talk lets client dial server over loopback: one byte each way. Both ends' errors and the
// hosts that they saw come back.
type talked struct {
	client, server         error
	sawServer, sawClient   host.ID
	clientConn, serverConn net.Conn
}

func talk(t *testing.T, server, client *identity.Identity) talked {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := server.WrapListener(raw)
	defer l.Close()
	var r talked
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			r.server = err
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		var b [1]byte
		if _, r.server = io.ReadFull(c, b[:]); r.server != nil {
			return
		}
		r.serverConn = c
		r.sawClient, _ = identity.HostOf(c)
		_, r.server = c.Write(b[:])
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var d net.Dialer
	c, err := client.WrapDialer(d.DialContext)(ctx, "tcp", raw.Addr().String())
	if err != nil {
		r.client = err
		<-done
		return r
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	r.clientConn = c
	if _, r.client = c.Write([]byte{7}); r.client == nil {
		var b [1]byte
		_, r.client = io.ReadFull(c, b[:])
	}
	c.Close()
	<-done
	r.sawServer, _ = identity.HostOf(c)
	return r
}

// Members with one secret connect and know each other's IDs.
func TestMembers(t *testing.T) {
	a, b := newIdentity(t, ours), newIdentity(t, "\t"+ours+"\n")
	r := talk(t, a, b)
	require.NoError(t, r.client)
	require.NoError(t, r.server)
	assert.Equal(t, a.HostID(), r.sawServer)
	assert.Equal(t, b.HostID(), r.sawClient)
	assert.Equal(t, uint16(tls.VersionTLS13), r.clientConn.(*tls.Conn).ConnectionState().Version)
}

// The dialling side refuses a member with another secret and says why.
func TestOtherSecret(t *testing.T) {
	r := talk(t, newIdentity(t, ours), newIdentity(t, theirs))
	require.ErrorIs(t, r.client, identity.ErrNotMember)
	assert.ErrorContains(t, r.client, "another cluster secret")
	require.Error(t, r.server)
}

// lenient dials with b's certificate and accepts any server certificate, as a stranger does.
func lenient(t *testing.T, l net.Listener, config *tls.Config) error {
	t.Helper()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
		}
		accepted <- err
	}()
	config.InsecureSkipVerify = true
	config.VerifyConnection = nil
	c, err := tls.Dial("tcp", l.Addr().String(), config)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte{7})
		_, err = c.Read(make([]byte, 1))
	}
	require.Error(t, err)
	return <-accepted
}

// A server refuses strangers that accept any certificate.
func TestServerRefusesStrangers(t *testing.T) {
	member := newIdentity(t, ours)
	stranger := newIdentity(t, theirs)
	signer, err := identity.NewSigner(member)
	require.NoError(t, err)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := member.WrapListener(raw)
	defer l.Close()

	assert.ErrorContains(t, lenient(t, l, stranger.ClientTLS()), "unknown authority", "a certificate of another secret")
	assert.ErrorContains(t, lenient(t, l, &tls.Config{}), "didn't provide a certificate", "no certificate")
	old := member.ClientTLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	assert.ErrorContains(t, lenient(t, l, old), "version", "TLS 1.2")
	assert.ErrorContains(t, lenient(t, l,
		&tls.Config{Certificates: []tls.Certificate{identity.TLSCertificate(signer)}}),
		"incompatible key usage", "a coordinator's signing key opens no connection")
	nameless, err := identity.Nameless(member)
	require.NoError(t, err)
	assert.ErrorIs(t, lenient(t, l, &tls.Config{Certificates: []tls.Certificate{nameless}}), identity.ErrNotMember,
		"a member certificate that names no host")
}

func TestPlainTCPGetsNothingFromATLSPort(t *testing.T) {
	member := newIdentity(t, ours)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := member.WrapListener(raw)
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		accepted <- err
	}()
	c, err := net.Dial("tcp", raw.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	_, err = c.Write(append([]byte("\x13BitTorrent protocol"), make([]byte, 48)...))
	require.NoError(t, err)
	got, _ := io.ReadAll(c)
	assert.NotContains(t, string(got), "BitTorrent")
	assert.LessOrEqual(t, len(got), 7, "a TLS alert at most")
	var header tls.RecordHeaderError
	require.ErrorAs(t, <-accepted, &header)
}

// The error of dialling a plain port says that it has no secret.
func TestPlainPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	var d net.Dialer
	_, err = newIdentity(t, ours).WrapDialer(d.DialContext)(t.Context(), "tcp", l.Addr().String())
	require.ErrorIs(t, err, identity.ErrNotMember)
	assert.ErrorContains(t, err, "speaks no TLS")
	assert.ErrorContains(t, err, l.Addr().String())
}

// A member that does not answer the handshake is given up in time.
func TestHandshakeTimeout(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go io.Copy(io.Discard, b)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := newIdentity(t, ours).WrapDialer(func(context.Context, string, string) (net.Conn, error) {
		return a, nil
	})(ctx, "tcp", "silent:1")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestTheAnnounceAPIRunsOverTheSameTLS(t *testing.T) {
	a, b := newIdentity(t, ours), newIdentity(t, ours)
	saw := make(chan string, 1)
	s := &httptest.Server{
		Listener: func() net.Listener {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			return a.WrapListener(l)
		}(),
		Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			saw <- r.TLS.PeerCertificates[0].URIs[0].String()
		})},
	}
	s.Start()
	defer s.Close()
	address := s.Listener.Addr().String()

	byDialer := &http.Client{Transport: &http.Transport{DialTLSContext: b.WrapDialer((&net.Dialer{}).DialContext)}}
	byConfig := &http.Client{Transport: &http.Transport{TLSClientConfig: b.ClientTLS()}}
	for _, client := range []*http.Client{byDialer, byConfig} {
		resp, err := client.Get("https://" + address + "/")
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, "darter://host/"+string(b.HostID()), <-saw)
		client.CloseIdleConnections()
	}
}

// Without a secret there is no TLS, and no host is known.
func TestNoSecret(t *testing.T) {
	a, b := newIdentity(t, ""), newIdentity(t, "")
	assert.False(t, a.Secure())
	assert.Nil(t, a.ServerTLS())
	assert.Nil(t, a.ClientTLS())
	assert.Empty(t, a.GossipKeys())
	r := talk(t, a, b)
	require.NoError(t, r.client)
	require.NoError(t, r.server)
	_, err := identity.HostOf(r.clientConn)
	require.ErrorIs(t, err, identity.ErrNotMember)
}

// Every member derives the same authority and gossip key.
func TestDerivation(t *testing.T) {
	a, b, c := newIdentity(t, ours), newIdentity(t, ours), newIdentity(t, theirs)
	assert.Equal(t, a.Authority(), b.Authority())
	assert.NotEqual(t, a.Authority(), c.Authority())
	assert.Equal(t, a.GossipKeys(), b.GossipKeys())
	require.Len(t, a.GossipKeys(), 1)
	assert.Len(t, a.GossipKeys()[0].Reveal(), 32)
	assert.NotEqual(t, a.GossipKeys(), c.GossipKeys())
	// Another version of this program must compute the same, or clusters split when they
	// are upgraded: RFC 5869 computed by another implementation.
	assert.Equal(t, "40b16d5bb5852d912d676e6864b60b6f1d192974348bb6639e1bebdee7836214",
		hex.EncodeToString([]byte(a.GossipKeys()[0].Reveal())))
	ca, err := x509.ParseCertificate(a.Authority())
	require.NoError(t, err)
	assert.Equal(t, "darter cluster d9ad6435ad09", ca.Subject.CommonName)
}

// A secret changes without an interruption.
func TestSecretChange(t *testing.T) {
	old, middle, after, gone := newIdentity(t, ours, accepting(theirs)), newIdentity(t, theirs, accepting(ours)),
		newIdentity(t, theirs), newIdentity(t, ours)
	for _, pair := range [][2]*identity.Identity{{old, middle}, {middle, old}, {middle, after}, {after, middle}} {
		r := talk(t, pair[0], pair[1])
		require.NoError(t, r.client)
		require.NoError(t, r.server)
	}
	require.ErrorIs(t, talk(t, after, gone).client, identity.ErrNotMember)
	assert.Equal(t, []secret.String{old.GossipKeys()[1], old.GossipKeys()[0]}, middle.GossipKeys())

	signer, err := identity.NewSigner(gone)
	require.NoError(t, err)
	_, err = identity.NewVerifier(middle).AddCertificate(signer.Certificate())
	require.NoError(t, err)
	_, err = identity.NewVerifier(after).AddCertificate(signer.Certificate())
	require.ErrorIs(t, err, identity.ErrCertificate)
}

// A member certificate is renewed while the host runs.
func TestRenewal(t *testing.T) {
	now := newClock()
	a, b := newIdentity(t, ours, now.use), newIdentity(t, ours, now.use)
	first := talk(t, a, b)
	require.NoError(t, first.server)
	now.add(identity.MemberLife / 4)
	second := talk(t, a, b)
	require.NoError(t, second.server)
	assert.Equal(t, peerSerial(first), peerSerial(second), "not before its time")
	for range 5 {
		now.add(identity.MemberLife)
		r := talk(t, a, b)
		require.NoError(t, r.client)
		require.NoError(t, r.server)
		assert.NotEqual(t, peerSerial(first), peerSerial(r))
	}
	now.add(-300 * 24 * time.Hour)
	require.NoError(t, talk(t, a, b).client, "a clock that was wrong and is set right does no harm")
}

func peerSerial(r talked) string {
	return r.clientConn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func TestClocksMayDifferByADay(t *testing.T) {
	early, late := newClock(), newClock()
	late.add(identity.ClockSkew - time.Minute)
	a, b := newIdentity(t, ours, early.use), newIdentity(t, ours, late.use)
	require.NoError(t, talk(t, a, b).client)
	require.NoError(t, talk(t, b, a).client)
	late.add(2 * time.Hour)
	b = newIdentity(t, ours, late.use)
	r := talk(t, b, a)
	require.Error(t, r.client)
	assert.ErrorContains(t, r.client, "clock")
}

// The refusal of a secret that could be guessed says how to make one.
func TestWeakSecret(t *testing.T) {
	for name, weak := range map[string]string{
		"short":        "hunter2",
		"31 bytes":     strings.Repeat("a1b2c3d4", 4)[:31],
		"one letter":   strings.Repeat("a", 64),
		"a long word":  strings.Repeat("password", 8),
		"few letters":  strings.Repeat("aaaaaaab", 3) + "babababa",
		"white space":  " \n\t",
		"a whole file": strings.Repeat("7d1c5b0e9a3f4286", 1000),
	} {
		_, err := identity.New(identity.Config{Secret: secret.String(weak), HostID: host.NewID()})
		require.ErrorIs(t, err, identity.ErrWeakSecret, name)
		assert.NotContains(t, err.Error(), weak, name)
		if name != "white space" {
			_, err = identity.New(identity.Config{Secret: ours + "\n" + secret.String(weak), HostID: host.NewID()})
			require.ErrorIs(t, err, identity.ErrWeakSecret, name)
			assert.ErrorContains(t, err, "line 2 of 2", name)
			assert.NotContains(t, err.Error(), weak, name)
		}
	}
	_, err := identity.New(identity.Config{Secret: "hunter2", HostID: host.NewID()})
	assert.ErrorContains(t, err, "openssl rand -hex 32")
	for _, n := range []int{16, 24, 32} {
		for range 20 {
			raw := make([]byte, n)
			rand.Read(raw)
			newIdentity(t, secret.String(hex.EncodeToString(raw)))
			if n >= 24 {
				newIdentity(t, secret.String(base64.StdEncoding.EncodeToString(raw)))
			}
		}
	}
}

func TestAHostWithoutAnIDIsRefused(t *testing.T) {
	_, err := identity.New(identity.Config{Secret: ours, HostID: "node-1"})
	require.ErrorIs(t, err, host.ErrInvalidID)
}

// Without a secret a host listens on loopback only.
func TestCheckListen(t *testing.T) {
	open, shut := []string{"127.0.0.1:65002", "127.8.8.8:0", "[::1]:65002", "localhost:65002", "[::ffff:127.0.0.1]:1"},
		[]string{":65002", "0.0.0.0:65002", "[::]:65002", "10.0.0.1:65002", "node-1:65002", "localhost.example:1",
			"127.0.0.1.example:1", "[fe80::1%lo]:1", "[::ffff:10.0.0.1]:1", "127.0.0.1", "", "127.1:80"}
	alone := newIdentity(t, "")
	for _, a := range open {
		assert.NoError(t, alone.CheckListen(a), a)
	}
	daring := newIdentity(t, "", func(c *identity.Config) { c.Insecure = true })
	for _, a := range shut {
		err := alone.CheckListen(a)
		require.ErrorIs(t, err, identity.ErrInsecureListen, a)
		assert.ErrorContains(t, err, "--insecure")
		assert.ErrorContains(t, err, "cluster secret")
		assert.NoError(t, newIdentity(t, ours).CheckListen(a), a)
		assert.NoError(t, daring.CheckListen(a), a)
	}
}

func TestNoKeyIsEverPrinted(t *testing.T) {
	id := newIdentity(t, ours)
	signer, err := identity.NewSigner(id)
	require.NoError(t, err)
	var logged bytes.Buffer
	for _, h := range []slog.Handler{slog.NewJSONHandler(&logged, nil), slog.NewTextHandler(&logged, nil)} {
		slog.New(h).Info("x", "id", id, "value", *id, "signer", signer, "keys", id.GossipKeys(),
			"config", identity.Config{Secret: ours + "\n" + theirs})
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		fmt.Fprintf(&logged, verb+verb+verb, id, signer, id.GossipKeys())
	}
	for _, k := range identity.Keys(id, signer) {
		for _, shape := range []string{string(k), hex.EncodeToString(k), fmt.Sprint(k),
			base64.StdEncoding.EncodeToString(k)} {
			assert.NotContains(t, logged.String(), shape)
		}
	}
	assert.NotContains(t, logged.String(), ours.Reveal())
	assert.NotContains(t, logged.String(), theirs.Reveal())
	assert.Contains(t, logged.String(), string(id.HostID()))
}

// An error is explained once.
func TestExplainOnce(t *testing.T) {
	once := identity.Explain(x509.UnknownAuthorityError{})
	require.ErrorIs(t, once, identity.ErrNotMember)
	assert.Equal(t, once, identity.Explain(once))
}

func TestExplainLeavesOtherErrorsAlone(t *testing.T) {
	err := errors.New("connection refused")
	assert.Equal(t, err, identity.Explain(err))
}

func BenchmarkHandshake(b *testing.B) {
	server, client := newIdentity(b, ours), newIdentity(b, ours)
	serverTLS, clientTLS := server.ServerTLS(), client.ClientTLS()
	b.ReportAllocs()
	for b.Loop() {
		raw1, raw2 := net.Pipe()
		s, c := tls.Server(raw1, serverTLS), tls.Client(raw2, clientTLS)
		done := make(chan error, 1)
		go func() { done <- s.Handshake() }()
		if err := errors.Join(c.Handshake(), <-done); err != nil {
			b.Fatal(err)
		}
		raw1.Close()
		raw2.Close()
	}
}
