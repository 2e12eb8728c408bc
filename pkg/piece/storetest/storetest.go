// Package storetest tests the contract of [piece.Store]. Every user of a store may rely on the properties that
// it tests.
//
// It uses only the interface, and never an implementation, so that every test holds for every store. Start at
// [Run]; [RunFaults] is for a store with a disk that tests can break.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Factory makes the stores under test. The suite closes them.
type Factory struct {
	// New returns an empty store without a quota.
	New func(t testing.TB) piece.Store
	// WithQuota returns an empty store that keeps at most quota bytes (plus up to 64 KiB per task for its own
	// records) and evicts no more than necessary. Nil: the store has no quota.
	WithQuota func(t testing.TB, quota int64) piece.Store
	// Reopen closes s and returns a store over the same tasks, with the same settings. Nil: tasks are lost when
	// a store is closed.
	Reopen func(t testing.TB, s piece.Store) piece.Store
}

// ID returns a task ID that looks random and is the same for the same name.
func ID(name string) task.ID { return task.ID(piece.Sum([]byte(name)).String()) }

// Content returns n bytes that look random and are the same for the same name.
func Content(name string, n int64) []byte {
	b := make([]byte, n)
	seed := piece.Sum([]byte(name))
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// Piece returns the bytes of piece i of content.
func Piece(content []byte, l piece.Layout, i piece.Index) []byte {
	return content[l.Offset(i) : l.Offset(i)+l.Size(i)]
}

// Write stores piece i of content and returns the store's error.
func Write(r piece.Replica, content []byte, i piece.Index) error {
	data := Piece(content, r.Metadata().Layout(), i)
	return r.WritePiece(i, data, piece.Sum(data))
}

// Check requires that ReadAt and CopyTo return the bytes of content for every piece that r has, and ErrMissing
// for every other piece. It returns the number of pieces that r has.
func Check(t testing.TB, r piece.Replica, content []byte) int {
	t.Helper()
	l, have := r.Metadata().Layout(), r.Have()
	require.Equal(t, l.Count(), have.Len())
	for i := range piece.Index(l.Count()) {
		want := Piece(content, l, i)
		require.Equal(t, have.Has(i), r.Has(i), "Has(%d) and Have disagree", i)
		got, out := make([]byte, len(want)), &bytes.Buffer{}
		n, err := r.ReadAt(got, l.Offset(i))
		copied, copyErr := r.CopyTo(out, l.Offset(i), l.Size(i))
		_, ok := r.Digest(i)
		require.Equal(t, have.Has(i), ok, "Digest(%d)", i)
		if !have.Has(i) {
			require.ErrorIs(t, err, piece.ErrMissing, "ReadAt of piece %d, which is missing", i)
			require.ErrorIs(t, copyErr, piece.ErrMissing, "CopyTo of piece %d, which is missing", i)
			require.Zero(t, n)
			require.Zero(t, copied)
			require.Zero(t, out.Len())
			continue
		}
		require.NoError(t, err, "ReadAt of piece %d", i)
		require.NoError(t, copyErr, "CopyTo of piece %d", i)
		require.Equal(t, len(want), n)
		require.Equal(t, int64(len(want)), copied)
		require.True(t, bytes.Equal(want, got), "ReadAt of piece %d gives other bytes", i)
		require.True(t, bytes.Equal(want, out.Bytes()), "CopyTo of piece %d gives other bytes", i)
		d, _ := r.Digest(i)
		require.Equal(t, piece.Sum(want), d, "Digest(%d)", i)
	}
	return have.Count()
}

// facts of most tasks in this suite: ten pieces, the last one short.
var facts = piece.Metadata{Length: 9*1000 + 37, PieceSize: 1000,
	MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}

// Run proves the contract on stores of f.
func Run(t *testing.T, f Factory) {
	su := suite{t, f, Content("a", facts.Length)}
	su.reading()
	su.writing()
	su.tasks()
	su.inventory()
	su.removal()
	su.closing()
	su.runs()
	su.concurrency()
	su.restart()
	if f.WithQuota != nil {
		t.Run("quota", func(t *testing.T) {
			su := suite{t, f, nil}
			su.eviction()
			su.fullStore()
		})
	}
}

// suite runs the contract on the stores of one factory.
type suite struct {
	*testing.T
	Factory
	content []byte // of task "a"
}

// open returns an empty store and closes it at the test's end.
func (su suite) open(t *testing.T) piece.Store {
	s := su.New(t)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

// create creates a task with facts and closes the replica at the test's end.
func create(t *testing.T, s piece.Store, name string) piece.Replica {
	t.Helper()
	r, err := s.Create(ID(name), facts)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

// reading tests reads of stored and missing pieces.
func (su suite) reading() {
	su.Run("a new task has its facts and no pieces", func(t *testing.T) {
		s := su.open(t)
		_, err := s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		r := create(t, s, "a")
		assert.Equal(t, ID("a"), r.ID())
		assert.Equal(t, facts, r.Metadata())
		assert.Zero(t, Check(t, r, su.content))
	})

	su.Run("only the pieces that were written can be read", func(t *testing.T) {
		r := create(t, su.open(t), "a")
		for k, i := range []piece.Index{9, 3, 4, 0} {
			require.NoError(t, Write(r, su.content, i))
			assert.Equal(t, k+1, Check(t, r, su.content))
		}
		got := make([]byte, 1500)
		n, err := r.ReadAt(got, 3250)
		require.NoError(t, err, "across two pieces")
		assert.Equal(t, su.content[3250:4750], got[:n])

		n, err = r.ReadAt(got, 4250)
		require.ErrorIs(t, err, piece.ErrMissing, "into a missing piece")
		assert.Equal(t, su.content[4250:5000], got[:n])

		n, err = r.ReadAt(got, 9020)
		require.ErrorIs(t, err, io.EOF, "over the end")
		assert.Equal(t, su.content[9020:], got[:n])

		n, err = r.ReadAt(got, facts.Length)
		require.ErrorIs(t, err, io.EOF, "at the end")
		assert.Zero(t, n)
		_, err = r.ReadAt(got, -1)
		require.Error(t, err)

		var out bytes.Buffer
		_, err = r.CopyTo(&out, 4250, 1500)
		require.ErrorIs(t, err, piece.ErrMissing)
		_, err = r.CopyTo(&out, 9000, 38)
		require.ErrorIs(t, err, piece.ErrMissing, "over the end")
		_, err = r.CopyTo(&out, -1, 2)
		require.ErrorIs(t, err, piece.ErrMissing)
		assert.Zero(t, out.Len(), "nothing was written before the error")
		copied, err := r.CopyTo(&out, 3999, 2)
		require.NoError(t, err)
		assert.Equal(t, int64(2), copied)
		assert.Equal(t, su.content[3999:4001], out.Bytes())
		copied, err = r.CopyTo(&out, 5000, 0)
		require.NoError(t, err, "zero bytes of a missing piece")
		assert.Zero(t, copied)
	})

	su.Run("CopyTo returns the error of its writer", func(t *testing.T) {
		r := create(t, su.open(t), "a")
		require.NoError(t, Write(r, su.content, 0))
		gone := errors.New("connection is gone")
		n, err := r.CopyTo(&failing{after: 300, err: gone}, 0, 1000)
		require.ErrorIs(t, err, gone)
		assert.LessOrEqual(t, n, int64(300))
		assert.Equal(t, 1, Check(t, r, su.content), "the piece is still good")
	})
}

// writing tests refused and repeated writes.
func (su suite) writing() {
	su.Run("a piece of wrong length or index is refused", func(t *testing.T) {
		r := create(t, su.open(t), "a")
		for _, c := range []struct {
			i piece.Index
			n int
		}{{0, 999}, {0, 1001}, {0, 0}, {9, 1000}, {10, 37}, {10, 0}, {-1, 1000}} {
			err := r.WritePiece(c.i, su.content[:c.n], piece.Sum(su.content[:c.n]))
			require.ErrorIs(t, err, piece.ErrInvalidMetadata, "piece %d of %d bytes", c.i, c.n)
		}
		assert.Zero(t, Check(t, r, su.content))
		assert.False(t, r.Has(-1))
		assert.False(t, r.Has(10))
	})

	su.Run("a stored piece is not written again", func(t *testing.T) {
		r := create(t, su.open(t), "a")
		require.NoError(t, Write(r, su.content, 2))
		other := Content("other", 1000)
		require.NoError(t, r.WritePiece(2, other, piece.Sum(other)))
		assert.Equal(t, 1, Check(t, r, su.content))
	})

	su.Run("the store keeps no reference to its caller's memory", func(t *testing.T) {
		r := create(t, su.open(t), "a")
		buf := append([]byte(nil), Piece(su.content, facts.Layout(), 1)...)
		require.NoError(t, r.WritePiece(1, buf, piece.Sum(buf)))
		clear(buf)
		r.Have().SetAll()
		assert.Equal(t, 1, Check(t, r, su.content))
	})
}

// tasks tests the life of tasks and replicas.
func (su suite) tasks() {
	su.Run("all replicas of a task see the same pieces", func(t *testing.T) {
		s := su.open(t)
		a, b := create(t, s, "a"), create(t, s, "a")
		require.NoError(t, Write(a, su.content, 5))
		c, err := s.Open(ID("a"))
		require.NoError(t, err)
		require.NoError(t, Write(c, su.content, 6))
		require.NoError(t, c.Close())
		require.NoError(t, a.Close())
		assert.Equal(t, 2, Check(t, b, su.content))
	})

	su.Run("a task stays when its last replica is closed", func(t *testing.T) {
		s := su.open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, su.content, 5))
		require.NoError(t, r.Close())
		r = create(t, s, "a")
		assert.Equal(t, 1, Check(t, r, su.content))
		require.NoError(t, Write(r, su.content, 6))
		assert.Equal(t, 2, Check(t, r, su.content))
	})

	su.Run("impossible facts and other facts are refused", func(t *testing.T) {
		s := su.open(t)
		_, err := s.Create(ID("a"), piece.Metadata{Length: -1, PieceSize: 1})
		require.ErrorIs(t, err, piece.ErrInvalidMetadata)
		_, err = s.Create("../../etc/passwd", facts)
		require.ErrorIs(t, err, task.ErrInvalidID)
		create(t, s, "a")
		_, err = s.Create(ID("a"), piece.Metadata{Length: facts.Length + 1, PieceSize: facts.PieceSize})
		require.ErrorIs(t, err, piece.ErrOtherMetadata)
		_, err = s.Create(ID("a"), piece.Metadata{Length: facts.Length, PieceSize: facts.PieceSize + 1})
		require.ErrorIs(t, err, piece.ErrOtherMetadata)
		r, err := s.Create(ID("a"), piece.Metadata{Length: facts.Length, PieceSize: facts.PieceSize,
			MediaType: "other"})
		require.NoError(t, err, "the media type may differ")
		assert.Equal(t, facts, r.Metadata(), "the first media type stays")
		require.NoError(t, r.Close())
	})

	su.Run("an empty task is complete at once", func(t *testing.T) {
		s := su.open(t)
		r, err := s.Create(ID("empty"), piece.MetadataFor(0, "text/plain"))
		require.NoError(t, err)
		assert.Zero(t, r.Have().Len())
		n, err := r.CopyTo(io.Discard, 0, 0)
		require.NoError(t, err)
		assert.Zero(t, n)
		_, err = r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, r.Close())
		require.Len(t, s.Inventory(), 1)
		assert.True(t, s.Inventory()[0].Complete)
		assert.True(t, s.Complete(ID("empty")))
		assert.False(t, s.Complete(ID("another")))
	})
}

