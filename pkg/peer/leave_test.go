package peer_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// A host that leaves a download which its neighbours still need is not reported as silent.
func TestAHostThatLeavesIsNotSilent(t *testing.T) {
	const length = 8 << 20
	for name, c := range map[string]struct {
		store piece.Store
		leave func(ctx context.Context, s *swarm, leaver *node)
	}{
		"its client stops": {nil, func(context.Context, *swarm, *node) {}},
		"its small cache makes room": {memstore.New(memstore.Config{Quota: 12 << 20}),
			func(ctx context.Context, s *swarm, leaver *node) {
				next := s.spec()
				next.ID = task.ID("sha256:" + strings.Repeat("1", 64))
				ctx, stop := context.WithTimeout(ctx, 3*time.Second)
				defer stop()
				_, err := s.read(ctx, leaver, next, 0, length)
				assert.Error(t, err, "the origin stands still")
			}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, randomBytes(1, length))
				s.origin.hang = 2 << 20
				s.adjust = func(c *peer.Config) { c.Linger, c.Idle = 100*time.Millisecond, time.Second }
				s.seed()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				leaver := s.node(c.store)
				stay := []*node{s.node(nil), s.node(nil), s.node(nil)}
				for _, n := range stay {
					go func() { _, _ = s.read(ctx, n, s.spec(), 0, length) }()
				}
				own, stop := context.WithTimeout(ctx, 2*time.Second)
				defer stop()
				_, err := s.read(own, leaver, s.spec(), 0, length)
				assert.Error(t, err, "the origin stands still")
				c.leave(ctx, s, leaver)
				time.Sleep(15 * time.Second)

				reports := 0
				s.owner.mu.Lock()
				defer s.owner.mu.Unlock()
				for _, n := range stay {
					if slices.ContainsFunc(s.owner.events[n.host.ID],
						func(e api.Entry) bool { return slices.Contains(e.Silent, leaver.host.ID) }) {
						reports++
					}
				}
				assert.Zero(t, reports, "of 3 neighbours")
			})
		})
	}
}
