package peer_test

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer"
)

// A member that names another host in its handshake gets no connection, whichever side dialled; a node without other
// neighbours waits for its owner's seed in vain.
func TestAPeerIsTheHostOfItsCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		of    func(n host.ID) host.ID
		comes bool
	}{
		"the same":     {func(id host.ID) host.ID { return id }, true},
		"another host": {func(host.ID) host.ID { return host.NewID() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(1, mib))
				var asked atomic.Int32
				seed := s.seed()
				s.adjust = func(cfg *peer.Config) {
					cfg.HostOf = func(net.Conn) (host.ID, error) {
						asked.Add(1)
						return c.of(seed.host.ID), nil // it dials the seed alone
					}
				}
				data, err := s.readAll(s.node(nil))
				assert.Positive(t, asked.Load())
				if !c.comes {
					assert.Error(t, err)
					return
				}
				require.NoError(t, err)
				assert.True(t, bytes.Equal(s.origin.content, data))
			})
		})
	}
}

// The log names a member that poses as another host, once a minute.
func TestAPoserIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var lines bytes.Buffer
		log := slog.New(slog.NewTextHandler(writer(func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return lines.Write(b)
		}), nil))
		s := newSwarm(t, randomBytes(1, mib))
		poser := host.NewID()
		s.adjust = func(cfg *peer.Config) {
			cfg.Logger, cfg.HostOf = log, func(net.Conn) (host.ID, error) { return poser, nil }
		}
		s.seed()
		s.adjust = nil
		for range 2 {
			_, err := s.readAll(s.node(nil))
			require.Error(t, err)
		}
		mu.Lock()
		defer mu.Unlock()
		assert.Contains(t, lines.String(), "a member poses as another host")
		assert.Contains(t, lines.String(), string(poser))
		assert.Less(t, strings.Count(lines.String(), "poses"), 5, "it tried again and again")
	})
}

// writer is a function that writes.
type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }
