package diskstore

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// idleFiles bounds the open descriptions of a data file that are kept for the next CopyTo.
const idleFiles = 8

// openTask is a task whose files are open.
//
// The order of its locks is syncing, runsMu, mu; each of them comes before journalMu. Only journalMu is held during
// disk work on a piece. Store.syncTogether alone holds syncing of several tasks, and only one runs at a time.
type openTask struct {
	s             *Store
	e             *entry
	id            task.ID
	facts         piece.Metadata
	layout        piece.Layout
	dir           string
	data, journal File

	// failedSyncs counts the failed fsyncs. A piece whose write spans a failed fsync may be lost, although its own
	// write and every later fsync succeed.
	failedSyncs atomic.Int64

	// mu guards the fields below and is never held during disk work.
	mu       sync.RWMutex
	err      error // why the task is no longer usable, nil while it is
	have     piece.Bitmap
	durable  piece.Bitmap // the pieces of have that a mark covers
	unsynced int64        // bytes written since the last sync began
	digests  []piece.Digest
	// writing holds the pieces that are being written or dropped; closing the channel ends the wait for one.
	writing map[piece.Index]chan struct{}
	// dropped are the pieces dropped since the running sync began.
	dropped      piece.Bitmap
	idle         []File // descriptions of data that no CopyTo uses
	shutDown     bool
	runs         []piece.DigestRun
	certificates [][]byte

	// runsMu is held while runs are added, so that the journal and runs have the same order.
	runsMu sync.Mutex
	seen   map[[sha256.Size]byte]struct{} // payloads of runs and certificates, under runsMu

	// journalMu is held during one append to the journal.
	journalMu  sync.Mutex
	end        int64 // the offset of the next record
	marked     int64 // end, if the last record is a mark that covers everything
	journalErr error // why the journal takes no more records, nil while it does
	journaled  piece.Bitmap
	buf        []byte

	// syncing is held during a whole sync, so that only one runs.
	syncing    sync.Mutex
	dirsSynced bool // the directories above are on stable storage
}

func newOpenTask(s *Store, e *entry, f piece.Metadata) *openTask {
	n := f.Layout().Count()
	return &openTask{
		s: s, e: e, id: e.id, facts: f, layout: f.Layout(),
		have: piece.NewBitmap(n), durable: piece.NewBitmap(n), dropped: piece.NewBitmap(n),
		journaled: piece.NewBitmap(n), digests: make([]piece.Digest, n),
		writing: map[piece.Index]chan struct{}{}, seen: map[[sha256.Size]byte]struct{}{},
	}
}

// createFiles creates a task's directory in tmp/ and renames it to its place, or to the next place if that one holds
// files that cannot be deleted.
func (s *Store) createFiles(e *entry, tmp string) (*openTask, error) {
	c := newOpenTask(s, e, e.facts)
	c.dir = tmp
	err := c.build()
	for n := 0; err == nil && n < placesMax; n++ {
		to := s.place(e.id, n)
		failed := s.move(c.dir, to)
		if failed == nil {
			c.dir, e.dir = to, to
			s.mu.Lock()
			s.removeUnusable(to)
			s.mu.Unlock()
			return c, nil
		}
		if n == placesMax-1 || diskFull(failed) || errors.Is(failed, syscall.EROFS) {
			err = failed
			break
		}
		s.log.Warn("the place of a task is unusable, so it gets another one", "task", e.id, "path", to, "error", failed)
	}
	_ = c.closeFiles() // the files are deleted next
	return nil, errors.Join(err, s.fs.RemoveAll(c.dir))
}

// build creates the files of a new task in c.dir.
func (c *openTask) build() (err error) {
	if err = c.s.fs.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	const flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	if c.data, err = c.s.fs.OpenFile(filepath.Join(c.dir, "data"), flags, 0o600); err != nil {
		return err
	}
	if err = c.s.fs.Allocate(c.data, c.facts.Length); err != nil {
		return fmt.Errorf("allocating %d bytes: %w", c.facts.Length, err)
	}
	if c.journal, err = c.s.fs.OpenFile(filepath.Join(c.dir, "journal"), flags, 0o600); err != nil {
		return err
	}
	head := encodeHeader(header{id: c.id, facts: c.facts})
	c.end = int64(len(head))
	return writeFull(c.journal, head, 0)
}

