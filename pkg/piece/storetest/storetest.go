// Package storetest is the contract of piece.Store as a test suite: what it proves, every
// user of a store may rely on.
//
// It knows no implementation and reaches no further than the interface, so it never proves
// something that only one store can do. Start at [Run]; [RunFaults] is for a store whose
// disk can be made to fail.
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

// Factory makes the stores that a suite is run on. The suite closes them.
type Factory struct {
	// New returns an empty store without a quota.
	New func(t testing.TB) piece.Store
	// WithQuota returns an empty store that keeps at most quota bytes of content (and what
	// it adds for itself, up to 64 KiB a task), evicting down to nothing less than it must.
	// Nil: the store has no quota.
	WithQuota func(t testing.TB, quota int64) piece.Store
	// Reopen closes s and returns a store over what s kept, with the same settings. Nil:
	// the store forgets.
	Reopen func(t testing.TB, s piece.Store) piece.Store
}

// ID returns a task ID that is as good as random, the same for the same name.
func ID(name string) task.ID { return task.ID(piece.Sum([]byte(name)).String()) }

// Content returns n bytes that look random, the same for the same name.
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

// Write stores piece i of content and returns what the store says.
func Write(r piece.Replica, content []byte, i piece.Index) error {
	data := Piece(content, r.Facts().Layout(), i)
	return r.WritePiece(i, data, piece.Sum(data))
}