// inventory tests the list of tasks.
func (su suite) inventory() {
	su.Run("the inventory lists all tasks", func(t *testing.T) {
		s := su.open(t)
		assert.Empty(t, s.Inventory())
		a, b := create(t, s, "a"), create(t, s, "b")
		contentB := Content("b", facts.Length)
		for i := range piece.Index(10) {
			require.NoError(t, Write(a, su.content, i))
		}
		require.NoError(t, Write(b, contentB, 1))
		for _, when := range []string{"open", "closed"} {
			got := map[task.ID]piece.Entry{}
			for _, e := range s.Inventory() {
				assert.False(t, e.LastRead.IsZero())
				assert.Equal(t, e.Complete, s.Complete(e.ID))
				got[e.ID] = piece.Entry{ID: e.ID, Metadata: e.Metadata, Have: e.Have, Complete: e.Complete}
			}
			assert.Equal(t, map[task.ID]piece.Entry{
				ID("a"): {ID: ID("a"), Metadata: facts, Have: 10, Complete: true},
				ID("b"): {ID: ID("b"), Metadata: facts, Have: 1},
			}, got, when)
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
		}
	})
}

// removal tests removed tasks.
func (su suite) removal() {
	su.Run("a removed task is gone for its open replicas, too", func(t *testing.T) {
		s := su.open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, su.content, 0))
		require.NoError(t, s.Remove(ID("a")))
		_, err := r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, piece.ErrRemoved)
		_, err = r.CopyTo(io.Discard, 0, 1)
		require.ErrorIs(t, err, piece.ErrRemoved)
		require.ErrorIs(t, Write(r, su.content, 1), piece.ErrRemoved)
		require.ErrorIs(t, r.AddRuns([]piece.DigestRun{signedRun(0, 1)}, nil), piece.ErrRemoved)
		assert.False(t, r.Has(0))
		assert.Zero(t, r.Have().Count())
		_, ok := r.Digest(0)
		assert.False(t, ok)
		_, err = s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		assert.Empty(t, s.Inventory())
		require.NoError(t, s.Remove(ID("a")), "removing an unknown task")

		again := create(t, s, "a")
		assert.Zero(t, Check(t, again, su.content), "a task that is created again is empty")
		require.NoError(t, Write(again, su.content, 7))
		require.NoError(t, r.Close(), "closing a replica of the removed task")
		assert.Equal(t, 1, Check(t, again, su.content), "does not affect the new one")
	})

	su.Run("removal during writes and reads leaves nothing", func(t *testing.T) {
		s := su.open(t)
		for round := range 20 {
			r := create(t, s, "a")
			var g sync.WaitGroup
			for i := range piece.Index(10) {
				g.Go(func() {
					if err := Write(r, su.content, i); err != nil {
						assert.ErrorIs(t, err, piece.ErrRemoved)
					}
					var out bytes.Buffer
					if _, err := r.CopyTo(&out, int64(i)*1000, 1); err != nil {
						assert.True(t, errors.Is(err, piece.ErrRemoved) || errors.Is(err, piece.ErrMissing), err)
					} else {
						assert.Equal(t, su.content[i*1000], out.Bytes()[0])
					}
				})
			}
			g.Go(func() { assert.NoError(t, s.Remove(ID("a"))) })
			g.Wait()
			require.Empty(t, s.Inventory(), "round %d", round)
			_, err := s.Open(ID("a"))
			require.ErrorIs(t, err, piece.ErrNotFound)
			require.NoError(t, r.Close())
		}
	})
}