// move renames a new task's directory to its place.
func (s *Store) move(from, to string) error {
	if err := s.fs.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	err := s.fs.Rename(from, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		// The store has no such task: an earlier deletion failed.
		if err = s.deleteDir(to); err == nil {
			err = s.fs.Rename(from, to)
		}
	}
	return err
}

// writeStep bounds one pwrite, in bytes. Larger writes make Linux allocate large folios of contiguous memory. On a
// host that returns free memory to its hypervisor, writes of 1 MiB cost up to six times the CPU of 256 KiB, writes of
// 4 MiB ten times; on other hosts they are not cheaper.
const writeStep = 256 << 10

func writeFull(f File, b []byte, off int64) error {
	for len(b) > 0 {
		part := b[:min(writeStep, len(b))]
		n, err := f.WriteAt(part, off)
		if err == nil && n < len(part) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// openFile opens a file of a task. If the file cannot be written, it opens it for reading, and readOnly is the
// reason.
func (s *Store) openFile(name string) (f File, readOnly, err error) {
	f, err = s.fs.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		if g, failed := s.fs.OpenFile(name, os.O_RDONLY, 0); failed == nil {
			return g, Remedy(s.cfg.Dir, err), nil
		}
	}
	return f, nil, err
}

// load opens a task's files, cuts off a torn tail of the journal, and hashes every piece that no mark covers: pieces
// without their journaled digest are dropped. If the disk takes no writes, the pieces are served and nothing is
// written.
func (s *Store) load(e *entry) (c *openTask, err error) {
	dir := e.dir
	journal, journalErr, err := s.openFile(filepath.Join(dir, "journal"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, journal.Close())
		}
	}()
	st, err := journal.Stat()
	if err != nil {
		return nil, err
	}
	j, err := readJournal(journal, st.Size())
	if err != nil {
		return nil, err
	}
	if j.id != e.id {
		return nil, fmt.Errorf("%w: it belongs to task %s", errDamaged, j.id)
	}
	if j.end < st.Size() && journalErr == nil {
		s.log.Warn("cutting off the torn tail of a journal", "task", e.id, "bytes", st.Size()-j.end)
		journalErr = journal.Truncate(j.end)
	}
	data, readOnly, err := s.openFile(filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	journalErr = cmp.Or(journalErr, readOnly)
	defer func() {
		if err != nil {
			err = errors.Join(err, data.Close())
		}
	}()
	dst, err := data.Stat()
	if err != nil {
		return nil, err
	}
	if dst.Size() < j.facts.Length {
		s.log.Warn("a data file is too short; hashing all its pieces",
			"task", e.id, "bytes", dst.Size(), "want", j.facts.Length)
		j.covers, j.marked = 0, 0
		if journalErr == nil {
			journalErr = data.Truncate(j.facts.Length)
		}
	}

	c = newOpenTask(s, e, j.facts)
	c.dir, c.data, c.journal, c.journalErr = dir, data, journal, journalErr
	c.end, c.marked = j.end, j.marked
	c.runs, c.certificates = j.runs, j.certificates
	c.dirsSynced = j.covers > 0
	for _, r := range j.runs {
		c.seen[sha256.Sum256(appendRun(nil, r))] = struct{}{}
	}
	for _, der := range j.certificates {
		c.seen[sha256.Sum256(appendCertificate(nil, der))] = struct{}{}
	}
	c.loadPieces(j)
	return c, nil
}

// loadPieces takes over the pieces of the journal. It hashes those that no mark covers, and drops the wrong ones.
func (c *openTask) loadPieces(j *journalState) {
	var drops []byte
	var buf []byte
	for k, r := range j.pieces {
		if r.at == 0 {
			continue
		}
		i := piece.Index(k)
		c.digests[i] = r.digest
		if r.at >= j.covers {
			if buf == nil {
				buf = make([]byte, c.layout.Size(0))
			}
			b := buf[:c.layout.Size(i)]
			_, err := c.data.ReadAt(b, c.layout.Offset(i))
			if got := piece.Sum(b); err == nil && got != r.digest {
				err = &piece.DigestError{Index: i, Want: r.digest, Got: got}
			}
			if err != nil {
				c.s.log.Warn("dropping a piece that an unclean stop left wrong", "task", c.id, "piece", k, "error", err)
				drops = appendDrop(drops, i)
				continue
			}
			c.unsynced += c.layout.Size(i)
		} else {
			c.durable.Set(i)
		}
		c.have.Set(i)
		c.journaled.Set(i)
	}
	if len(drops) > 0 {
		if err := c.append(func(b []byte) []byte { return append(b, drops...) }); err != nil && c.journalErr == nil {
			c.journalErr = err // write no more marks: a later mark would cover the wrong pieces
		}
	}
}

// writeFaults records the failed writes of a task.
type writeFaults struct {
	journal, data atomic.Bool
	at            atomic.Int64 // the offset in data
}

func (s *writeFaults) any() bool { return s.journal.Load() || s.data.Load() }

// errUnwritable means that the disk takes no writes to a task's files.
var errUnwritable = errors.New("its files are no longer writable")

// probe repeats the writes that failed when the task was last open. It fails with errUnwritable if they fail again:
// then the task must be created again, in another place on the disk. A complete task needs no writes. The caller is the
// only user of c.
func (c *openTask) probe() error {
	faults := &c.e.faults
	switch {
	case c.have.Full():
		return nil
	case isDamage(c.journalErr):
		return fmt.Errorf("%w: %w", errUnwritable, c.journalErr)
	case c.journalErr != nil || !faults.any():
		return nil
	}
	err := c.append(appendNothing)
	if err == nil {
		err = c.s.fs.Datasync(c.journal)
	}
	if i := c.layout.At(faults.at.Load()); err == nil && faults.data.Load() && !c.have.Has(i) {
		if err = writeFull(c.data, make([]byte, c.layout.Size(i)), c.layout.Offset(i)); err == nil {
			err = c.s.fs.Datasync(c.data)
		}
	}
	if isDamage(err) {
		return fmt.Errorf("%w: %w", errUnwritable, err)
	}
	if err == nil {
		faults.journal.Store(false)
		faults.data.Store(false)
	}
	return nil
}

func (c *openTask) count() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.have.Count()
}

