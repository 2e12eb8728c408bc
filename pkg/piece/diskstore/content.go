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

// idleFiles is how many open descriptions of a data file wait for the next CopyTo.
const idleFiles = 8

// content is a task whose files are open.
//
// Where several locks are needed they are taken in this order: syncing, known, mu; and each
// of them before log. None but log is held while the disk works on a piece.
type content struct {
	s             *Store
	e             *entry
	id            task.ID
	facts         piece.Metadata
	layout        piece.Layout
	dir           string
	data, journal File

	// losses counts the fsyncs that failed. A piece whose writing began before one and
	// ended after it may be lost, although its own write and every later fsync succeed.
	losses atomic.Int64

	// mu is held to look at or change the fields below, never while the disk works.
	mu      sync.RWMutex
	err     error // why nothing can be done any more
	have    piece.Bitmap
	proven  piece.Bitmap // those of have that a mark covers
	news    int64        // bytes written since the last sync began
	digests []piece.Digest
	// writing holds the pieces that are being written or taken back; a closed channel ends
	// the wait for one.
	writing map[piece.Index]chan struct{}
	// taken are the pieces taken back since the running sync began.
	taken        piece.Bitmap
	idle         []File // descriptions of data that no CopyTo uses
	shutDown     bool
	runs         []piece.DigestRun
	certificates [][]byte

	// known is held while runs are added: it orders them in the journal as in runs.
	known sync.Mutex
	seen  map[[sha256.Size]byte]struct{} // payloads of runs and certificates, under known

	// log is held over one append to the journal.
	log       sync.Mutex
	end       int64 // where the next record goes
	marked    int64 // end, when the last record is a mark that covers everything
	broken    error // why nothing can be appended any more
	journaled piece.Bitmap
	buf       []byte

	// syncing is held over a whole sync, so that there is one at a time.
	syncing sync.Mutex
	linked  bool // the directories above are on stable storage
}

func newContent(s *Store, e *entry, f piece.Metadata) *content {
	n := f.Layout().Count()
	return &content{
		s: s, e: e, id: e.id, facts: f, layout: f.Layout(),
		have: piece.NewBitmap(n), proven: piece.NewBitmap(n), taken: piece.NewBitmap(n),
		journaled: piece.NewBitmap(n), digests: make([]piece.Digest, n),
		writing: map[piece.Index]chan struct{}{}, seen: map[[sha256.Size]byte]struct{}{},
	}
}

// make makes a task's directory in tmp/ and renames it to its place, or to the next where that is
// taken by what the disk does not delete.
func (s *Store) make(e *entry, tmp string) (*content, error) {
	c := newContent(s, e, e.facts)
	c.dir = tmp
	err := c.build()
	for n := 0; err == nil && n < placesMax; n++ {
		to := s.place(e.id, n)
		failed := s.move(c.dir, to)
		if failed == nil {
			c.dir, e.dir = to, to
			s.mu.Lock()
			s.forgetAside(to)
			s.mu.Unlock()
			return c, nil
		}
		if n == placesMax-1 || diskFull(failed) || errors.Is(failed, syscall.EROFS) {
			err = failed
			break
		}
		s.log.Warn("a task cannot have its place, so it gets another", "task", e.id, "path", to, "error", failed)
	}
	_ = c.shut() // of files that never were anything
	return nil, errors.Join(err, s.fs.RemoveAll(c.dir))
}

// build makes the files of a new task in c.dir.
func (c *content) build() (err error) {
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

// move gives a task that was made its place.
func (s *Store) move(from, to string) error {
	if err := s.fs.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	err := s.fs.Rename(from, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		// The store knows of no such task: it is what could not be deleted before.
		if err = s.unmake(to); err == nil {
			err = s.fs.Rename(from, to)
		}
	}
	return err
}

// writeStep is how much one pwrite moves, in bytes. Larger ones make Linux fill its page cache
// with large folios, whose memory it must find in one place: 1 MiB at once was measured to
// cost up to six times the CPU of 256 KiB, 4 MiB ten times, where memory had been given back
// to a hypervisor meanwhile, and never less.
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

// openFile opens a file of a task, only for reading where it cannot be written: then readOnly tells
// why.
func (s *Store) openFile(name string) (f File, readOnly, err error) {
	f, err = s.fs.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		if g, failed := s.fs.OpenFile(name, os.O_RDONLY, 0); failed == nil {
			return g, Remedy(s.cfg.Dir, err), nil
		}
	}
	return f, nil, err
}

// load opens a task's files, cuts off a torn tail, and hashes every piece that no mark
// proves to be on stable storage: what has not its journaled digest is dropped. Where the
// disk takes nothing, what it gives is served all the same, and nothing is written.
func (s *Store) load(e *entry) (c *content, err error) {
	dir := e.dir
	journal, broken, err := s.openFile(filepath.Join(dir, "journal"))
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
		return nil, fmt.Errorf("%w: speaks of task %s", errDamaged, j.id)
	}
	if j.end < st.Size() && broken == nil {
		s.log.Warn("cutting off the torn tail of a journal", "task", e.id, "bytes", st.Size()-j.end)
		broken = journal.Truncate(j.end)
	}
	data, readOnly, err := s.openFile(filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	broken = cmp.Or(broken, readOnly)
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
		s.log.Warn("a data file is too short, all its pieces are hashed", "task", e.id, "bytes", dst.Size(), "want", j.facts.Length)
		j.covers, j.marked = 0, 0
		if broken == nil {
			broken = data.Truncate(j.facts.Length)
		}
	}

	c = newContent(s, e, j.facts)
	c.dir, c.data, c.journal, c.broken = dir, data, journal, broken
	c.end, c.marked = j.end, j.marked
	c.runs, c.certificates = j.runs, j.certificates
	c.linked = j.covers > 0
	for _, r := range j.runs {
		c.seen[sha256.Sum256(appendRun(nil, r))] = struct{}{}
	}
	for _, der := range j.certificates {
		c.seen[sha256.Sum256(appendCertificate(nil, der))] = struct{}{}
	}
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
			_, err := data.ReadAt(b, c.layout.Offset(i))
			if got := piece.Sum(b); err == nil && got != r.digest {
				err = &piece.DigestError{Index: i, Want: r.digest, Got: got}
			}
			if err != nil {
				s.log.Warn("dropping a piece that an unclean stop left wrong", "task", e.id, "piece", k, "error", err)
				drops = appendDrop(drops, i)
				continue
			}
			c.news += c.layout.Size(i)
		} else {
			c.proven.Set(i)
		}
		c.have.Set(i)
		c.journaled.Set(i)
	}
	if len(drops) > 0 {
		if err := c.append(func(b []byte) []byte { return append(b, drops...) }); err != nil && c.broken == nil {
			c.broken = err // a later mark would vouch for them, so there is none
		}
	}
	return c, nil
}

// sick notes where a disk did not take what was written.
type sick struct {
	journal, data atomic.Bool
	at            atomic.Int64 // the offset in data
}

func (s *sick) any() bool { return s.journal.Load() || s.data.Load() }

// errSick tells that a disk does not take what is written to a task's files.
var errSick = errors.New("its files can be written no more")

// probe tries whether the disk takes again what it did not take when the task was open last. It
// fails with errSick where it does not: then the task is made anew, elsewhere on the disk. What is
// here completely needs no writing. Nobody else has the content yet.
func (c *content) probe() error {
	sick := &c.e.sick
	switch {
	case c.have.Full():
		return nil
	case faulty(c.broken):
		return fmt.Errorf("%w: %w", errSick, c.broken)
	case c.broken != nil || !sick.any():
		return nil
	}
	err := c.append(appendNothing)
	if err == nil {
		err = c.s.fs.Datasync(c.journal)
	}
	if i := c.layout.At(sick.at.Load()); err == nil && sick.data.Load() && !c.have.Has(i) {
		if err = writeFull(c.data, make([]byte, c.layout.Size(i)), c.layout.Offset(i)); err == nil {
			err = c.s.fs.Datasync(c.data)
		}
	}
	if faulty(err) {
		return fmt.Errorf("%w: %w", errSick, err)
	}
	if err == nil {
		sick.journal.Store(false)
		sick.data.Store(false)
	}
	return nil
}

func (c *content) count() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.have.Count()
}

// fail ends all use of the content. When the store closes, it waits for the writes that
// run, so that they are whole.
func (c *content) fail(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = why
	}
	writing := c.waits()
	c.mu.Unlock()
	if errors.Is(why, piece.ErrClosed) {
		wait(writing)
	}
}

// waits returns what ends when the writes that run now do. The caller holds mu.
func (c *content) waits() []chan struct{} {
	var out []chan struct{}
	for _, w := range c.writing {
		out = append(out, w)
	}
	return out
}