// closing tests closed replicas and closed stores.
func (su suite) closing() {
	su.Run("a closed replica is unusable, and closes twice", func(t *testing.T) {
		s := su.open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, su.content, 0))
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		_, err := r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, fs.ErrClosed)
		_, err = r.CopyTo(io.Discard, 0, 1)
		require.ErrorIs(t, err, fs.ErrClosed)
		require.ErrorIs(t, Write(r, su.content, 1), fs.ErrClosed)
		require.ErrorIs(t, r.AddRuns(nil, [][]byte{{1}}), fs.ErrClosed)
		assert.False(t, r.Has(0))
	})

	su.Run("a closed store is unusable, and closes twice", func(t *testing.T) {
		s := su.New(t)
		r, err := s.Create(ID("a"), facts)
		require.NoError(t, err)
		require.NoError(t, Write(r, su.content, 0))
		require.NoError(t, s.Close())
		_, err = r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, piece.ErrClosed)
		require.ErrorIs(t, Write(r, su.content, 1), piece.ErrClosed)
		_, err = s.Create(ID("b"), facts)
		require.ErrorIs(t, err, piece.ErrClosed)
		_, err = s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrClosed)
		require.ErrorIs(t, s.Remove(ID("a")), piece.ErrClosed)
		assert.Empty(t, s.Inventory())
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	})
}

