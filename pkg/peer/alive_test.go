package peer_test

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
)

// waiting plays a node whose only neighbour is a seed that has nothing yet, promises to stay
// alive, keeps the promise for so long and then hangs. Once the owner hears that the seed is
// silent it sends the node to the origin itself. It returns when the node had everything.
func waiting(t *testing.T, alive time.Duration) (took time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(12, 4*piece.SizeMin))
		seed := host.Host{ID: host.NewID(), Name: "seed", Addr: "seed:65002"}
		l := s.net.listen(seed.Addr)
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() {
			defer close(over)
			raw, err := l.Accept()
			if err != nil {
				return
			}
			defer raw.Close()
			c, _, err := wire.Accept(ctx, raw, seed.ID.PeerID())
			if !assert.NoError(t, err) {
				return
			}
			read := make(chan struct{})
			go func() {
				defer close(read)
				for {
					if _, err := c.Next(); err != nil {
						return
					}
				}
			}()
			say := func(m wire.Message) { assert.NoError(t, c.Send(m)); assert.NoError(t, c.Flush()) }
			say(wire.Message{Type: wire.HelloMessage,
				Hello: &wire.Hello{Host: seed.ID, Version: wire.Version, Seed: true, Alive: true}})
			say(wire.Message{Type: wire.Bitfield})
			for range int(alive / time.Second) {
				time.Sleep(time.Second)
				say(wire.Message{Type: wire.KeepAlive})
			}
			<-read
		}()
		s.owner.answer = func(_ *node, e api.Entry, a *api.Assignment) error {
			if a.Seed = slices.Contains(e.Silent, seed.ID); !a.Seed {
				a.Neighbours = []api.Neighbour{{Host: seed}}
			}
			return nil
		}
		begun := time.Now()
		got, err := s.readAll(s.node(nil))
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.origin.content, got))
		took = time.Since(begun)
		cancel()
		l.Close()
		<-over
	})
	return took
}

func TestASeedThatHangsBeforeItOwesAnythingIsLeft(t *testing.T) {
	took := waiting(t, 0)
	assert.Greater(t, took, 3*time.Second)
	assert.Less(t, took, 6*time.Second)
}

func TestASeedThatIsAliveIsWaitedFor(t *testing.T) {
	took := waiting(t, 20*time.Second)
	assert.Greater(t, took, 23*time.Second, "the host closed the connection to a seed that sent keep-alives")
	assert.Less(t, took, 26*time.Second)
}
