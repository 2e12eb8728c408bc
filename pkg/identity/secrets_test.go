package identity_test

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
)

// held is a connection between two members that stays open until the test ends.
type held struct{ server, client net.Conn }

// hold connects client to a listener of server, and exchanges one byte each way.
func hold(t *testing.T, l net.Listener, client *identity.Identity) (h held, err error) {
	t.Helper()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		var b [1]byte
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, b[:]); err == nil {
			_, _ = c.Write(b[:])
		} else {
			c.Close()
		}
		accepted <- c
	}()
	h.client, err = client.WrapDialer(new(net.Dialer).DialContext)(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		t.Cleanup(func() { h.client.Close() })
		var b [1]byte
		h.client.SetDeadline(time.Now().Add(patience))
		_, err = h.client.Write([]byte{1})
		if err == nil {
			_, err = io.ReadFull(h.client, b[:])
		}
	}
	h.server = <-accepted
	if h.server != nil {
		t.Cleanup(func() { h.server.Close() })
	}
	return h, err
}

func listen(t *testing.T, id *identity.Identity) net.Listener {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := id.WrapListener(raw)
	t.Cleanup(func() { l.Close() })
	return l
}

func set(t *testing.T, id *identity.Identity, text secret.String) {
	t.Helper()
	changed, err := id.SetSecret(text)
	require.NoError(t, err)
	require.True(t, changed)
}

// The steps of a change of the secret, from A to B.
var changeSteps = []secret.String{ours, ours + "\n" + theirs, theirs + "\n" + ours, theirs}

func TestSecretChangesWhileRunning(t *testing.T) {
	hosts := []*identity.Identity{newIdentity(t, ours), newIdentity(t, ours), newIdentity(t, ours)}
	gone := newIdentity(t, ours)
	var listeners []net.Listener
	for _, h := range hosts {
		listeners = append(listeners, listen(t, h))
	}
	for step, text := range changeSteps {
		for _, h := range hosts {
			if step > 0 {
				set(t, h, text)
			}
			for n, l := range listeners {
				for m, from := range hosts {
					if n != m {
						_, err := hold(t, l, from)
						require.NoError(t, err, "step %d, host %d to %d", step, m, n)
					}
				}
			}
		}
	}
	for n, l := range listeners {
		_, err := hold(t, l, gone)
		require.ErrorIs(t, err, identity.ErrNotMember, "host %d", n)
		require.ErrorContains(t, lenient(t, l, gone.ClientTLS()), "unknown authority")
	}
}

func TestRefusedChangeOfSecret(t *testing.T) {
	id, open := newIdentity(t, ours), newIdentity(t, "")
	before := id.Accepted()
	for name, bad := range map[string]struct {
		text secret.String
		want error
	}{
		"none":          {"", identity.ErrSecretNeedsRestart},
		"one is weak":   {theirs + "\nhunter2", identity.ErrWeakSecret},
		"more than fit": {theirs + "\n" + ours + "\n1" + ours + "\n2" + ours + "\n3" + ours, identity.ErrWeakSecret},
	} {
		require.ErrorIs(t, id.CheckSecret(bad.text), bad.want, name)
		changed, err := id.SetSecret(bad.text)
		require.ErrorIs(t, err, bad.want, name)
		assert.False(t, changed, name)
		assert.Equal(t, before, id.Accepted(), name)
	}
	_, err := open.SetSecret(ours)
	require.ErrorIs(t, err, identity.ErrSecretNeedsRestart)
	changed, err := id.SetSecret(" " + ours + "\r\n\r\n" + ours + "\n")
	require.NoError(t, err)
	assert.False(t, changed, "the same secret, written in another way")
	assert.Empty(t, open.Secrets())
}

func TestUseOfSecretsIsCounted(t *testing.T) {
	server := newIdentity(t, ours+"\n"+theirs)
	l := listen(t, server)
	first, err := hold(t, l, newIdentity(t, ours+"\n"+theirs))
	require.NoError(t, err)
	_, err = hold(t, l, newIdentity(t, theirs+"\n"+ours))
	require.NoError(t, err)
	uses := server.Secrets()
	require.Len(t, uses, 2)
	assert.Equal(t, server.Accepted(), []string{uses[0].Fingerprint, uses[1].Fingerprint})
	assert.Equal(t, newIdentity(t, theirs).Accepted(), []string{uses[1].Fingerprint}, "the same on every host")
	for n, u := range uses {
		assert.Equal(t, n == 0, u.First)
		assert.Equal(t, 1, u.Connections)
		assert.EqualValues(t, 1, u.Handshakes)
		assert.False(t, u.Last.IsZero())
		assert.NotEmpty(t, u.Address)
	}
	first.server.Close()
	first.server.Close()
	assert.Zero(t, server.Secrets()[0].Connections)
	assert.EqualValues(t, 1, server.Secrets()[0].Handshakes)
}

func TestConnectionsOfARemovedSecretEnd(t *testing.T) {
	server := newIdentity(t, ours+"\n"+theirs)
	l := listen(t, server)
	old, err := hold(t, l, newIdentity(t, ours+"\n"+theirs))
	require.NoError(t, err)
	assert.False(t, server.Stale(old.server))
	assert.False(t, server.AnyStale())
	set(t, server, theirs+"\n"+ours)
	assert.True(t, server.Stale(old.server), "the server has shown a secret that is not the first any more")
	young, err := hold(t, l, newIdentity(t, theirs))
	require.NoError(t, err)
	assert.False(t, server.Stale(young.server))
	assert.Zero(t, server.CloseRemoved(), "both secrets are accepted")
	set(t, server, theirs)
	assert.True(t, server.AnyStale())
	uses := server.Secrets()
	require.Len(t, uses, 2)
	assert.True(t, uses[1].Removed)
	assert.Equal(t, 1, uses[1].Connections)
	assert.Equal(t, 1, server.CloseRemoved())
	_, err = old.client.Read(make([]byte, 1))
	require.Error(t, err)
	assert.False(t, server.AnyStale())
	assert.Len(t, server.Secrets(), 1)
	_, err = young.client.Write([]byte{1})
	require.NoError(t, err)
	_, err = io.ReadFull(young.server, make([]byte, 1))
	require.NoError(t, err, "others stay open")
}

func TestSignaturesOutliveTheirSecret(t *testing.T) {
	id := newIdentity(t, ours)
	s, v := newSigner(t, id), identity.NewVerifier(id)
	old := s.Certificate()
	_, err := v.AddCertificate(old)
	require.NoError(t, err)
	r := newRun(2)
	s.SignRun(content, &r)
	after := identity.NewVerifier(newIdentity(t, theirs))
	_, err = after.AddCertificate(old)
	require.ErrorIs(t, err, identity.ErrCertificate)
	for step, text := range changeSteps[1:] {
		set(t, id, text)
		require.NoError(t, v.VerifyRun(content, r), "step %d", step+1)
		assert.Equal(t, step == 0, string(v.Current(old)) == string(old), "step %d", step+1)
	}
	renewed := v.Current(old)
	key, err := after.AddCertificate(renewed)
	require.NoError(t, err)
	assert.Equal(t, s.KeyID(), key)
	require.NoError(t, after.VerifyRun(content, r))
	assert.Equal(t, renewed, after.Current(renewed))
	assert.Equal(t, 1, v.Known())
	one, err := x509.ParseCertificate(old)
	require.NoError(t, err)
	two, err := x509.ParseCertificate(renewed)
	require.NoError(t, err)
	assert.Equal(t, one.NotAfter, two.NotAfter, "no signature lives longer for it")
	_, err = after.AddCertificate(s.Certificate())
	require.NoError(t, err, "the signer has a certificate under the new secret")

	stranger := newSigner(t, newIdentity(t, "00112233445566778899aabbccddeeff01"))
	assert.Equal(t, stranger.Certificate(), v.Current(stranger.Certificate()), "nothing vouches for it")
	member := identity.MemberCertificate(id)
	assert.Equal(t, member, v.Current(member), "a member becomes no coordinator")
}

func TestKeysOfARemovedSecretAreForgotten(t *testing.T) {
	id := newIdentity(t, ours)
	s, v := newSigner(t, id), identity.NewVerifier(id)
	old := s.Certificate()
	_, err := v.AddCertificate(old)
	require.NoError(t, err)
	r := newRun(2)
	s.SignRun(content, &r)
	set(t, id, theirs) // without a time in which both are accepted
	require.ErrorIs(t, v.VerifyRun(content, r), identity.ErrUnknownKey)
	_, err = v.AddCertificate(old)
	require.ErrorIs(t, err, identity.ErrCertificate)
	assert.Equal(t, old, v.Current(old))
	assert.Zero(t, v.Known())
}

func TestSecretChangesDuringHandshakes(t *testing.T) {
	server, client := newIdentity(t, changeSteps[1]), newIdentity(t, changeSteps[1])
	s, v := newSigner(t, server), identity.NewVerifier(client)
	for n := range 20 {
		var changing sync.WaitGroup
		changing.Go(func() {
			_, one := server.SetSecret(changeSteps[1+n%2])
			_, two := client.SetSecret(changeSteps[1+(n+1)%2])
			assert.NoError(t, errors.Join(one, two))
		})
		r := talk(t, server, client)
		assert.NoError(t, r.client)
		assert.NoError(t, r.server)
		_, err := v.AddCertificate(v.Current(s.Certificate()))
		assert.NoError(t, err)
		changing.Wait()
	}
}