// runs tests signed runs and certificates.
func (su suite) runs() {
	su.Run("runs and certificates come back unchanged", func(t *testing.T) {
		s := su.open(t)
		r := create(t, s, "a")
		runs, certificates := r.Runs()
		assert.Empty(t, runs)
		assert.Empty(t, certificates)
		a, b, c := signedRun(0, 3), signedRun(3, 6), signedRun(9, 1)
		require.NoError(t, r.AddRuns([]piece.DigestRun{a, b}, [][]byte{{1, 2}, {3}}))
		require.NoError(t, r.AddRuns([]piece.DigestRun{b, c, a, c}, [][]byte{{3}, {4}, {1, 2}}))
		runs, certificates = r.Runs()
		assert.Equal(t, []piece.DigestRun{a, b, c}, runs)
		assert.Equal(t, [][]byte{{1, 2}, {3}, {4}}, certificates)
		runs[0].Digests[0][0] ^= 1
		runs[0].Signature[0] ^= 1
		certificates[0][0] ^= 1
		runs, certificates = r.Runs()
		assert.Equal(t, []piece.DigestRun{a, b, c}, runs, "callers cannot change the store's copy")
		assert.Equal(t, [][]byte{{1, 2}, {3}, {4}}, certificates)

		bad := signedRun(8, 2)
		bad.Final = false
		require.ErrorIs(t, r.AddRuns([]piece.DigestRun{bad}, nil), piece.ErrInvalidMetadata)
		bad = signedRun(0, 1)
		bad.Metadata.Length++
		require.ErrorIs(t, r.AddRuns([]piece.DigestRun{bad}, nil), piece.ErrOtherMetadata)
	})
}