func wait(writes []chan struct{}) {
	for _, w := range writes {
		<-w
	}
}

// shut closes the files, and keeps the time of the last read.
func (c *content) shut() error {
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
		// Without it the task is only evicted earlier.
		_ = c.s.fs.Chtimes(filepath.Join(c.dir, "journal"), time.Unix(0, read))
	}
	return err
}

// append adds records to the journal; on an error nothing of them is there, or nothing can
// be appended any more.
func (c *content) append(records func([]byte) []byte) error {
	c.log.Lock()
	defer c.log.Unlock()
	return c.appendLocked(records)
}

func (c *content) closedJournal(why error) error {
	return fmt.Errorf("journal of task %s takes no more until the task is closed: %w", c.id.Short(), why)
}

func (c *content) appendLocked(records func([]byte) []byte) error {
	if c.broken != nil {
		return c.closedJournal(c.broken)
	}
	c.buf = records(c.buf[:0])
	if err := writeFull(c.journal, c.buf, c.end); err != nil {
		if faulty(err) {
			c.e.sick.journal.Store(true)
		}
		// What stands behind the end would look like a record, half of it or more.
		if undo := c.journal.Truncate(c.end); undo != nil {
			c.broken = errors.Join(err, undo)
		}
		return fmt.Errorf("appending to the journal of task %s: %w", c.id.Short(), err)
	}
	c.end += int64(len(c.buf))
	if cap(c.buf) > bufferSize {
		c.buf = nil
	}
	return nil
}

// errLost tells a write that an fsync which failed may have taken its bytes.
var errLost = errors.New("an fsync failed meanwhile")

