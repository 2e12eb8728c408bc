package portmux

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
)

// muxPort listens on loopback with or without a cluster secret.
func muxPort(t *testing.T, word secret.String) (pieces, api net.Listener, id *identity.Identity) {
	id, err := identity.New(identity.Config{Secret: word, HostID: host.ID(strings.Repeat("a", 32))})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	pieces, api = New(id.WrapListener(l, ProtocolAPI))
	t.Cleanup(func() { pieces.Close() })
	return pieces, api, id
}

// transport reaches the API of members.
func transport(id *identity.Identity) *http.Transport {
	return &http.Transport{DialTLSContext: id.WrapDialer(new(net.Dialer).DialContext, ProtocolAPI)}
}

func TestOnePortServesBoth(t *testing.T) {
	for _, word := range []secret.String{"", "a secret that is long enough for a cluster"} {
		pieces, api, id := muxPort(t, word)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "api "+r.Method)
		})}
		go srv.Serve(api)
		tr := transport(id)
		client, url := &http.Client{Transport: tr}, "http://"+api.Addr().String()+"/"
		if id.Secure() {
			url = "https://" + api.Addr().String() + "/"
		}
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
			require.NoError(t, err)
			res, err := client.Do(req)
			require.NoError(t, err)
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			res.Body.Close()
			assert.Equal(t, "api "+method, string(b))
		}
		tr.CloseIdleConnections()

		// A silent connection holds up no other.
		silent, err := net.Dial("tcp", api.Addr().String())
		require.NoError(t, err)
		defer silent.Close()
		got := make(chan net.Conn, 1)
		go func() {
			c, err := pieces.Accept()
			assert.NoError(t, err)
			got <- c
		}()
		c, err := id.WrapDialer(new(net.Dialer).DialContext)(t.Context(), "tcp", pieces.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(c, "\x13BitTorrent protocol")
		require.NoError(t, err)
		here := <-got
		b := make([]byte, 20)
		_, err = io.ReadFull(here, b)
		require.NoError(t, err)
		assert.Equal(t, "\x13BitTorrent protocol", string(b), "no byte is missing")
		if word == "" {
			assert.IsType(t, (*net.TCPConn)(nil), here, "sendfile needs it")
		} else {
			assert.IsType(t, (*tls.Conn)(nil), here, "it tells which host it is")
		}
		here.Close()
		c.Close()

		require.NoError(t, srv.Close())
		require.NoError(t, pieces.Close())
		_, err = pieces.Accept()
		assert.ErrorIs(t, err, net.ErrClosed)
		require.NoError(t, silent.SetReadDeadline(time.Now().Add(time.Minute)))
		_, err = silent.Read(b)
		var timeout net.Error
		assert.False(t, errors.As(err, &timeout) && timeout.Timeout(), "the undecided connection was not closed: %v",
			err)
	}
}

func TestStrangerReachesNeitherSide(t *testing.T) {
	pieces, api, _ := muxPort(t, "a secret that is long enough for a cluster")
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a stranger was served")
	})}
	go srv.Serve(api)
	defer srv.Close()
	go func() {
		if c, err := pieces.Accept(); err == nil {
			t.Errorf("a stranger was let in: %v", c.RemoteAddr())
		}
	}()
	other, err := identity.New(identity.Config{Secret: "another secret that is long enough for it",
		HostID: host.ID(strings.Repeat("b", 32))})
	require.NoError(t, err)
	tr := transport(other)
	_, err = (&http.Client{Transport: tr}).Get("https://" + api.Addr().String() + "/")
	require.Error(t, err)
	for _, plain := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x13BitTorrent protocol"} {
		c, err := net.Dial("tcp", api.Addr().String())
		require.NoError(t, err)
		_, err = io.WriteString(c, plain)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, c)
		if err != nil {
			assert.NotErrorIs(t, err, io.ErrUnexpectedEOF)
		}
		c.Close()
	}
}