// concurrency tests concurrent use and a comparison with a model.
func (su suite) concurrency() {
	su.Run("any number of goroutines may write and read", func(t *testing.T) {
		s := su.open(t)
		big := piece.Metadata{Length: 64*4096 - 1, PieceSize: 4096}
		bytesOf := Content("big", big.Length)
		var g sync.WaitGroup
		for w := range 4 {
			g.Go(func() {
				r, err := s.Create(ID("big"), big)
				if !assert.NoError(t, err) {
					return
				}
				defer r.Close()
				order := rand.New(rand.NewPCG(uint64(w), 0)).Perm(64)
				for _, k := range order {
					i := piece.Index(k)
					assert.NoError(t, Write(r, bytesOf, i))
					var out bytes.Buffer
					_, err := r.CopyTo(&out, int64(k)*4096, 4000)
					assert.NoError(t, err, "a piece can be read once WritePiece returned")
					assert.True(t, bytes.Equal(bytesOf[k*4096:k*4096+4000], out.Bytes()))
					assert.NoError(t, r.AddRuns([]piece.DigestRun{{
						Metadata: big, First: i, Digests: []piece.Digest{{byte(k)}}, Final: true,
						Signature: bytes.Repeat([]byte{byte(k)}, 64),
					}}, nil))
					s.Inventory()
				}
			})
		}
		g.Wait()
		r, err := s.Open(ID("big"))
		require.NoError(t, err)
		defer r.Close()
		assert.Equal(t, 64, Check(t, r, bytesOf))
		runs, _ := r.Runs()
		assert.Len(t, runs, 64)
	})

	su.Run("it behaves like a simple model", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		model(t, su.Factory, rand.New(rand.NewPCG(seed, 0)))
	})
}

// restart tests a restart.
func (su suite) restart() {
	su.Run("all tasks survive a restart", func(t *testing.T) {
		if su.Reopen == nil {
			t.Skip("this store does not survive a restart; another store's tests run this")
		}
		s := su.New(t)
		r, err := s.Create(ID("a"), facts)
		require.NoError(t, err)
		for _, i := range []piece.Index{1, 2, 9} {
			require.NoError(t, Write(r, su.content, i))
		}
		require.NoError(t, r.AddRuns([]piece.DigestRun{signedRun(0, 3), signedRun(9, 1)}, [][]byte{{7}}))
		require.NoError(t, r.Close())
		before := s.Inventory()
		for range 3 {
			s = su.Reopen(t, s)
			after := s.Inventory()
			require.Len(t, after, 1)
			assert.WithinDuration(t, before[0].LastRead, after[0].LastRead, 0)
			after[0].LastRead = before[0].LastRead
			assert.Equal(t, before, after)
			r, err = s.Open(ID("a"))
			require.NoError(t, err)
			assert.Equal(t, facts, r.Metadata())
			assert.Equal(t, before[0].Have, Check(t, r, su.content))
			runs, certificates := r.Runs()
			assert.Equal(t, []piece.DigestRun{signedRun(0, 3), signedRun(9, 1)}, runs)
			assert.Equal(t, [][]byte{{7}}, certificates)
			require.NoError(t, Write(r, su.content, r.Have().NextMissing(3)))
			require.NoError(t, r.AddRuns([]piece.DigestRun{signedRun(0, 3)}, nil),
				"a run known from before the restart")
			require.NoError(t, r.Close())
			before = s.Inventory()
		}
		require.NoError(t, s.Close())
	})
}

