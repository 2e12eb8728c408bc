package piece

import (
	"errors"
	"io"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// The errors of a store.
var (
	// ErrNotFound: the store has no replica of that task.
	ErrNotFound = errors.New("no such task in the store")
	// ErrOtherMetadata: the store has the task with another length or piece size.
	ErrOtherMetadata = errors.New("task is stored with other metadata")
	// ErrMissing: a requested byte is not in a verified piece yet.
	ErrMissing = errors.New("piece is missing")
	// ErrNoSpace: the disk or the quota is full, and nothing can be evicted.
	ErrNoSpace = errors.New("no space left in the piece store")
	// ErrSpoolFull: bodies of unknown length fill their share of the quota.
	ErrSpoolFull = errors.New("bodies of unknown length fill their share of the store")
	// ErrRemoved: the task was removed while this replica was open.
	ErrRemoved = errors.New("task was removed from the store")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("piece store is closed")
)

// Entry is one task of a store's inventory.
type Entry struct {
	ID       task.ID
	Metadata Metadata
	Have     int // the number of stored pieces
	Complete bool
	LastRead time.Time
}

// Store keeps verified pieces of tasks. Its caller verifies them; the store returns the same bytes or an error. Safe
// for concurrent use. Package storetest is the full contract as tests.
type Store interface {
	// Create returns the replica of a task, a new one if the store has none. It fails with [ErrOtherMetadata] if the
	// store has one whose Length or PieceSize differs, and with [ErrNoSpace]. The caller closes the replica.
	Create(id task.ID, m Metadata) (Replica, error)
	// Open returns the replica of a task, or [ErrNotFound]. The caller closes it.
	Open(id task.ID) (Replica, error)
	// Complete reports whether the store has every piece of a task, as Inventory would: it reads no disk.
	Complete(id task.ID) bool
	// Inventory lists every task, in no order.
	Inventory() []Entry
	// Remove deletes a task. Its open replicas fail with [ErrRemoved] from then on. Removing a task that the store does
	// not have is no error.
	Remove(id task.ID) error
	// Close makes everything durable and ends the store; open replicas fail with [ErrClosed] from then on.
	Close() error
}

// Replica holds the pieces of one task in one store. Any number can be open at once; all see the same pieces. The store
// does not evict a task with an open replica.
type Replica interface {
	ID() task.ID
	Metadata() Metadata
	// Have returns a copy of the set of readable pieces.
	Have() Bitmap
	// Has reports whether piece i can be read. A store whose disk loses a piece removes the piece from the set: it can
	// be written again.
	Has(i Index) bool
	// WritePiece stores all bytes of piece i. The caller has verified that d is their digest. The bytes can be read
	// once it returns nil; a stored piece is not written again. After an error nothing of the piece can be read. It
	// fails with [ErrNoSpace], and with [ErrInvalidMetadata] if data is not as long as piece i.
	WritePiece(i Index, data []byte, d Digest) error
	// Digest returns the digest with which piece i was written.
	Digest(i Index) (Digest, bool)
	// ReadAt reads bytes of stored pieces as [io.ReaderAt] does. It stops at a missing piece with [ErrMissing] and the
	// number of bytes before it. It does not detect bit rot: a caller that sends the bytes to a client that cannot
	// verify them compares their digest first.
	ReadAt(p []byte, off int64) (int, error)
	// CopyTo writes the bytes [off, off+n) to a peer, which verifies them, with sendfile if w and the store support it.
	// It fails with [ErrMissing] before the first byte if one of their pieces is missing or the task ends before them.
	CopyTo(w io.Writer, off, n int64) (int64, error)
	// AddRuns keeps signed runs and the DER certificates of their keys, each once. The store does not verify
	// signatures.
	AddRuns(runs []DigestRun, certificates [][]byte) error
	// Runs returns all runs and certificates in the order of AddRuns.
	Runs() ([]DigestRun, [][]byte)
	// Close ends this replica; its methods fail with [io/fs.ErrClosed] from then on. Closing twice is no error.
	Close() error
}
