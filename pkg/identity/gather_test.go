package identity

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
)

// writes notes each write that reaches it.
type writes struct {
	net.Conn
	all  [][]byte
	fail error
}

func (w *writes) Write(p []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.all = append(w.all, bytes.Clone(p))
	return len(p), nil
}

// Records leave together between Hold and Release.
func TestGather(t *testing.T) {
	w := &writes{}
	g := &gather{Conn: w}
	var want []byte
	write := func(n int) {
		p := bytes.Repeat([]byte{byte(len(want))}, n)
		want = append(want, p...)
		sent, err := g.Write(p)
		require.NoError(t, err)
		require.Equal(t, n, sent)
	}
	write(100)
	require.Len(t, w.all, 1, "at once")
	g.Hold()
	for range 16 {
		write(16406)
	}
	write(gatherSize + 1)
	write(7)
	require.NoError(t, g.Release())
	require.NoError(t, g.Release(), "without a hold there is nothing to do")
	write(100)
	assert.Len(t, w.all, 7, "one, three with up to seven records, the large one, the last and one")
	assert.Equal(t, want, bytes.Join(w.all, nil))
	assert.Nil(t, g.held, "no buffer is kept")
}

// Release returns the error of a write that failed.
func TestGatherError(t *testing.T) {
	w := &writes{fail: errors.New("reset")}
	g := &gather{Conn: w}
	g.Hold()
	_, err := g.Write(make([]byte, 10))
	require.NoError(t, err)
	assert.ErrorIs(t, g.Release(), w.fail)
	assert.NoError(t, g.Release())
}

// Both ends of a member's connection gather.
func TestGatherBothEnds(t *testing.T) {
	id, err := New(Config{Secret: "7d1c5b0e9a3f4286b1d0c7e85f9a2b63", HostID: host.NewID()})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	wrapped := id.WrapListener(l)
	defer wrapped.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := wrapped.Accept()
		if assert.NoError(t, err) {
			assert.NoError(t, c.(*tls.Conn).Handshake())
		}
		accepted <- c
	}()
	here, err := id.WrapDialer(new(net.Dialer).DialContext)(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	defer here.Close()
	there := <-accepted
	defer there.Close()
	for name, c := range map[string]net.Conn{"dialled": here, "accepted": there} {
		_, ok := c.(*tls.Conn).NetConn().(interface {
			Hold()
			Release() error
		})
		assert.True(t, ok, name)
	}
}