// The quota tests have space for four tasks of quotaLength bytes.
const quotaLength = 1 << 20

var quotaMetadata = piece.MetadataFor(quotaLength, "")

func (su suite) openQuota(t *testing.T) piece.Store { return su.WithQuota(t, 4*quotaLength+4*(64<<10)) }

// fill creates a task of quotaLength bytes with all its pieces.
func fill(t *testing.T, s piece.Store, name string) piece.Replica {
	t.Helper()
	r, err := s.Create(ID(name), quotaMetadata)
	require.NoError(t, err)
	content := Content(name, quotaLength)
	for i := range piece.Index(quotaMetadata.Layout().Count()) {
		require.NoError(t, Write(r, content, i))
	}
	return r
}

// read opens and reads a whole task that fill wrote.
func read(t *testing.T, s piece.Store, name string) {
	t.Helper()
	r, err := s.Open(ID(name))
	require.NoError(t, err)
	assert.Equal(t, quotaMetadata.Layout().Count(), Check(t, r, Content(name, quotaLength)))
	require.NoError(t, r.Close())
}

// stored returns the tasks in the inventory.
func stored(s piece.Store) map[task.ID]bool {
	got := map[task.ID]bool{}
	for _, e := range s.Inventory() {
		got[e.ID] = true
	}
	return got
}

