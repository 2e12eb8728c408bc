package peer

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"sync"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Bytes on a disk can rot, before the program starts and while it runs, although the journal lists them as good. So the
// first read of a piece compares it with its digest and notes checksums of its blocks. Every later read compares each
// block with its checksum, in the same memory that goes to the reader. A piece that this process verified when it came
// counts as compared. docs/storage.md, "What leaves a node", explains the reason and the cost. The key of the checksums
// is random for each process. They stay in memory: 8 bytes for each block.

const (
	// comparedMax bounds how many tasks' compared pieces are remembered.
	comparedMax = 8192
	// blockSize is how much is read, compared and handed to a reader at once, in bytes: little
	// enough to stay in the processor's cache meanwhile.
	blockSize = 256 << 10
)

var blockSeed = maphash.MakeSeed()

// blockSums returns the checksums of a piece's blocks.
func blockSums(data []byte) []uint64 {
	sums := make([]uint64, 0, (len(data)+blockSize-1)/blockSize)
	for b := range slices.Chunk(data, blockSize) {
		sums = append(sums, maphash.Bytes(blockSeed, b))
	}
	return sums
}

// comparedPiece is a piece whose bytes had this digest, and its blocks' checksums.
type comparedPiece struct {
	digest piece.Digest
	sums   []uint64
}

// compared are the pieces of one task that this process has compared with their digests. Safe
// for concurrent use.
type compared struct {
	mu     sync.Mutex
	pieces []*comparedPiece // nil where it was not
}

func (c *compared) set(i piece.Index, p *comparedPiece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pieces[i] = p
}

// sums returns the checksums of piece i, nil when it was not compared with that digest.
func (c *compared) sums(i piece.Index, d piece.Digest) []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pieces[i]; p != nil && p.digest == d {
		return p.sums
	}
	return nil
}

// comparedOf returns the compared pieces of a task of n pieces.
func (e *Engine) comparedOf(id task.ID, n int) *compared {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.compared[id]
	if c == nil || len(c.pieces) != n {
		if len(e.compared) >= comparedMax {
			clear(e.compared) // they are compared once more
		}
		c = &compared{pieces: make([]*comparedPiece, n)}
		e.compared[id] = c
	}
	return c
}

// stored are the pieces of one download in the store. Safe for concurrent use; readers, connections and
// the origin call it, not the loop.
type stored struct {
	e     *Engine
	id    task.ID
	proof *proof
	once  sync.Once
	set   *compared
}

// keep stores a piece whose bytes are known to match their digest.
func (s *stored) keep(i piece.Index, data []byte, sum piece.Digest) error {
	if err := s.proof.replica.WritePiece(i, data, sum); err != nil {
		return err
	}
	s.compared().set(i, &comparedPiece{digest: sum, sums: blockSums(data)})
	return nil
}

func (s *stored) compared() *compared {
	s.once.Do(func() { s.set = s.e.comparedOf(s.id, s.proof.replica.Metadata().Layout().Count()) })
	return s.set
}

// sums returns the checksums of a stored piece's blocks, after this process compared the piece with
// its digest. It fails with errDamaged for other bytes, and as the store does for a piece that is
// lost or cannot be read.
func (s *stored) sums(i piece.Index) ([]uint64, error) {
	want, ok := s.proof.replica.Digest(i)
	if !ok {
		return nil, piece.ErrMissing
	}
	if sums := s.compared().sums(i, want); sums != nil {
		return sums, nil
	}
	layout := s.proof.replica.Metadata().Layout()
	buf := s.e.buffers.get(layout.Size(i))
	defer s.e.buffers.put(buf)
	if err := readFull(s.proof.replica, buf, layout.Offset(i)); err != nil {
		return nil, err
	}
	if piece.Sum(buf) != want {
		return nil, errDamaged
	}
	p := &comparedPiece{digest: want, sums: blockSums(buf)}
	s.compared().set(i, p)
	return p.sums, nil
}

// readFull reads all of p at an offset of a replica, or fails: with errDamaged where the file ends
// before the pieces that its journal lists.
func readFull(r piece.Replica, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", errDamaged, io.ErrUnexpectedEOF)
	}
	return err
}