// fail ends all use of the task. If the store closes, it waits for running writes, so that they are complete.
func (c *openTask) fail(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = why
	}
	writing := c.runningWrites()
	c.mu.Unlock()
	if errors.Is(why, piece.ErrClosed) {
		waitAll(writing)
	}
}

// runningWrites returns the channels that running writes close at their end. The caller holds mu.
func (c *openTask) runningWrites() []chan struct{} {
	var out []chan struct{}
	for _, w := range c.writing {
		out = append(out, w)
	}
	return out
}

func waitAll(writes []chan struct{}) {
	for _, w := range writes {
		<-w
	}
}

// closeFiles closes the files and stores the time of the last read.
func (c *openTask) closeFiles() error {
	c.mu.Lock()
	c.shutDown = true
	idle := c.idle
	c.idle = nil
	gone := errors.Is(c.err, piece.ErrRemoved)
	c.mu.Unlock()
	var err error
	for _, f := range append(idle, c.data, c.journal) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if read := c.e.lastRead.Load(); !gone && read != 0 && err == nil {
		// Best effort: without it the task is only evicted earlier.
		_ = c.s.fs.Chtimes(filepath.Join(c.dir, "journal"), time.Unix(0, read))
	}
	return err
}

// append adds records to the journal. After an error the journal has none of them, or takes no more records.
func (c *openTask) append(records func([]byte) []byte) error {
	c.journalMu.Lock()
	defer c.journalMu.Unlock()
	return c.appendLocked(records)
}

func (c *openTask) closedJournal(why error) error {
	return fmt.Errorf("the journal of task %s takes no more records until the task is closed: %w", c.id.Short(), why)
}

func (c *openTask) appendLocked(records func([]byte) []byte) error {
	if c.journalErr != nil {
		return c.closedJournal(c.journalErr)
	}
	c.buf = records(c.buf[:0])
	if err := writeFull(c.journal, c.buf, c.end); err != nil {
		if isDamage(err) {
			c.e.faults.journal.Store(true)
		}
		// A part of the records after the end could look like a record.
		if undo := c.journal.Truncate(c.end); undo != nil {
			c.journalErr = errors.Join(err, undo)
		}
		return fmt.Errorf("appending to the journal of task %s: %w", c.id.Short(), err)
	}
	c.end += int64(len(c.buf))
	if cap(c.buf) > bufferSize {
		c.buf = nil
	}
	return nil
}