// eviction tests which tasks a full store evicts.
func (su suite) eviction() {
	su.Run("the least recently read task is evicted first", func(t *testing.T) {
		s := su.openQuota(t)
		for _, name := range []string{"a", "b", "c", "d"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		read(t, s, "a")
		require.NoError(t, fill(t, s, "e").Close())
		assert.NotContains(t, stored(s), ID("b"), "least recently read")
		assert.Contains(t, stored(s), ID("a"), "read after it was written")
		assert.Contains(t, stored(s), ID("e"), "the new task")
		for _, name := range []string{"a", "e"} {
			read(t, s, name)
		}
		_, err := s.Open(ID("b"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		require.NoError(t, fill(t, s, "b").Close(), "an evicted task can come again")
		require.NoError(t, s.Close())
	})

	su.Run("an open task is never evicted", func(t *testing.T) {
		s := su.openQuota(t)
		a := fill(t, s, "a")
		for k := range 12 {
			require.NoError(t, fill(t, s, fmt.Sprint(k)).Close())
		}
		assert.Equal(t, quotaMetadata.Layout().Count(), Check(t, a, Content("a", quotaLength)))
		require.NoError(t, a.Close())
		require.NoError(t, s.Close())
	})

	su.Run("the order of reads survives a restart", func(t *testing.T) {
		if su.Reopen == nil {
			t.Skip("this store does not survive a restart; another store's tests run this")
		}
		s := su.openQuota(t)
		for _, name := range []string{"a", "b", "c", "d"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		read(t, s, "a")
		read(t, s, "b")
		s = su.Reopen(t, s)
		assert.Len(t, stored(s), 4)
		require.NoError(t, fill(t, s, "e").Close())
		assert.NotContains(t, stored(s), ID("c"))
		assert.Contains(t, stored(s), ID("b"))
		require.NoError(t, s.Close())
	})
}

// fullStore tests a quota that is in use by open replicas.
func (su suite) fullStore() {
	su.Run("a new task is refused while all others are open", func(t *testing.T) {
		s := su.openQuota(t)
		var held []piece.Replica
		for k := range 4 {
			held = append(held, fill(t, s, fmt.Sprint(k)))
		}
		_, err := s.Create(ID("late"), quotaMetadata)
		require.ErrorIs(t, err, piece.ErrNoSpace)
		_, err = s.Open(ID("late"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		for k, r := range held {
			assert.Equal(t, quotaMetadata.Layout().Count(), Check(t, r, Content(fmt.Sprint(k), quotaLength)))
			require.NoError(t, r.Close())
		}
		require.NoError(t, fill(t, s, "late").Close())
		require.NoError(t, s.Close())
	})

	su.Run("a task that can never fit evicts nothing", func(t *testing.T) {
		s := su.openQuota(t)
		for _, name := range []string{"a", "b", "c"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		_, err := s.Create(ID("huge"), piece.MetadataFor(64*quotaLength, ""))
		require.ErrorIs(t, err, piece.ErrNoSpace)
		assert.Len(t, stored(s), 3)
		require.NoError(t, s.Close())
	})

	su.Run("removal frees space", func(t *testing.T) {
		s := su.openQuota(t)
		var held []piece.Replica
		for k := range 4 {
			held = append(held, fill(t, s, fmt.Sprint(k)))
		}
		require.NoError(t, s.Remove(ID("2")))
		require.NoError(t, fill(t, s, "late").Close())
		for _, r := range held {
			require.NoError(t, r.Close())
		}
		require.NoError(t, s.Close())
	})
}

// model compares a store with maps under random use.
func model(t *testing.T, f Factory, r *rand.Rand) {
	s := f.New(t)
	type state map[piece.Index]bool
	want := map[string]state{}
	open := map[string]piece.Replica{}
	names := []string{"a", "b", "c", "d"}
	for range 400 {
		name := names[r.IntN(len(names))]
		content := Content(name, facts.Length)
		switch r.IntN(12) {
		case 0:
			require.NoError(t, s.Remove(ID(name)))
			delete(want, name)
			if rep := open[name]; rep != nil {
				require.NoError(t, rep.Close())
				delete(open, name)
			}
		case 1:
			if rep := open[name]; rep != nil {
				require.NoError(t, rep.Close())
				delete(open, name)
			}
		case 2:
			if f.Reopen == nil || r.IntN(3) > 0 {
				continue
			}
			for _, rep := range open {
				require.NoError(t, rep.Close())
			}
			clear(open)
			s = f.Reopen(t, s)
		case 3:
			got := map[task.ID]int{}
			for _, e := range s.Inventory() {
				got[e.ID] = e.Have
			}
			expected := map[task.ID]int{}
			for n, st := range want {
				expected[ID(n)] = len(st)
			}
			require.Equal(t, expected, got)
		case 4:
			if rep := open[name]; rep != nil {
				require.Equal(t, len(want[name]), Check(t, rep, content))
			}
		default:
			rep := open[name]
			if rep == nil {
				var err error
				if want[name] == nil {
					_, err = s.Open(ID(name))
					require.ErrorIs(t, err, piece.ErrNotFound)
					want[name] = state{}
					rep, err = s.Create(ID(name), facts)
				} else {
					rep, err = s.Open(ID(name))
				}
				require.NoError(t, err)
				open[name] = rep
			}
			i := piece.Index(r.IntN(10))
			require.Equal(t, want[name][i], rep.Has(i), "%s piece %d", name, i)
			require.NoError(t, Write(rep, content, i))
			want[name][i] = true
		}
	}
	for _, rep := range open {
		require.NoError(t, rep.Close())
	}
	require.NoError(t, s.Close())
}

// signedRun returns a run of n pieces of a task with facts; its signature is invalid.
func signedRun(first, n int) piece.DigestRun {
	run := piece.DigestRun{
		Metadata: facts, Epoch: 1234567890123456789, First: piece.Index(first), Final: first+n == 10,
		Key: piece.KeyID{1, 2, 3}, Signature: bytes.Repeat([]byte{byte(first + 1)}, 64),
	}
	for k := range n {
		run.Digests = append(run.Digests, piece.Sum([]byte{byte(first + k)}))
	}
	return run
}

// failing is a writer that fails after some bytes.
type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if len(p) <= f.after {
		f.after -= len(p)
		return len(p), nil
	}
	n := f.after
	f.after = 0
	return n, f.err
}
