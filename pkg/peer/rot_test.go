package peer_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/test/race"
)

// onDisk returns a host whose store is on a disk, and its directory.
func (s *swarm) onDisk() (*node, string) {
	dir := s.t.TempDir()
	store, err := diskstore.Open(diskstore.Config{Dir: dir})
	require.NoError(s.t, err)
	n := s.node(store)
	s.t.Cleanup(func() {
		require.NoError(s.t, n.stop())
		require.NoError(s.t, store.Close())
	})
	return n, dir
}

// dataFile returns the file of the only task of a store.
func dataFile(t *testing.T, dir, name string) string {
	found, err := filepath.Glob(filepath.Join(dir, "tasks", "*", "*", name))
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

// overwrite puts b at an offset of a file.
func overwrite(t *testing.T, path string, b []byte, off int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// damages are ways in which a disk damages a task of 20 pieces of 128 KiB and 77 bytes under a running daemon.
var damages = map[string]func(t *testing.T, path string, content []byte){
	"one bit": func(t *testing.T, path string, content []byte) {
		overwrite(t, path, []byte{content[7*piece.SizeMin+11] ^ 4}, 7*piece.SizeMin+11)
	},
	"one bit in the first piece": func(t *testing.T, path string, content []byte) {
		overwrite(t, path, []byte{content[1] ^ 1}, 1)
	},
	"one bit of the last byte": func(t *testing.T, path string, content []byte) {
		overwrite(t, path, []byte{content[len(content)-1] ^ 0x80}, int64(len(content)-1))
	},
	"a hole of 4 KiB": func(t *testing.T, path string, _ []byte) {
		overwrite(t, path, make([]byte, 4<<10), 9*piece.SizeMin)
	},
	"another block of the same file": func(t *testing.T, path string, content []byte) {
		overwrite(t, path, content[2*piece.SizeMin:3*piece.SizeMin], 12*piece.SizeMin)
	},
	"everything": func(t *testing.T, path string, content []byte) {
		overwrite(t, path, make([]byte, len(content)), 0)
	},
	"the end cut off": func(t *testing.T, path string, _ []byte) {
		require.NoError(t, os.Truncate(path, 5*piece.SizeMin+100))
	},
	"all cut off": func(t *testing.T, path string, _ []byte) { require.NoError(t, os.Truncate(path, 0)) },
	"the file deleted": func(t *testing.T, path string, _ []byte) {
		require.NoError(t, os.Remove(path))
	},
	"a journal of zeros": func(t *testing.T, path string, _ []byte) {
		overwrite(t, filepath.Join(filepath.Dir(path), "journal"), make([]byte, 4<<10), 0)
	},
	"a journal cut short": func(t *testing.T, path string, _ []byte) {
		require.NoError(t, os.Truncate(filepath.Join(filepath.Dir(path), "journal"), 300))
	},
}

// pullBy reads the whole object at a node, through WriteTo if a row says so.
func (s *swarm) pullBy(n *node, writeTo bool) ([]byte, error) {
	c, err := n.engine.Open(s.t.Context(), s.spec())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r := c.NewReader(s.t.Context(), 0, c.Metadata().Length)
	defer r.Close()
	var b bytes.Buffer
	b.Grow(int(c.Metadata().Length) + bytes.MinRead) // the race detector notes each byte of a copy
	if writeTo {
		_, err = r.WriteTo(&b)
	} else {
		_, err = io.Copy(&b, struct{ io.Reader }{r})
	}
	return b.Bytes(), err
}

func TestRotUnderARunningNodeNeverLeavesIt(t *testing.T) {
	pulls := 7
	if race.Enabled {
		pulls = 3 // the first finds the damage, the others are alike
	}
	for name, damage := range race.Some(damages, "one bit", "the file deleted", "a journal of zeros") {
		for how, wait := range map[string]time.Duration{"open": 0, "closed meanwhile": 10 * time.Minute} {
			for way, writeTo := range map[string]bool{"by Read": false, "by WriteTo": true} {
				t.Run(name+", "+how+", "+way, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := newSwarm(t, randomBytes(60, 20*piece.SizeMin+77))
						n, dir := s.onDisk()
						for range 2 { // brought, and read from the cache
							got, err := s.pullBy(n, writeTo)
							require.NoError(t, err)
							require.True(t, bytes.Equal(s.origin.content, got))
						}
						time.Sleep(wait)
						damage(t, dataFile(t, dir, "data"), s.origin.content)
						right := 0
						for k := range pulls {
							got, err := s.pullBy(n, writeTo)
							if err == nil {
								require.True(t, bytes.Equal(s.origin.content, got), "pull %d is whole and wrong", k)
								right++
								continue
							}
							require.True(t, bytes.HasPrefix(s.origin.content, got), "pull %d has a wrong byte", k)
							require.Less(t, len(got), len(s.origin.content))
							require.Zero(t, k, "only the first finds the damage: %v", err)
						}
						assert.GreaterOrEqual(t, right, pulls-1)
					})
				})
			}
		}
	}
}

func TestRotBetweenTwoReadsOfOneReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(61, 20*piece.SizeMin))
		n, dir := s.onDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		c, err := n.engine.Open(t.Context(), s.spec())
		require.NoError(t, err)
		r := c.NewReader(t.Context(), 0, c.Metadata().Length)
		first := make([]byte, 3*piece.SizeMin+5)
		_, err = io.ReadFull(r, first)
		require.NoError(t, err)
		for i := range 20 {
			overwrite(t, dataFile(t, dir, "data"), []byte{^s.origin.content[i*piece.SizeMin+9]},
				int64(i*piece.SizeMin+9))
		}
		var rest bytes.Buffer
		_, err = r.WriteTo(&rest)
		require.ErrorContains(t, err, "damaged")
		r.Close()
		c.Close()
		got := append(first, rest.Bytes()...)
		assert.True(t, bytes.HasPrefix(s.origin.content, got), "no wrong byte")
		assert.LessOrEqual(t, len(got), 4*piece.SizeMin)
		data, err := s.readAll(n)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
		assert.Len(t, s.origin.requests(), 2)
	})
}

func TestARangeOfADamagedContentIsRightOrShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(62, 4*piece.SizeMin))
		s.adjust = func(cfg *peer.Config) { cfg.PieceSize = func(int64) int64 { return 4 * piece.SizeMin } }
		n, dir := s.onDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		overwrite(t, dataFile(t, dir, "data"), make([]byte, 10), 3*piece.SizeMin)
		got, err := s.read(t.Context(), n, s.spec(), 5, piece.SizeMin)
		require.NoError(t, err, "its block is as it was")
		assert.Equal(t, s.origin.content[5:][:piece.SizeMin], got)
		got, err = s.read(t.Context(), n, s.spec(), 3*piece.SizeMin+9, 1)
		require.ErrorContains(t, err, "damaged")
		assert.Empty(t, got)
		got, err = s.read(t.Context(), n, s.spec(), 3*piece.SizeMin+9, 1)
		require.NoError(t, err)
		assert.Equal(t, s.origin.content[3*piece.SizeMin+9:][:1], got)
	})
}

// A seed that brought the first pieces before they rotted hashes the whole before it vouches for it.
func TestRotBeforeTheLastPieceIsNotTheOriginsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(63, 20*piece.SizeMin))
		s.origin.body = paced(1 << 20) // it stops behind what is read
		n, dir := s.onDisk()
		_, err := s.read(t.Context(), n, s.spec(), 0, 4*piece.SizeMin)
		require.NoError(t, err)
		time.Sleep(10 * time.Minute)
		overwrite(t, dataFile(t, dir, "data"), []byte{^s.origin.content[100]}, 100)
		// The test does not read the rotten piece itself: its reader would find it first.
		_, err = s.read(t.Context(), n, s.spec(), 19*piece.SizeMin, piece.SizeMin)
		require.ErrorContains(t, err, "damaged")
		require.NotErrorIs(t, err, peer.ErrRevoked)
		data, err := s.readAll(n)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
	})
}

func TestRotIsNotSentInsideAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(64, 1000))
		n, dir := s.onDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		inline := func() ([]byte, error) {
			r, err := n.store.Open(s.spec().ID)
			require.NoError(t, err)
			defer r.Close()
			b := make([]byte, 1000)
			k, err := n.engine.Checked(r).ReadAt(b, 0)
			return b[:k], err
		}
		got, err := inline()
		require.NoError(t, err)
		assert.Equal(t, s.origin.content, got)
		got, ok := n.engine.ReadAll(s.spec().ID, 1000)
		require.True(t, ok)
		assert.Equal(t, s.origin.content, got)

		overwrite(t, dataFile(t, dir, "data"), []byte{^s.origin.content[100]}, 100)
		got, err = inline()
		require.ErrorContains(t, err, "damaged")
		assert.Empty(t, got)
		synctest.Wait()
		_, err = n.store.Open(s.spec().ID)
		require.ErrorIs(t, err, piece.ErrNotFound, "it is dropped")
		_, ok = n.engine.ReadAll(s.spec().ID, 1000)
		assert.False(t, ok)
		data, err := s.readAll(n)
		require.NoError(t, err)
		assert.Equal(t, s.origin.content, data)
	})
}

// The bytes of a store in memory can change, too, if the memory is faulty.
func TestAnyStoreThatRotsAfterItWasReadIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(65, 24*piece.SizeMin))
		store := &rottingStore{Store: memstore.New(memstore.Config{})}
		n := s.node(store)
		_, err := s.readAll(n)
		require.NoError(t, err)
		store.rotten.Store(true)
		got, err := s.readAll(n)
		require.ErrorContains(t, err, "damaged")
		assert.Len(t, got, 7*piece.SizeMin)
		got, err = s.readAll(n)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, got))
	})
}