// claim makes the caller the only one who changes piece i, until release. It returns nil
// when the piece is there already.
func (c *content) claim(r *replica, i piece.Index) (release func(), err error) {
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
func (c *content) write(r *replica, i piece.Index, data []byte, d piece.Digest) error {
	release, err := c.claim(r, i)
	if release == nil {
		return err
	}
	defer release()
	losses := c.losses.Load()
	c.log.Lock()
	broken := c.broken
	c.log.Unlock()
	if broken != nil {
		return c.closedJournal(broken)
	}

	err = c.s.withRoom(int64(len(data)), func() error {
		return writeFull(c.data, data, c.layout.Offset(i))
	})
	if err != nil {
		if faulty(err) {
			c.e.sick.at.Store(c.layout.Offset(i))
			c.e.sick.data.Store(true)
		}
		return err
	}
	err = c.s.withRoom(frameFixed, func() error {
		c.log.Lock()
		defer c.log.Unlock()
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
	// lose waits for this: no mark vouches for the record before it is dropped again.
	lost := c.losses.Load() != losses
	if lost || errors.Is(c.err, piece.ErrRemoved) {
		err = c.err
		c.mu.Unlock()
		if lost {
			err = errors.Join(errLost, c.drop([]piece.Index{i}))
		}
		return err
	}
	c.have.Set(i)
	c.digests[i] = d
	first := c.news == 0
	c.news += int64(len(data))
	due := c.news >= c.s.cfg.SyncBytes
	c.mu.Unlock()
	switch {
	case due:
		c.s.settle(c.e)
	case first:
		time.AfterFunc(c.s.cfg.SyncAfter, func() { c.s.settle(c.e) })
	}
	return nil
}

// drop journals that pieces are not claimed any more.
func (c *content) drop(pieces []piece.Index) error {
	c.log.Lock()
	defer c.log.Unlock()
	err := c.appendLocked(func(b []byte) []byte {
		for _, i := range pieces {
			b = appendDrop(b, i)
		}
		return b
	})
	if err != nil {
		// Without the drop a later mark would vouch for them, so there is none.
		if c.broken == nil {
			c.broken = err
		}
		return err
	}
	for _, i := range pieces {
		c.journaled.Clear(i)
	}
	return nil
}

// takeBack withdraws pieces that the disk may not have, and returns what ends when the
// writes that ran at that moment do. which is called with mu held.
func (c *content) takeBack(which func() []piece.Index, why error) []chan struct{} {
	done := make(chan struct{})
	c.mu.Lock()
	writing := c.waits()
	pieces := which()
	for _, i := range pieces {
		c.have.Clear(i)
		c.proven.Clear(i)
		c.taken.Set(i)
		c.writing[i] = done // nobody writes it, for it was there
	}
	c.mu.Unlock()
	if len(pieces) > 0 {
		err := c.drop(pieces)
		c.s.log.Error("withdrawing pieces that the disk may not have", "task", c.id, "pieces", len(pieces),
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

// sync brings to stable storage what is written, and marks it (docs/storage.md, "When
// bytes are durable").
func (c *content) sync() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	if err := c.bring(); err != nil && !c.over() {
		return err
	}
	return nil
}

func (c *content) bring() error {
	// First the bits, then the end: every bit's record lies before that end.
	c.mu.Lock()
	have := c.have.Clone()
	c.news = 0
	c.taken = piece.NewBitmap(have.Len())
	c.mu.Unlock()
	c.log.Lock()
	covers, marked, broken := c.end, c.marked, c.broken
	c.log.Unlock()
	if covers == marked || broken != nil {
		return broken
	}

	if err := c.s.fs.Datasync(c.data); err != nil {
		err = fmt.Errorf("fsync of its data: %w", err)
		if !c.over() {
			c.lose(err)
		}
		return err
	}
	if !c.linked {
		for _, dir := range []string{c.dir, filepath.Dir(c.dir), c.s.path("tasks")} {
			if err := c.s.fs.SyncDir(dir); err != nil {
				return fmt.Errorf("fsync of its directory: %w", err)
			}
		}
		c.linked = true
	}
	c.log.Lock()
	at := c.end
	err := c.appendLocked(func(b []byte) []byte { return appendMark(b, covers, c.journaled.Count()) })
	if err == nil && covers == at {
		c.marked = c.end
	}
	c.log.Unlock()
	if err != nil {
		return err
	}
	c.mu.Lock()
	for i := range piece.Index(have.Len()) {
		if have.Has(i) && !c.taken.Has(i) {
			c.proven.Set(i)
		}
	}
	c.mu.Unlock()
	if err := c.s.fs.Datasync(c.journal); err != nil {
		// The records may be gone although later ones come through: nothing is appended
		// behind a hole.
		err = fmt.Errorf("fsync of its journal: %w", err)
		c.log.Lock()
		c.broken = err
		c.log.Unlock()
		if faulty(err) {
			c.e.sick.journal.Store(true)
		}
		return err
	}
	return nil
}

// over tells whether the files were closed or deleted: then errors of theirs mean nothing.
func (c *content) over() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.shutDown || errors.Is(c.err, piece.ErrRemoved)
}

// lose withdraws every piece without a mark after an fsync failed, those that are just
// being written included: they see that losses changed. It returns when all have seen it,
// so that no later sync vouches for them.
func (c *content) lose(why error) {
	c.losses.Add(1)
	writing := c.takeBack(func() []piece.Index {
		var out []piece.Index
		for i := range piece.Index(c.have.Len()) {
			if c.have.Has(i) && !c.proven.Has(i) {
				out = append(out, i)
			}
		}
		return out
	}, why)
	wait(writing)
}

// spoil withdraws the piece at an offset that could not be read.
func (c *content) spoil(off int64, why error) {
	i := c.layout.At(off)
	c.takeBack(func() []piece.Index {
		if !c.have.Has(i) || c.err != nil {
			return nil
		}
		return []piece.Index{i}
	}, why)
}

// settled tells whether there is nothing to bring to stable storage, or no way to; stuck
// whether the files take no more, so that they are tried anew when the task is opened next.
func (c *content) settled() (settled, stuck bool) {
	c.mu.RLock()
	full := c.have.Full()
	c.mu.RUnlock()
	c.log.Lock()
	defer c.log.Unlock()
	return c.end == c.marked, c.broken != nil || !full && c.e.sick.any()
}

// description returns an open file over data whose offset nobody else moves.
func (c *content) description() (File, error) {
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

// giveBack ends the use of what description returned.
func (c *content) giveBack(f File) error {
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

// addRuns journals what is not there yet, all of it or nothing.
func (c *content) addRuns(r *replica, runs []piece.DigestRun, certificates [][]byte) error {
	c.known.Lock()
	defer c.known.Unlock()
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
			errs = errors.Join(errs, fmt.Errorf("run of task %s: %w: signature of %d bytes", c.id.Short(), piece.ErrInvalidMetadata, len(run.Signature)))
		default:
			if fresh(appendRun(nil, run)) {
				freshRuns = append(freshRuns, cloneRun(run))
			}
		}
	}
	if len(records) == 0 {
		return errs
	}
	err := c.s.withRoom(int64(len(records)), func() error {
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