// errLost means that an fsync failed during a write, so that its bytes may be lost.
var errLost = errors.New("an fsync failed meanwhile")

// claim makes the caller the only writer of piece i, until release. release is nil if the piece is stored already.
func (c *openTask) claim(r *replica, i piece.Index) (release func(), err error) {
	for {
		c.mu.Lock()
		if err := r.failure(); err != nil {
			c.mu.Unlock()
			return nil, err
		}
		if c.have.Has(i) {
			c.mu.Unlock()
			return nil, nil
		}
		other := c.writing[i]
		if other == nil {
			done := make(chan struct{})
			c.writing[i] = done
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.writing, i)
				c.mu.Unlock()
				close(done)
			}, nil
		}
		c.mu.Unlock()
		<-other
	}
}

// write stores a piece: write, journal, publish (docs/storage.md, "Writing a piece").
func (c *openTask) write(r *replica, i piece.Index, data []byte, d piece.Digest) error {
	release, err := c.claim(r, i)
	if release == nil {
		return err
	}
	defer release()
	failedSyncs := c.failedSyncs.Load()
	c.journalMu.Lock()
	journalErr := c.journalErr
	c.journalMu.Unlock()
	if journalErr != nil {
		return c.closedJournal(journalErr)
	}

	err = c.s.evictWhileFull(int64(len(data)), func() error {
		return writeFull(c.data, data, c.layout.Offset(i))
	})
	if err != nil {
		if isDamage(err) {
			c.e.faults.at.Store(c.layout.Offset(i))
			c.e.faults.data.Store(true)
		}
		return err
	}
	err = c.s.evictWhileFull(frameFixed, func() error {
		c.journalMu.Lock()
		defer c.journalMu.Unlock()
		err := c.appendLocked(func(b []byte) []byte { return appendPiece(b, i, d) })
		if err == nil {
			c.journaled.Set(i)
		}
		return err
	})
	if err != nil {
		return err
	}

	c.mu.Lock()
	// dropUnsynced waits for this write, so that no mark covers the record before it is dropped.
	lost := c.failedSyncs.Load() != failedSyncs
	if lost || errors.Is(c.err, piece.ErrRemoved) {
		err = c.err
		c.mu.Unlock()
		if lost {
			err = errors.Join(errLost, c.journalDrops([]piece.Index{i}))
		}
		return err
	}
	c.have.Set(i)
	c.digests[i] = d
	first := c.unsynced == 0
	c.unsynced += int64(len(data))
	due := c.unsynced >= c.s.cfg.SyncBytes
	c.mu.Unlock()
	switch {
	case due:
		c.s.queueSync(c.e)
	case first:
		time.AfterFunc(c.s.cfg.SyncAfter, func() { c.s.queueSync(c.e) })
	}
	return nil
}

// journalDrops journals that the task no longer has some pieces.
func (c *openTask) journalDrops(pieces []piece.Index) error {
	c.journalMu.Lock()
	defer c.journalMu.Unlock()
	err := c.appendLocked(func(b []byte) []byte {
		for _, i := range pieces {
			b = appendDrop(b, i)
		}
		return b
	})
	if err != nil {
		// Write no more marks: without the drop, a later mark would cover these pieces.
		if c.journalErr == nil {
			c.journalErr = err
		}
		return err
	}
	for _, i := range pieces {
		c.journaled.Clear(i)
	}
	return nil
}

// dropPieces drops pieces that the disk may not have. It returns the channels that the writes running at that moment
// close. It calls which with mu held.
func (c *openTask) dropPieces(which func() []piece.Index, why error) []chan struct{} {
	done := make(chan struct{})
	c.mu.Lock()
	writing := c.runningWrites()
	pieces := which()
	for _, i := range pieces {
		c.have.Clear(i)
		c.durable.Clear(i)
		c.dropped.Set(i)
		c.writing[i] = done // no write runs, since the piece was stored
	}
	c.mu.Unlock()
	if len(pieces) > 0 {
		err := c.journalDrops(pieces)
		c.s.log.Error("dropping pieces that the disk may not have", "task", c.id, "pieces", len(pieces),
			"first", pieces[0], "error", errors.Join(why, err))
	}
	c.mu.Lock()
	for _, i := range pieces {
		delete(c.writing, i)
	}
	c.mu.Unlock()
	close(done)
	return writing
}