// readBlock reads the block of a stored piece that holds the offset at into buf, and returns where
// it begins and its bytes: those that were verified when the piece arrived. It fails as sums does.
func (s *stored) readBlock(buf []byte, at int64) (begin int64, block []byte, err error) {
	layout := s.proof.replica.Metadata().Layout()
	i := layout.At(at)
	sums, err := s.sums(i)
	if err != nil {
		return 0, nil, err
	}
	k := (at - layout.Offset(i)) / blockSize
	begin = layout.Offset(i) + k*blockSize
	block = buf[:min(blockSize, layout.Offset(i)+layout.Size(i)-begin)]
	if err := readFull(s.proof.replica, block, begin); err != nil {
		return 0, nil, err
	}
	if maphash.Bytes(blockSeed, block) != sums[k] {
		return 0, nil, errDamaged
	}
	return begin, block, nil
}

// damaged reports whether a stored piece differs from its digest. A piece that cannot be read is not damaged: the store
// handles it.
func (s *stored) damaged(i piece.Index, want piece.Digest) bool {
	layout := s.proof.replica.Metadata().Layout()
	buf := s.e.buffers.get(layout.Size(i))
	defer s.e.buffers.put(buf)
	err := readFull(s.proof.replica, buf, layout.Offset(i))
	return errors.Is(err, errDamaged) || err == nil && piece.Sum(buf) != want
}

// findDamaged compares every stored piece with its digest, and returns the first that is not right.
func (s *stored) findDamaged() (piece.Index, bool) {
	for i := range piece.Index(s.proof.replica.Metadata().Layout().Count()) {
		if want, ok := s.proof.replica.Digest(i); ok && s.damaged(i, want) {
			return i, true
		}
	}
	return 0, false
}

// readSpan returns the bytes [off, off+n) of a replica, which has them, after it compared each of
// their pieces with its digest.
func readSpan(r piece.Replica, off, n int64) ([]byte, error) {
	layout := r.Metadata().Layout()
	first, end := layout.Span(off, n)
	begin := layout.Offset(first)
	b := make([]byte, min(layout.Offset(end), layout.Length)-begin)
	if err := readFull(r, b, begin); err != nil {
		return nil, err
	}
	for i := first; i < end; i++ {
		want, ok := r.Digest(i)
		if !ok {
			return nil, fmt.Errorf("piece %d: %w", i, piece.ErrMissing)
		}
		if piece.Sum(b[layout.Offset(i)-begin:][:layout.Size(i)]) != want {
			return nil, fmt.Errorf("piece %d: %w", i, errDamaged)
		}
	}
	return b[off-begin:][:n], nil
}

// dropDamaged drops a task of which a piece is damaged. The next reader makes the engine fetch it again.
func (d *Download) dropDamaged(i piece.Index) {
	d.forgetDamaged(fmt.Errorf("piece %d: %w", i, errDamaged))
	d.fail(errDamaged)
}

// forgetDamaged removes all pieces of the task from the store: the disk cannot be trusted with any of
// them.
func (d *Download) forgetDamaged(why error) {
	d.log.Error("stored object is damaged, so this host deletes it", "error", why)
	d.e.mu.Lock()
	delete(d.e.compared, d.id)
	d.e.mu.Unlock()
	if err := d.e.cfg.Store.Remove(d.id); err != nil {
		d.log.Error("cannot drop a damaged task", "error", err)
	}
}

// drop drops a damaged task that was not read through a download.
func (e *Engine) drop(id task.ID, why error) {
	e.mu.Lock()
	d := e.downloads[id]
	e.mu.Unlock()
	if d != nil && d.proof.hasMetadata() {
		if i, found := d.stored.findDamaged(); found {
			d.notify(pieceDamaged{i})
		}
		return
	}
	e.log.Error("stored object is damaged, so this host deletes it", "task", id, "error", why)
	if err := e.cfg.Store.Remove(id); err != nil {
		e.log.Error("cannot drop a damaged task", "task", id, "error", err)
	}
}

// Checked returns a replica whose ReadAt compares every piece with its digest, for callers that send bytes
// of a small object without a [Reader]. Where a piece is damaged it fails, and the engine drops the task.
func (e *Engine) Checked(r piece.Replica) piece.Replica { return &checkedReplica{r, e} }

type checkedReplica struct {
	piece.Replica
	e *Engine
}

// Runs returns the certificates that hosts accept now.
func (r *checkedReplica) Runs() ([]piece.DigestRun, [][]byte) {
	runs, certs := r.Replica.Runs()
	return runs, current(r.e.cfg.Verifier, certs)
}

func (r *checkedReplica) ReadAt(p []byte, off int64) (int, error) {
	length := r.Metadata().Length
	if off < 0 || off >= length {
		return r.Replica.ReadAt(p, off)
	}
	b, err := readSpan(r.Replica, off, min(int64(len(p)), length-off))
	if errors.Is(err, errDamaged) {
		r.e.drop(r.ID(), err)
	}
	n := copy(p, b)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