// Check requires that every piece that r says it has can be read, by ReadAt and CopyTo, to
// the byte of content, that no other can, and returns how many there are.
func Check(t testing.TB, r piece.Replica, content []byte) int {
	t.Helper()
	l, have := r.Facts().Layout(), r.Have()
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

// facts are those of most contents here: ten pieces, the last one short.
var facts = piece.Facts{Length: 9*1000 + 37, PieceSize: 1000, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}

// Run proves the contract on stores of f.
func Run(t *testing.T, f Factory) {
	open := func(t *testing.T) piece.Store {
		s := f.New(t)
		t.Cleanup(func() { assert.NoError(t, s.Close()) })
		return s
	}
	create := func(t *testing.T, s piece.Store, name string) piece.Replica {
		t.Helper()
		r, err := s.Create(ID(name), facts)
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, r.Close()) })
		return r
	}
	content := Content("a", facts.Length)

	t.Run("a new task has its facts and no pieces", func(t *testing.T) {
		s := open(t)
		_, err := s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		r := create(t, s, "a")
		assert.Equal(t, ID("a"), r.ID())
		assert.Equal(t, facts, r.Facts())
		assert.Zero(t, Check(t, r, content))
	})

	t.Run("what was written is read, and nothing else", func(t *testing.T) {
		r := create(t, open(t), "a")
		for k, i := range []piece.Index{9, 3, 4, 0} {
			require.NoError(t, Write(r, content, i))
			assert.Equal(t, k+1, Check(t, r, content))
		}
		got := make([]byte, 1500)
		n, err := r.ReadAt(got, 3250)
		require.NoError(t, err, "across two pieces")
		assert.Equal(t, content[3250:4750], got[:n])

		n, err = r.ReadAt(got, 4250)
		require.ErrorIs(t, err, piece.ErrMissing, "into a missing piece")
		assert.Equal(t, content[4250:5000], got[:n])

		n, err = r.ReadAt(got, 9020)
		require.ErrorIs(t, err, io.EOF, "over the end")
		assert.Equal(t, content[9020:], got[:n])

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
		assert.Equal(t, content[3999:4001], out.Bytes())
		copied, err = r.CopyTo(&out, 5000, 0)
		require.NoError(t, err, "nothing of a missing piece")
		assert.Zero(t, copied)
	})

	t.Run("the error of a writer is told by CopyTo", func(t *testing.T) {
		r := create(t, open(t), "a")
		require.NoError(t, Write(r, content, 0))
		gone := errors.New("connection is gone")
		n, err := r.CopyTo(&failing{after: 300, err: gone}, 0, 1000)
		require.ErrorIs(t, err, gone)
		assert.LessOrEqual(t, n, int64(300))
		assert.Equal(t, 1, Check(t, r, content), "the piece is as good as before")
	})

	t.Run("a piece of another length or place is refused", func(t *testing.T) {
		r := create(t, open(t), "a")
		for _, c := range []struct {
			i piece.Index
			n int
		}{{0, 999}, {0, 1001}, {0, 0}, {9, 1000}, {10, 37}, {10, 0}, {-1, 1000}} {
			err := r.WritePiece(c.i, content[:c.n], piece.Sum(content[:c.n]))
			require.ErrorIs(t, err, piece.ErrInvalidFacts, "piece %d of %d bytes", c.i, c.n)
		}
		assert.Zero(t, Check(t, r, content))
		assert.False(t, r.Has(-1))
		assert.False(t, r.Has(10))
	})

	t.Run("a piece that is there is not written again", func(t *testing.T) {
		r := create(t, open(t), "a")
		require.NoError(t, Write(r, content, 2))
		other := Content("other", 1000)
		require.NoError(t, r.WritePiece(2, other, piece.Sum(other)))
		assert.Equal(t, 1, Check(t, r, content))
	})

	t.Run("the store keeps no hold of its caller's memory", func(t *testing.T) {
		r := create(t, open(t), "a")
		buf := append([]byte(nil), Piece(content, facts.Layout(), 1)...)
		require.NoError(t, r.WritePiece(1, buf, piece.Sum(buf)))
		clear(buf)
		r.Have().SetAll()
		assert.Equal(t, 1, Check(t, r, content))
	})

	t.Run("all replicas of a task see the same pieces", func(t *testing.T) {
		s := open(t)
		a, b := create(t, s, "a"), create(t, s, "a")
		require.NoError(t, Write(a, content, 5))
		c, err := s.Open(ID("a"))
		require.NoError(t, err)
		require.NoError(t, Write(c, content, 6))
		require.NoError(t, c.Close())
		require.NoError(t, a.Close())
		assert.Equal(t, 2, Check(t, b, content))
	})

	t.Run("a task stays when its last replica is closed", func(t *testing.T) {
		s := open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, content, 5))
		require.NoError(t, r.Close())
		r = create(t, s, "a")
		assert.Equal(t, 1, Check(t, r, content))
		require.NoError(t, Write(r, content, 6))
		assert.Equal(t, 2, Check(t, r, content))
	})

	t.Run("impossible facts and other facts are refused", func(t *testing.T) {
		s := open(t)
		_, err := s.Create(ID("a"), piece.Facts{Length: -1, PieceSize: 1})
		require.ErrorIs(t, err, piece.ErrInvalidFacts)
		_, err = s.Create("../../etc/passwd", facts)
		require.ErrorIs(t, err, task.ErrInvalidID)
		create(t, s, "a")
		_, err = s.Create(ID("a"), piece.Facts{Length: facts.Length + 1, PieceSize: facts.PieceSize})
		require.ErrorIs(t, err, piece.ErrOtherFacts)
		_, err = s.Create(ID("a"), piece.Facts{Length: facts.Length, PieceSize: facts.PieceSize + 1})
		require.ErrorIs(t, err, piece.ErrOtherFacts)
		r, err := s.Create(ID("a"), piece.Facts{Length: facts.Length, PieceSize: facts.PieceSize, MediaType: "other"})
		require.NoError(t, err, "a media type does not make another content")
		assert.Equal(t, facts, r.Facts(), "the first one told stays")
		require.NoError(t, r.Close())
	})

	t.Run("an empty content is complete at once", func(t *testing.T) {
		s := open(t)
		r, err := s.Create(ID("empty"), piece.FactsFor(0, "text/plain"))
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
	})

	t.Run("the inventory tells what is there", func(t *testing.T) {
		s := open(t)
		assert.Empty(t, s.Inventory())
		a, b := create(t, s, "a"), create(t, s, "b")
		contentB := Content("b", facts.Length)
		for i := range piece.Index(10) {
			require.NoError(t, Write(a, content, i))
		}
		require.NoError(t, Write(b, contentB, 1))
		for _, when := range []string{"open", "closed"} {
			got := map[task.ID]piece.Entry{}
			for _, e := range s.Inventory() {
				assert.False(t, e.LastRead.IsZero())
				got[e.ID] = piece.Entry{ID: e.ID, Facts: e.Facts, Have: e.Have, Complete: e.Complete}
			}
			assert.Equal(t, map[task.ID]piece.Entry{
				ID("a"): {ID: ID("a"), Facts: facts, Have: 10, Complete: true},
				ID("b"): {ID: ID("b"), Facts: facts, Have: 1},
			}, got, when)
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
		}
	})

	t.Run("a removed task is gone for those who have it open, too", func(t *testing.T) {
		s := open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, content, 0))
		require.NoError(t, s.Remove(ID("a")))
		_, err := r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, piece.ErrRemoved)
		_, err = r.CopyTo(io.Discard, 0, 1)
		require.ErrorIs(t, err, piece.ErrRemoved)
		require.ErrorIs(t, Write(r, content, 1), piece.ErrRemoved)
		require.ErrorIs(t, r.AddRuns([]piece.Run{signedRun(0, 1)}, nil), piece.ErrRemoved)
		assert.False(t, r.Has(0))
		assert.Zero(t, r.Have().Count())
		_, ok := r.Digest(0)
		assert.False(t, ok)
		_, err = s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		assert.Empty(t, s.Inventory())
		require.NoError(t, s.Remove(ID("a")), "removing what is not there")

		again := create(t, s, "a")
		assert.Zero(t, Check(t, again, content), "a task made anew begins empty")
		require.NoError(t, Write(again, content, 7))
		require.NoError(t, r.Close(), "closing a replica of the old one")
		assert.Equal(t, 1, Check(t, again, content), "leaves the new one alone")
	})

	t.Run("removing while others write and read leaves nothing", func(t *testing.T) {
		s := open(t)
		for round := range 20 {
			r := create(t, s, "a")
			var g sync.WaitGroup
			for i := range piece.Index(10) {
				g.Go(func() {
					if err := Write(r, content, i); err != nil {
						assert.ErrorIs(t, err, piece.ErrRemoved)
					}
					var out bytes.Buffer
					if _, err := r.CopyTo(&out, int64(i)*1000, 1); err != nil {
						assert.True(t, errors.Is(err, piece.ErrRemoved) || errors.Is(err, piece.ErrMissing), err)
					} else {
						assert.Equal(t, content[i*1000], out.Bytes()[0])
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

	t.Run("a closed replica answers nothing, and closes twice", func(t *testing.T) {
		s := open(t)
		r := create(t, s, "a")
		require.NoError(t, Write(r, content, 0))
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		_, err := r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, fs.ErrClosed)
		_, err = r.CopyTo(io.Discard, 0, 1)
		require.ErrorIs(t, err, fs.ErrClosed)
		require.ErrorIs(t, Write(r, content, 1), fs.ErrClosed)
		require.ErrorIs(t, r.AddRuns(nil, [][]byte{{1}}), fs.ErrClosed)
		assert.False(t, r.Has(0))
	})

	t.Run("a closed store answers nothing, and closes twice", func(t *testing.T) {
		s := f.New(t)
		r, err := s.Create(ID("a"), facts)
		require.NoError(t, err)
		require.NoError(t, Write(r, content, 0))
		require.NoError(t, s.Close())
		_, err = r.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, piece.ErrClosed)
		require.ErrorIs(t, Write(r, content, 1), piece.ErrClosed)
		_, err = s.Create(ID("b"), facts)
		require.ErrorIs(t, err, piece.ErrClosed)
		_, err = s.Open(ID("a"))
		require.ErrorIs(t, err, piece.ErrClosed)
		require.ErrorIs(t, s.Remove(ID("a")), piece.ErrClosed)
		assert.Empty(t, s.Inventory())
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	})

	t.Run("runs and certificates come back as they came", func(t *testing.T) {
		s := open(t)
		r := create(t, s, "a")
		runs, certificates := r.Runs()
		assert.Empty(t, runs)
		assert.Empty(t, certificates)
		a, b, c := signedRun(0, 3), signedRun(3, 6), signedRun(9, 1)
		require.NoError(t, r.AddRuns([]piece.Run{a, b}, [][]byte{{1, 2}, {3}}))
		require.NoError(t, r.AddRuns([]piece.Run{b, c, a, c}, [][]byte{{3}, {4}, {1, 2}}))
		runs, certificates = r.Runs()
		assert.Equal(t, []piece.Run{a, b, c}, runs)
		assert.Equal(t, [][]byte{{1, 2}, {3}, {4}}, certificates)
		runs[0].Digests[0][0] ^= 1
		runs[0].Signature[0] ^= 1
		certificates[0][0] ^= 1
		runs, certificates = r.Runs()
		assert.Equal(t, []piece.Run{a, b, c}, runs, "the store's own are not its caller's to change")
		assert.Equal(t, [][]byte{{1, 2}, {3}, {4}}, certificates)

		bad := signedRun(8, 2)
		bad.Final = false
		require.ErrorIs(t, r.AddRuns([]piece.Run{bad}, nil), piece.ErrInvalidFacts)
		bad = signedRun(0, 1)
		bad.Facts.Length++
		require.ErrorIs(t, r.AddRuns([]piece.Run{bad}, nil), piece.ErrOtherFacts)
	})

	t.Run("any number may write and read at once", func(t *testing.T) {
		s := open(t)
		big := piece.Facts{Length: 64*4096 - 1, PieceSize: 4096}
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
					assert.NoError(t, r.AddRuns([]piece.Run{{
						Facts: big, First: i, Digests: []piece.Digest{{byte(k)}}, Final: true,
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

	t.Run("it does what a simple model does", func(t *testing.T) {
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		model(t, f, rand.New(rand.NewPCG(seed, 0)))
	})

	t.Run("everything is there after a restart", func(t *testing.T) {
		if f.Reopen == nil {
			t.Skip("this store forgets")
		}
		s := f.New(t)
		r, err := s.Create(ID("a"), facts)
		require.NoError(t, err)
		for _, i := range []piece.Index{1, 2, 9} {
			require.NoError(t, Write(r, content, i))
		}
		require.NoError(t, r.AddRuns([]piece.Run{signedRun(0, 3), signedRun(9, 1)}, [][]byte{{7}}))
		require.NoError(t, r.Close())
		before := s.Inventory()
		for range 3 {
			s = f.Reopen(t, s)
			after := s.Inventory()
			require.Len(t, after, 1)
			assert.WithinDuration(t, before[0].LastRead, after[0].LastRead, 0)
			after[0].LastRead = before[0].LastRead
			assert.Equal(t, before, after)
			r, err = s.Open(ID("a"))
			require.NoError(t, err)
			assert.Equal(t, facts, r.Facts())
			assert.Equal(t, before[0].Have, Check(t, r, content))
			runs, certificates := r.Runs()
			assert.Equal(t, []piece.Run{signedRun(0, 3), signedRun(9, 1)}, runs)
			assert.Equal(t, [][]byte{{7}}, certificates)
			require.NoError(t, Write(r, content, r.Have().NextMissing(3)))
			require.NoError(t, r.AddRuns([]piece.Run{signedRun(0, 3)}, nil), "a run known from before the restart")
			require.NoError(t, r.Close())
			before = s.Inventory()
		}
		require.NoError(t, s.Close())
	})

	if f.WithQuota != nil {
		t.Run("quota", func(t *testing.T) { runQuota(t, f) })
	}
}

// runQuota proves what a quota means: room for four tasks, no more.
func runQuota(t *testing.T, f Factory) {
	const length = 1 << 20
	big := piece.FactsFor(length, "")
	open := func(t *testing.T) piece.Store { return f.WithQuota(t, 4*length+4*(64<<10)) }
	fill := func(t *testing.T, s piece.Store, name string) piece.Replica {
		t.Helper()
		r, err := s.Create(ID(name), big)
		require.NoError(t, err)
		content := Content(name, length)
		for i := range piece.Index(big.Layout().Count()) {
			require.NoError(t, Write(r, content, i))
		}
		return r
	}
	read := func(t *testing.T, s piece.Store, name string) {
		t.Helper()
		r, err := s.Open(ID(name))
		require.NoError(t, err)
		assert.Equal(t, big.Layout().Count(), Check(t, r, Content(name, length)))
		require.NoError(t, r.Close())
	}
	names := func(s piece.Store) map[task.ID]bool {
		got := map[task.ID]bool{}
		for _, e := range s.Inventory() {
			got[e.ID] = true
		}
		return got
	}

	t.Run("the task that was read least recently goes first", func(t *testing.T) {
		s := open(t)
		for _, name := range []string{"a", "b", "c", "d"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		read(t, s, "a")
		require.NoError(t, fill(t, s, "e").Close())
		assert.NotContains(t, names(s), ID("b"), "read least recently")
		assert.Contains(t, names(s), ID("a"), "read after it was written")
		assert.Contains(t, names(s), ID("e"), "the newcomer")
		for _, name := range []string{"a", "e"} {
			read(t, s, name)
		}
		_, err := s.Open(ID("b"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		require.NoError(t, fill(t, s, "b").Close(), "what was evicted can come again")
		require.NoError(t, s.Close())
	})

	t.Run("what is open stays, whatever comes", func(t *testing.T) {
		s := open(t)
		a := fill(t, s, "a")
		for k := range 12 {
			require.NoError(t, fill(t, s, fmt.Sprint(k)).Close())
		}
		assert.Equal(t, big.Layout().Count(), Check(t, a, Content("a", length)))
		require.NoError(t, a.Close())
		require.NoError(t, s.Close())
	})

	t.Run("when nothing can be evicted the newcomer is refused, and has its place later", func(t *testing.T) {
		s := open(t)
		var held []piece.Replica
		for k := range 4 {
			held = append(held, fill(t, s, fmt.Sprint(k)))
		}
		_, err := s.Create(ID("late"), big)
		require.ErrorIs(t, err, piece.ErrNoSpace)
		_, err = s.Open(ID("late"))
		require.ErrorIs(t, err, piece.ErrNotFound)
		for k, r := range held {
			assert.Equal(t, big.Layout().Count(), Check(t, r, Content(fmt.Sprint(k), length)))
			require.NoError(t, r.Close())
		}
		require.NoError(t, fill(t, s, "late").Close())
		require.NoError(t, s.Close())
	})

	t.Run("a task that can never fit evicts nothing", func(t *testing.T) {
		s := open(t)
		for _, name := range []string{"a", "b", "c"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		_, err := s.Create(ID("huge"), piece.FactsFor(64*length, ""))
		require.ErrorIs(t, err, piece.ErrNoSpace)
		assert.Len(t, names(s), 3)
		require.NoError(t, s.Close())
	})

	t.Run("removing makes room", func(t *testing.T) {
		s := open(t)
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

	t.Run("who was read last is remembered over a restart", func(t *testing.T) {
		if f.Reopen == nil {
			t.Skip("this store forgets")
		}
		s := open(t)
		for _, name := range []string{"a", "b", "c", "d"} {
			require.NoError(t, fill(t, s, name).Close())
		}
		read(t, s, "a")
		read(t, s, "b")
		s = f.Reopen(t, s)
		assert.Len(t, names(s), 4)
		require.NoError(t, fill(t, s, "e").Close())
		assert.NotContains(t, names(s), ID("c"))
		assert.Contains(t, names(s), ID("b"))
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

// signedRun returns a run of n pieces of a content of facts; its signature proves nothing.
func signedRun(first, n int) piece.Run {
	run := piece.Run{
		Facts: facts, Epoch: 1234567890123456789, First: piece.Index(first), Final: first+n == 10,
		Key: piece.KeyID{1, 2, 3}, Signature: bytes.Repeat([]byte{byte(first + 1)}, 64),
	}
	for k := range n {
		run.Digests = append(run.Digests, piece.Sum([]byte{byte(first + k)}))
	}
	return run
}

// failing is a writer that takes some bytes and then fails.
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