// sync syncs the written pieces to stable storage and marks them (docs/storage.md, "When bytes are durable").
func (c *openTask) sync() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	if err := c.syncOnce(); err != nil && !c.ended() {
		return err
	}
	return nil
}

// toSync is what a running sync brings to stable storage.
type toSync struct {
	have   piece.Bitmap
	covers int64 // the journal's offset that the mark will cover
}

// beginSync returns nil if there is nothing to sync. syncing is held until the mark is made.
func (c *openTask) beginSync() (*toSync, error) {
	// Copy the bits before the end, so that the record of every bit lies before that end.
	c.mu.Lock()
	b := &toSync{have: c.have.Clone()}
	c.unsynced = 0
	c.dropped = piece.NewBitmap(b.have.Len())
	c.mu.Unlock()
	c.journalMu.Lock()
	defer c.journalMu.Unlock()
	b.covers = c.end
	if b.covers == c.marked || c.journalErr != nil {
		return nil, c.journalErr
	}
	return b, nil
}

func (c *openTask) syncOnce() error {
	b, err := c.beginSync()
	if b == nil {
		return err
	}
	if err := c.s.fs.Datasync(c.data); err != nil {
		err = fmt.Errorf("fsync of its data: %w", err)
		if !c.ended() {
			c.dropUnsynced(err)
		}
		return err
	}
	if !c.dirsSynced {
		for _, dir := range []string{c.dir, filepath.Dir(c.dir), c.s.path("tasks")} {
			if err := c.s.fs.SyncDir(dir); err != nil {
				return fmt.Errorf("fsync of its directory: %w", err)
			}
		}
		c.dirsSynced = true
	}
	if err := c.mark(b); err != nil {
		return err
	}
	if err := c.s.fs.Datasync(c.journal); err != nil {
		// The records may be lost although later ones survive. Append no more records after such a hole.
		err = fmt.Errorf("fsync of its journal: %w", err)
		c.journalMu.Lock()
		c.journalErr = err
		c.journalMu.Unlock()
		if isDamage(err) {
			c.e.faults.journal.Store(true)
		}
		return err
	}
	return nil
}

// mark appends the mark of a sync whose bytes are on stable storage.
func (c *openTask) mark(b *toSync) error {
	c.journalMu.Lock()
	at := c.end
	err := c.appendLocked(func(buf []byte) []byte { return appendMark(buf, b.covers, c.journaled.Count()) })
	if err == nil && b.covers == at {
		c.marked = c.end
	}
	c.journalMu.Unlock()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range piece.Index(b.have.Len()) {
		if b.have.Has(i) && !c.dropped.Has(i) {
			c.durable.Set(i)
		}
	}
	return nil
}

const (
	// smallMax is the length of a small task, in bytes. Each costs five fsyncs of its own; together they need one.
	smallMax = 1 << 20
	// togetherMin is how many small tasks are worth a sync of the whole file system, which also writes what other
	// programs have not synced.
	togetherMin = 16
	// togetherMax bounds those that are synced together, and with them the files that stay open.
	togetherMax = 256
	// togetherPause is the least time from one such sync to the next. A longer one disturbs other programs on the
	// disk less, and leaves more files open.
	togetherPause = time.Second
)

// syncTogether marks small tasks after one sync of the whole file system. The marks themselves are not synced: one
// that a power cut takes costs the hashing of a small task at start. An error says that the tasks must be synced one
// by one, which also finds out whose bytes are lost.
func (s *Store) syncTogether(tasks []*openTask) error {
	running := make([]*toSync, len(tasks))
	for i, c := range tasks {
		c.syncing.Lock()
		defer c.syncing.Unlock()
		running[i], _ = c.beginSync() // an error of the journal shows in the sync of the task alone
	}
	if err := s.fs.SyncAll(s.lock); err != nil {
		return err
	}
	for i, c := range tasks {
		if running[i] == nil {
			continue
		}
		c.dirsSynced = true
		if err := c.mark(running[i]); err != nil && !c.ended() {
			s.log.Error("cannot mark a task", "task", c.id, "error", err)
		}
	}
	return nil
}

// ended reports whether the files are closed or deleted, so that their errors have no meaning.
func (c *openTask) ended() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.shutDown || errors.Is(c.err, piece.ErrRemoved)
}

