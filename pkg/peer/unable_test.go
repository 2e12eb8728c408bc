package peer_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// badStore fails to open or to create every task.
type badStore struct {
	piece.Store
	open, create error
}

func (s badStore) Open(id task.ID) (piece.Replica, error) {
	if s.open != nil {
		return nil, fmt.Errorf("opening task %s: %w", id.Short(), s.open)
	}
	return s.Store.Open(id)
}

func (s badStore) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	if s.create != nil {
		return nil, fmt.Errorf("creating task %s: %w", id.Short(), s.create)
	}
	return s.Store.Create(id, f)
}

// The disk of the host that seeds an object fails: another host fetches the object, once for all.
func TestABadDiskAtTheSeedIsNoFailure(t *testing.T) {
	pathError := func(err error) error { return &fs.PathError{Op: "read", Path: "journal", Err: err} }
	for name, bad := range map[string]badStore{
		"its journal cannot be read": {open: pathError(syscall.EIO)},
		"it is read-only":            {create: pathError(syscall.EROFS)},
		"it is full":                 {create: pathError(syscall.ENOSPC)},
		"its quota is too small":     {create: piece.ErrNoSpace},
	} {
		for _, formerly := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, earlier owner %t", name, formerly), func(t *testing.T) {
				s := newSwarm(t, randomBytes(1, 5*piece.SizeMin+3))
				bad.Store = memstore.New(memstore.Config{})
				seed := s.node(bad)
				s.owner.mu.Lock()
				s.owner.seed, s.owner.formerly = seed, formerly
				s.owner.mu.Unlock()
				var g errgroup.Group
				for range 3 {
					n := s.node(nil)
					g.Go(func() error {
						got, err := s.readAll(n)
						if err == nil && !bytes.Equal(got, s.origin.content) {
							return fmt.Errorf("%d wrong bytes", len(got))
						}
						return err
					})
				}
				require.NoError(t, g.Wait())
				if !formerly {
					assert.LessOrEqual(t, s.origin.sent.Load(), 2*int64(len(s.origin.content)), "the seed's attempt, and one more")
				}
			})
		}
	}
}
