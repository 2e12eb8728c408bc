package storetest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
)

// Fault is a way in which a disk fails.
type Fault string

// The faults.
const (
	ShortWrite   Fault = "half of a piece is written"
	WriteNoSpace Fault = "the disk is full when a piece is written"
	WriteError   Fault = "a piece cannot be written"
	NoteShort    Fault = "half of the record of a piece is written"
	NoteNoSpace  Fault = "the disk is full when a piece is recorded"
	NoteStuck    Fault = "half of the record of a piece is written and cannot be undone"
	SyncError    Fault = "nothing can be brought to stable storage"
	ReadError    Fault = "nothing can be read"
)

// FaultFactory makes stores whose disk can be made to fail.
type FaultFactory struct {
	Factory // Reopen is required
	// Break makes the disk under s fail until mend is called.
	Break func(t testing.TB, s piece.Store, f Fault) (mend func())
}

// RunFaults proves that, whatever fails, nothing of the piece in question can be read, the
// other pieces stay good, and the store recovers.
func RunFaults(t *testing.T, f FaultFactory) {
	content := Content("a", facts.Length)
	const before = 4 // pieces
	begin := func(t *testing.T) (piece.Store, piece.Replica) {
		s := f.New(t)
		r, err := s.Create(ID("a"), facts)
		require.NoError(t, err)
		for i := range piece.Index(before) {
			require.NoError(t, Write(r, content, i))
		}
		return s, r
	}
	// complete requires that what is missing can be written now, and that it lasts.
	complete := func(t *testing.T, s piece.Store, r piece.Replica) {
		t.Helper()
		Check(t, r, content)
		for i := range piece.Index(10) {
			if err := Write(r, content, i); err != nil { // a task may have to be opened anew
				require.NoError(t, r.Close())
				r, err = s.Open(ID("a"))
				require.NoError(t, err)
				Check(t, r, content)
				require.NoError(t, Write(r, content, i))
			}
		}
		assert.Equal(t, 10, Check(t, r, content))
		require.NoError(t, r.Close())
		s = f.Reopen(t, s)
		r, err := s.Open(ID("a"))
		require.NoError(t, err)
		assert.Equal(t, 10, Check(t, r, content))
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	}

	for _, fault := range []Fault{ShortWrite, WriteNoSpace, WriteError, NoteShort, NoteNoSpace, NoteStuck} {
		fail := func(t *testing.T, s piece.Store, r piece.Replica) (mend func()) {
			t.Helper()
			mend = f.Break(t, s, fault)
			for _, i := range []piece.Index{4, 9, 4} {
				err := Write(r, content, i)
				require.Error(t, err)
				if fault == WriteNoSpace || fault == NoteNoSpace {
					require.ErrorIs(t, err, piece.ErrNoSpace)
				}
				assert.Equal(t, before, Check(t, r, content), "nothing of piece %d, and all of the others", i)
			}
			assert.Equal(t, before, s.Inventory()[0].Have)
			return mend
		}
		t.Run(string(fault)+", and it goes on afterwards", func(t *testing.T) {
			s, r := begin(t)
			fail(t, s, r)()
			complete(t, s, r)
		})
		t.Run(string(fault)+", and it goes on after a restart", func(t *testing.T) {
			s, r := begin(t)
			mend := fail(t, s, r)
			require.NoError(t, r.Close())
			_ = s.Close() // may or may not tell
			mend()
			s = f.Reopen(t, s)
			r, err := s.Open(ID("a"))
			require.NoError(t, err)
			assert.Equal(t, before, Check(t, r, content))
			complete(t, s, r)
		})
	}

	t.Run(string(SyncError), func(t *testing.T) {
		s, r := begin(t)
		s = func() piece.Store { require.NoError(t, r.Close()); return f.Reopen(t, s) }()
		r, err := s.Open(ID("a"))
		require.NoError(t, err)
		mend := f.Break(t, s, SyncError)
		for i := range piece.Index(10) {
			_ = Write(r, content, i)
		}
		for i := range piece.Index(10) { // a store may take back what it cannot keep, at any moment
			got := make([]byte, facts.Layout().Size(i))
			switch _, err := r.ReadAt(got, facts.Layout().Offset(i)); {
			case err == nil:
				assert.True(t, bytes.Equal(Piece(content, facts.Layout(), i), got), "piece %d has other bytes", i)
			default:
				assert.ErrorIs(t, err, piece.ErrMissing)
				assert.GreaterOrEqual(t, int(i), before, "what was durable before stays")
			}
		}
		require.NoError(t, r.Close())
		_ = s.Close()
		mend()
		s = f.Reopen(t, s)
		r, err = s.Open(ID("a"))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, Check(t, r, content), before)
		complete(t, s, r)
	})

	t.Run(string(ReadError), func(t *testing.T) {
		s, r := begin(t)
		mend := f.Break(t, s, ReadError)
		_, err := r.ReadAt(make([]byte, 10), 0)
		require.Error(t, err)
		require.NotErrorIs(t, err, piece.ErrMissing)
		var out bytes.Buffer
		_, err = r.CopyTo(&out, 1000, 10)
		require.Error(t, err)
		assert.Zero(t, out.Len())
		mend()
		assert.False(t, r.Has(0), "what the disk did not give back is taken back")
		assert.False(t, r.Has(1))
		assert.Equal(t, before-2, Check(t, r, content))
		require.NoError(t, r.Close())
		s = f.Reopen(t, s)
		assert.Equal(t, before-2, s.Inventory()[0].Have, "and not claimed after a restart")
		r, err = s.Open(ID("a"))
		require.NoError(t, err)
		complete(t, s, r)
	})
}