// dropUnsynced drops every piece without a mark after a failed fsync. Running writes see the changed failedSyncs and
// drop their pieces themselves; dropUnsynced waits for them, so that no later sync covers their pieces.
func (c *openTask) dropUnsynced(why error) {
	c.failedSyncs.Add(1)
	writing := c.dropPieces(func() []piece.Index {
		var out []piece.Index
		for i := range piece.Index(c.have.Len()) {
			if c.have.Has(i) && !c.durable.Has(i) {
				out = append(out, i)
			}
		}
		return out
	}, why)
	waitAll(writing)
}

// dropUnreadable drops the piece at an unreadable offset.
func (c *openTask) dropUnreadable(off int64, why error) {
	i := c.layout.At(off)
	c.dropPieces(func() []piece.Index {
		if !c.have.Has(i) || c.err != nil {
			return nil
		}
		return []piece.Index{i}
	}, why)
}

// synced reports whether all is synced. stuck reports whether the files take no more writes, so that the next
// opening of the task must probe them.
func (c *openTask) synced() (settled, stuck bool) {
	c.mu.RLock()
	full := c.have.Full()
	c.mu.RUnlock()
	c.journalMu.Lock()
	defer c.journalMu.Unlock()
	return c.end == c.marked, c.journalErr != nil || !full && c.e.faults.any()
}

// description returns an open description of data for one CopyTo, which moves its offset.
func (c *openTask) description() (File, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		f := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return f, nil
	}
	c.mu.Unlock()
	return c.s.fs.OpenFile(filepath.Join(c.dir, "data"), os.O_RDONLY, 0)
}

// giveBack ends the use of a description.
func (c *openTask) giveBack(f File) error {
	c.mu.Lock()
	keep := !c.shutDown && len(c.idle) < idleFiles
	if keep {
		c.idle = append(c.idle, f)
	}
	c.mu.Unlock()
	if keep {
		return nil
	}
	return f.Close()
}

// addRuns journals the runs and certificates that are new, all of them or none.
func (c *openTask) addRuns(r *replica, runs []piece.DigestRun, certificates [][]byte) error {
	c.runsMu.Lock()
	defer c.runsMu.Unlock()
	if err := r.use(); err != nil {
		return err
	}
	var errs error
	var records []byte
	var freshRuns []piece.DigestRun
	var freshCertificates [][]byte
	var sums [][sha256.Size]byte
	fresh := func(record []byte) bool {
		sum := sha256.Sum256(record)
		if _, there := c.seen[sum]; there || slices.Contains(sums, sum) {
			return false
		}
		sums = append(sums, sum)
		records = append(records, record...)
		return true
	}
	for _, der := range certificates {
		if len(der) == 0 || len(der) > certificateMax {
			errs = errors.Join(errs, fmt.Errorf("certificate of %d bytes for task %s", len(der), c.id.Short()))
		} else if fresh(appendCertificate(nil, der)) {
			freshCertificates = append(freshCertificates, bytes.Clone(der))
		}
	}
	for _, run := range runs {
		switch err := run.Check(); {
		case err != nil:
			errs = errors.Join(errs, err)
		case run.Metadata.Length != c.facts.Length || run.Metadata.PieceSize != c.facts.PieceSize:
			errs = errors.Join(errs, fmt.Errorf("run of task %s: %w", c.id.Short(), piece.ErrOtherMetadata))
		case len(run.Signature) > signatureMax:
			errs = errors.Join(errs, fmt.Errorf("run of task %s: %w: signature of %d bytes",
				c.id.Short(), piece.ErrInvalidMetadata, len(run.Signature)))
		default:
			if fresh(appendRun(nil, run)) {
				freshRuns = append(freshRuns, cloneRun(run))
			}
		}
	}
	if len(records) == 0 {
		return errs
	}
	err := c.s.evictWhileFull(int64(len(records)), func() error {
		return c.append(func(b []byte) []byte { return append(b, records...) })
	})
	if err != nil {
		return errors.Join(errs, err)
	}
	for _, sum := range sums {
		c.seen[sum] = struct{}{}
	}
	c.mu.Lock()
	c.runs = append(c.runs, freshRuns...)
	c.certificates = append(c.certificates, freshCertificates...)
	c.mu.Unlock()
	return errs
}

func cloneRun(r piece.DigestRun) piece.DigestRun {
	r.Digests, r.Signature = slices.Clone(r.Digests), bytes.Clone(r.Signature)
	return r
}
