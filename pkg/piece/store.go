package piece

import (
	"errors"
	"io"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// The cases in which a store refuses.
var (
	// ErrNotFound: the store has no replica of that task.
	ErrNotFound = errors.New("no such task in the store")
	// ErrOtherMetadata: the store has the task under another length or piece size.
	ErrOtherMetadata = errors.New("task is stored with other facts")
	// ErrMissing: bytes were asked for that are in no verified piece yet.
	ErrMissing = errors.New("piece is missing")
	// ErrNoSpace: neither the disk nor the quota has room, and nothing can be evicted.
	ErrNoSpace = errors.New("no space left in the piece store")
	// ErrSpoolFull: bodies of unknown length take as much as they may.
	ErrSpoolFull = errors.New("bodies of unknown length may take no more")
	// ErrRemoved: the task was removed while this replica was open.
	ErrRemoved = errors.New("task was removed from the store")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("piece store is closed")
)

// Entry is one line of a store's inventory.
type Entry struct {
	ID       task.ID
	Metadata Metadata
	Have     int // pieces
	Complete bool
	LastRead time.Time
}

// Store keeps verified pieces of tasks. It judges nothing: what is written is what its
// caller has verified; what it has promised to keep it gives back to the byte or not at
// all. Safe for concurrent use. The suite in storetest is the contract in full.
type Store interface {
	// Create returns the replica of a task, making an empty one when there is none. It
	// fails with [ErrOtherMetadata] when one is there whose Length or PieceSize differ, and
	// with [ErrNoSpace]. The caller closes the replica.
	Create(id task.ID, f Metadata) (Replica, error)
	// Open returns the replica of a task, or [ErrNotFound]. The caller closes it.
	Open(id task.ID) (Replica, error)
	// Inventory lists every task, in no order.
	Inventory() []Entry
	// Remove forgets a task. Replicas that are open fail with [ErrRemoved] from then on;
	// removing what is not there is no error.
	Remove(id task.ID) error
	// Close ends the store cleanly; open replicas fail with [ErrClosed] from then on.
	Close() error
}

// Replica is what one store holds of one task. Any number may be open at once and see the
// same pieces. While one is open, its task is not evicted.
type Replica interface {
	ID() task.ID
	Metadata() Metadata
	// Have returns a copy of the set of pieces that can be read.
	Have() Bitmap
	// Has reports whether piece i can be read. A store that finds that it cannot keep its
	// word on a piece (a disk that fails) takes the piece back: it can be written again.
	Has(i Index) bool
	// WritePiece stores all bytes of piece i, of which d is the digest: the caller has
	// verified that. The bytes can be read once it returns nil; a piece that is already
	// there is not written again. On an error nothing of the piece can be read. It fails
	// with [ErrNoSpace], and with [ErrInvalidMetadata] where data is not as long as piece i.
	WritePiece(i Index, data []byte, d Digest) error
	// Digest returns the digest under which piece i was written.
	Digest(i Index) (Digest, bool)
	// ReadAt reads bytes of pieces that are there, as [io.ReaderAt] says; at a piece that
	// is not it ends with [ErrMissing] and the count of bytes before it. Bits that rot on a
	// disk are not looked for: who sends the bytes to somebody that cannot verify them
	// compares them first.
	ReadAt(p []byte, off int64) (int, error)
	// CopyTo writes the bytes [off, off+n) to w, who verifies them (a peer), without passing them through this
	// process where w and the store can (sendfile); [ErrMissing] before the first byte
	// when one of their pieces is not there or the content ends before them.
	CopyTo(w io.Writer, off, n int64) (int64, error)
	// AddRuns keeps signed runs and the DER certificates of their keys; what is there
	// already is not kept twice. The store does not check signatures.
	AddRuns(runs []DigestRun, certificates [][]byte) error
	// Runs returns all that AddRuns kept, in the order it came.
	Runs() ([]DigestRun, [][]byte)
	// Close ends the use of this replica, whose methods fail with [io/fs.ErrClosed] from
	// then on; closing twice is no error.
	Close() error
}
