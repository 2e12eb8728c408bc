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
	WriteNoSpace Fault = "the disk is full during the write of a piece"
	WriteError   Fault = "a piece cannot be written"
	NoteShort    Fault = "half of the record of a piece is written"
	NoteNoSpace  Fault = "the disk is full during the record of a piece"
	NoteStuck    Fault = "half of the record of a piece is written and cannot be undone"
	SyncError    Fault = "every sync fails"
	ReadError    Fault = "every read fails"
)

// FaultFactory makes stores with a disk that tests can break.
type FaultFactory struct {
	Factory // Reopen is required
	// Break makes the disk under s fail until mend is called.
	Break func(t testing.TB, s piece.Store, f Fault) (mend func())
}

// RunFaults proves for every fault that no byte of the affected piece can be read, the other pieces stay good,
// and the store recovers.
func RunFaults(t *testing.T, f FaultFactory) {
	su := faultSuite{f, Content("a", facts.Length)}
	for _, fault := range []Fault{ShortWrite, WriteNoSpace, WriteError, NoteShort, NoteNoSpace, NoteStuck} {
		t.Run(string(fault)+", and the store recovers", func(t *testing.T) {
			s, r := su.begin(t)
			su.failWrites(t, s, r, fault)()
			su.complete(t, s, r)
		})
		t.Run(string(fault)+", and the store recovers after a restart", func(t *testing.T) {
			s, r := su.begin(t)
			mend := su.failWrites(t, s, r, fault)
			require.NoError(t, r.Close())
			_ = s.Close() // may fail
			mend()
			s = f.Reopen(t, s)
			r, err := s.Open(ID("a"))
			require.NoError(t, err)
			assert.Equal(t, before, Check(t, r, su.content))
			su.complete(t, s, r)
		})
	}
	t.Run(string(SyncError), su.syncError)
	t.Run(string(ReadError), su.readError)
}

// before is the number of pieces that are stored before a fault.
const before = 4

type faultSuite struct {
	FaultFactory
	content []byte
}

// begin returns a store whose task "a" has its first pieces.
func (su faultSuite) begin(t *testing.T) (piece.Store, piece.Replica) {
	s := su.New(t)
	r, err := s.Create(ID("a"), facts)
	require.NoError(t, err)
	for i := range piece.Index(before) {
		require.NoError(t, Write(r, su.content, i))
	}
	return s, r
}

// complete requires that the missing pieces can be written now, and that they survive a restart.
func (su faultSuite) complete(t *testing.T, s piece.Store, r piece.Replica) {
	t.Helper()
	Check(t, r, su.content)
	for i := range piece.Index(10) {
		if err := Write(r, su.content, i); err != nil { // the task may need to be opened again
			require.NoError(t, r.Close())
			r, err = s.Open(ID("a"))
			require.NoError(t, err)
			Check(t, r, su.content)
			require.NoError(t, Write(r, su.content, i))
		}
	}
	assert.Equal(t, 10, Check(t, r, su.content))
	require.NoError(t, r.Close())
	s = su.Reopen(t, s)
	r, err := s.Open(ID("a"))
	require.NoError(t, err)
	assert.Equal(t, 10, Check(t, r, su.content))
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// failWrites writes pieces while the disk fails, and requires that they stay missing.
func (su faultSuite) failWrites(t *testing.T, s piece.Store, r piece.Replica, fault Fault) (mend func()) {
	t.Helper()
	mend = su.Break(t, s, fault)
	for _, i := range []piece.Index{4, 9, 4} {
		err := Write(r, su.content, i)
		require.Error(t, err)
		if fault == WriteNoSpace || fault == NoteNoSpace {
			require.ErrorIs(t, err, piece.ErrNoSpace)
		}
		assert.Equal(t, before, Check(t, r, su.content), "piece %d is missing, all others are stored", i)
	}
	assert.Equal(t, before, s.Inventory()[0].Have)
	return mend
}

func (su faultSuite) syncError(t *testing.T) {
	s, r := su.begin(t)
	require.NoError(t, r.Close())
	s = su.Reopen(t, s)
	r, err := s.Open(ID("a"))
	require.NoError(t, err)
	mend := su.Break(t, s, SyncError)
	for i := range piece.Index(10) {
		_ = Write(r, su.content, i)
	}
	for i := range piece.Index(10) { // a store may drop a piece that it cannot make durable, at any moment
		got := make([]byte, facts.Layout().Size(i))
		switch _, err := r.ReadAt(got, facts.Layout().Offset(i)); {
		case err == nil:
			assert.True(t, bytes.Equal(Piece(su.content, facts.Layout(), i), got), "piece %d has other bytes", i)
		default:
			assert.ErrorIs(t, err, piece.ErrMissing)
			assert.GreaterOrEqual(t, int(i), before, "durable pieces stay")
		}
	}
	require.NoError(t, r.Close())
	_ = s.Close()
	mend()
	s = su.Reopen(t, s)
	r, err = s.Open(ID("a"))
	require.NoError(t, err)
	assert.GreaterOrEqual(t, Check(t, r, su.content), before)
	su.complete(t, s, r)
}

func (su faultSuite) readError(t *testing.T) {
	s, r := su.begin(t)
	mend := su.Break(t, s, ReadError)
	_, err := r.ReadAt(make([]byte, 10), 0)
	require.Error(t, err)
	require.NotErrorIs(t, err, piece.ErrMissing)
	var out bytes.Buffer
	_, err = r.CopyTo(&out, 1000, 10)
	require.Error(t, err)
	assert.Zero(t, out.Len())
	mend()
	assert.False(t, r.Has(0), "the store drops a piece that the disk did not return")
	assert.False(t, r.Has(1))
	assert.Equal(t, before-2, Check(t, r, su.content))
	require.NoError(t, r.Close())
	s = su.Reopen(t, s)
	assert.Equal(t, before-2, s.Inventory()[0].Have, "also after a restart")
	r, err = s.Open(ID("a"))
	require.NoError(t, err)
	su.complete(t, s, r)
}
