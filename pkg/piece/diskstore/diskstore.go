// Package diskstore keeps verified pieces on a disk: one preallocated data file and one append-only journal per
// task.
//
// It never returns other bytes than those that were written: after a crash, on a full or a failing disk, it
// hashes every doubtful piece again before it serves it, or drops it. docs/storage.md describes the format, the
// fsync policy, recovery and the quota. Start at [Open] and [Store.Create].
package diskstore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// Config sets the place and the limits of a store.
type Config struct {
	// Dir is the store's own directory. Open creates it, with mode 0700, if it does not exist.
	Dir string
	// Quota bounds the bytes that the store takes on the disk; each task counts with its whole length. A smaller
	// quota evicts more. With the default 0 only the size of the disk is a bound, so set it if other programs
	// use the same disk.
	Quota int64
	// HighWater and LowWater are fractions of Quota: if a new task would exceed the first, the store evicts down
	// to the second. A small distance evicts often, a large one evicts much at once. Defaults 0.95 and 0.85;
	// LowWater is HighWater − 0.1 if only HighWater is set.
	HighWater, LowWater float64
	// The store syncs a task to stable storage in the background, after SyncBytes new bytes or SyncAfter the
	// first of them. Smaller values make the disk work during downloads, which costs CPU; larger values leave
	// more to hash again after an unclean stop. Defaults 1 GiB and 10 s.
	SyncBytes int64
	SyncAfter time.Duration
	// Logger logs what the store drops, and why; nil discards.
	Logger *slog.Logger
	// FS is the file layer, nil for the operating system's.
	FS FS
	// Now is the wall clock, nil for the operating system's.
	Now func() time.Time
}

// Store is a [piece.Store] on a disk.
type Store struct {
	cfg   Config
	fs    FS
	log   *slog.Logger
	lock  *os.File
	clock atomic.Int64 // the latest tick, see tick
	temp  atomic.Int64 // names in tmp/

	// life is read-held to create, open or remove a task, and held by Close, so that Close finds every task
	// either complete or absent.
	life sync.RWMutex

	// mu is held to find, add, count or drop a task, never during disk work.
	mu       sync.Mutex
	tasks    map[task.ID]*entry
	used     int64      // bytes, as the quota counts them
	spooled  int64      // the part of used that open spools take
	unusable []unusable // tasks of newer versions, and unusable tasks that cannot be deleted
	queue    []*entry
	working  bool          // a goroutine syncs the queue
	soon     chan struct{} // ends its pause
	closed   bool
	// evictions since Open.
	evictions int64

	// retrying is held to retry an unusable task, and to remove a task, so that a retry cannot bring back a
	// removed task. Deletions may take seconds.
	retrying     sync.Mutex
	unusableSeen atomic.Int64 // unusable tasks so far, for the log

	workers sync.WaitGroup // the goroutine that syncs the queue; Close waits for it
	buffers sync.Pool      // *[]byte of bufferSize
}

// bufferSize bounds one read or write, in bytes, if the kernel cannot move the bytes itself.
const bufferSize = 256 << 10

// entry is one task in the store.
type entry struct {
	id       task.ID
	lastRead atomic.Int64 // nanoseconds since 1970
	read     time.Time    // the time on the disk at the start, which may be outside lastRead's range
	// faults records failed writes; see openTask.probe.
	faults writeFaults

	// disk is held to create, load or delete the task.
	disk sync.Mutex
	dir  string // under disk, once the task exists

	// The rest is under Store.mu.
	facts  piece.Metadata
	have   int       // pieces, if live is nil
	live   *openTask // nil while its files are closed
	refs   int       // open replicas, and callers that wait for disk
	ready  bool      // false while the task is being created
	gone   bool      // being removed
	queued bool      // in Store.queue
	dead   chan struct{}
}

// unusable is a task that this version cannot read, or that the disk cannot return.
type unusable struct {
	path string
	size int64
	used time.Time
	// id is set if the task may be retried, else empty.
	id task.ID
}

func newEntry(id task.ID, f piece.Metadata, dir string) *entry {
	return &entry{id: id, facts: f, dir: dir, dead: make(chan struct{})}
}

// cost returns the bytes that a task counts in the quota: its data in whole blocks, and an allowance for its
// journal.
func cost(f piece.Metadata) int64 {
	const block = 4 << 10
	return (f.Length+block-1)/block*block + block + 256*int64(f.Layout().Count())
}

// Open opens the store in cfg.Dir and recovers from an unclean stop; recovery takes about 1 s per GiB that was
// being downloaded then. It fails with [ErrInUse] if another process uses the directory. The error of an
// unusable directory says what to do. Open never fails because of an unusable task: it drops the task, or leaves
// it on the disk.
func Open(cfg Config) (*Store, error) {
	if cfg.HighWater == 0 {
		cfg.HighWater = 0.95
	}
	if cfg.LowWater == 0 {
		cfg.LowWater = max(cfg.HighWater-0.1, cfg.HighWater/2)
	}
	if cfg.HighWater < 0 || cfg.HighWater > 1 || cfg.LowWater < 0 || cfg.LowWater > cfg.HighWater {
		return nil, fmt.Errorf("opening the piece store: water marks %v and %v: want 0 < low ≤ high ≤ 1",
			cfg.LowWater, cfg.HighWater)
	}
	if cfg.Dir == "" || cfg.Quota < 0 {
		return nil, fmt.Errorf("opening the piece store: directory %q, quota %d: "+
			"want a directory and a quota that is not negative", cfg.Dir, cfg.Quota)
	}
	if cfg.SyncBytes <= 0 {
		cfg.SyncBytes = 1 << 30
	}
	if cfg.SyncAfter <= 0 {
		cfg.SyncAfter = 10 * time.Second
	}
	s := &Store{cfg: cfg, fs: cfg.FS, log: cfg.Logger, tasks: map[task.ID]*entry{}, soon: make(chan struct{}, 1)}
	s.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	if s.fs == nil {
		s.fs = OS{}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Now == nil {
		s.cfg.Now = time.Now
	}
	if err := s.start(); err != nil {
		if s.lock != nil {
			err = errors.Join(err, unlockDir(s.lock))
		}
		return nil, fmt.Errorf("opening the piece store in %s: %w", cfg.Dir, Remedy(cfg.Dir, err))
	}
	return s, nil
}

func (s *Store) start() (err error) {
	if err = s.fs.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if s.lock, err = lockDir(s.cfg.Dir); err != nil {
		return err
	}
	for _, sub := range []string{"tasks", "tmp", "aside"} {
		if err := s.fs.MkdirAll(s.path(sub), 0o700); err != nil {
			return err
		}
	}
	left, err := s.fs.ReadDir(s.path("tmp"))
	if err != nil {
		return err
	}
	for _, d := range left {
		if n, err := strconv.ParseInt(d.Name(), 10, 64); err == nil {
			s.temp.Store(max(s.temp.Load(), n)) // never reuse its name
		}
		if err := s.fs.RemoveAll(s.path("tmp", d.Name())); err != nil {
			s.log.Error("cannot delete a temporary file of an earlier process",
				"path", s.path("tmp", d.Name()), "error", Remedy(s.cfg.Dir, err))
		}
	}
	if err := s.restoreAside(); err != nil {
		return err
	}
	if err := s.scan(); err != nil {
		return err
	}
	if n := s.unusableSeen.Load(); n > 0 {
		s.log.Error("some tasks on the disk are unusable; the store works without them, and retries each when it is "+
			"opened", "dir", s.cfg.Dir, "tasks", n, "usable", len(s.tasks))
	}
	s.setClock()
	s.mu.Lock()
	victims, err := s.evictFor(0) // the quota may be smaller now
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.dispose(victims, "quota")
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

// dirName is the name of a task's directory, dir its usual path.
func dirName(id task.ID) string { return strings.Replace(string(id), ":", "-", 1) }

func (s *Store) dir(id task.ID) string {
	_, digits, _ := strings.Cut(string(id), ":")
	return s.path("tasks", digits[:2], dirName(id))
}

// placesMax is the number of places where a task may be.
const placesMax = 8

// place returns the n-th place of a task. The first is its usual one; the others are for a task whose usual place
// holds files that the disk can neither read nor delete.
func (s *Store) place(id task.ID, n int) string {
	if n == 0 {
		return s.dir(id)
	}
	return s.path("tasks", spare, dirName(id)+"."+strconv.Itoa(n))
}

const spare = "spare"

// placed returns the task that has a place at path.
func (s *Store) placed(path string) (task.ID, error) {
	name, n, _ := strings.Cut(filepath.Base(path), ".")
	id, err := task.ParseID(strings.Replace(name, "-", ":", 1))
	if err != nil {
		return "", err
	}
	k, _ := strconv.Atoi(n)
	if k < 0 || k >= placesMax || s.place(id, k) != path {
		return "", fmt.Errorf("%w: it is in the wrong place", errDamaged)
	}
	return id, nil
}

// temporary returns an unused path in tmp/.
func (s *Store) temporary() string {
	return s.path("tmp", strconv.FormatInt(s.temp.Add(1), 10))
}

// tick returns the time in nanoseconds since 1970, later than every earlier tick, so that the order of reads is
// known even if the clock is coarse or is set back.
func (s *Store) tick() int64 {
	for {
		last := s.clock.Load()
		now := max(s.cfg.Now().UnixNano(), last+1)
		if s.clock.CompareAndSwap(last, now) {
			return now
		}
	}
}

// restoreAside moves the tasks back from aside/ that this version can read.
func (s *Store) restoreAside() error {
	list, err := s.fs.ReadDir(s.path("aside"))
	if err != nil {
		return err
	}
	for _, d := range list {
		path := s.path("aside", d.Name())
		id, err := task.ParseID(strings.Replace(d.Name(), "-", ":", 1))
		if err == nil {
			err = s.readable(path)
			if kind := kindOf(err); err != nil && kind != newer && kind != lost {
				s.leaveUnusable(path, "", err) // a later start can read it
				continue
			}
		}
		switch {
		case errors.Is(err, errNewer):
			a := unusable{path: path}
			for _, name := range []string{"data", "journal"} {
				if st, err := s.fs.Stat(filepath.Join(path, name)); err == nil {
					a.size += st.Size()
					a.used = st.ModTime()
				}
			}
			s.unusable = append(s.unusable, a)
			s.used += a.size
			continue
		case err == nil:
			if err = s.fs.MkdirAll(filepath.Dir(s.dir(id)), 0o700); err == nil {
				err = s.fs.Rename(path, s.dir(id))
			}
		}
		if err != nil { // of no version, or tasks/ has the same task already
			s.log.Warn("dropping a task from aside/", "path", path, "error", err)
			if err := s.fs.RemoveAll(path); err != nil {
				s.leaveUnusable(path, "", err)
			}
		}
	}
	return nil
}

// regular returns errNotFile for what is no regular file: opening a pipe would wait for its other end. It leaves other
// errors to the opening.
func (s *Store) regular(name string) error {
	if st, err := s.fs.Stat(name); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", name, errNotFile)
	}
	return nil
}

// readable returns nil if this version can read the task at path.
func (s *Store) readable(path string) error {
	name := filepath.Join(path, "journal")
	if err := s.regular(name); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = readJournal(f, st.Size())
	return err
}

// scan adds every task of tasks/ to the inventory. A task in a spare place is newer than one in the usual place,
// so the spare places come first.
func (s *Store) scan() error {
	shards, err := s.fs.ReadDir(s.path("tasks"))
	if err != nil {
		return err
	}
	g := errgroup.Group{}
	g.SetLimit(2 * runtime.GOMAXPROCS(0))
	var own []string
	for _, shard := range shards {
		switch {
		case !shard.IsDir():
		case shard.Name() == spare:
			s.scanShard(s.path("tasks", spare))
		default:
			own = append(own, s.path("tasks", shard.Name()))
		}
	}
	for _, path := range own {
		g.Go(func() error { s.scanShard(path); return nil })
	}
	return g.Wait()
}

func (s *Store) scanShard(path string) {
	list, err := s.fs.ReadDir(path)
	if err != nil {
		s.unusableSeen.Add(1)
		s.log.Error("cannot read a directory of tasks", "path", path, "error", Remedy(path, err))
	}
	for _, d := range list {
		s.scanTask(filepath.Join(path, d.Name()))
	}
}

// scanTask adds one task to the inventory, or removes it from tasks/ if it is unusable.
func (s *Store) scanTask(path string) {
	id, err := s.placed(path)
	if err != nil {
		s.dropDir(path, err)
		return
	}
	e := newEntry(id, piece.Metadata{}, path)
	clean, err := s.summary(e, path)
	if err == nil && !clean {
		err = s.recover(e)
	}
	if err != nil {
		s.reject(path, id, err)
		return
	}
	e.ready = true
	s.mu.Lock()
	twice := s.tasks[id] != nil
	if !twice {
		s.tasks[id] = e
		s.used += cost(e.facts)
	}
	s.mu.Unlock()
	if twice {
		s.dropDir(path, errors.New("the same task is in another place, too"))
	}
}

// reject sets an unusable task aside, drops it or leaves it on the disk, depending on its error.
func (s *Store) reject(path string, id task.ID, err error) {
	switch kindOf(err) {
	case newer:
		if failed := s.setAside(path, err); failed != nil {
			s.leaveUnusable(path, "", errors.Join(err, failed))
		}
	case lost:
		s.dropDir(path, err)
	default:
		s.leaveUnusable(path, id, err)
	}
}

// unusableLogMax bounds the unusable tasks that the log names.
const unusableLogMax = 20

// leaveUnusable records a directory that can be neither used nor deleted. It counts in the quota and is evicted
// first. If id is not empty, the task is retried when it is opened.
func (s *Store) leaveUnusable(path string, id task.ID, why error) {
	if s.unusableSeen.Add(1) <= unusableLogMax {
		s.log.Error("a task on the disk is unusable and stays there; delete it by hand if it does not recover",
			"path", path, "error", Remedy(path, why))
	}
	a := unusable{path: path, id: id, used: s.cfg.Now()}
	for _, name := range []string{"data", "journal"} {
		if st, err := s.fs.Stat(filepath.Join(path, name)); err == nil {
			a.size += st.Size()
		}
	}
	s.addUnusable(a)
}

// addUnusable adds an unusable directory to the quota.
func (s *Store) addUnusable(a unusable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeUnusable(a.path)
	s.unusable = append(s.unusable, a)
	s.used += a.size
}

// removeUnusable removes the unusable directory at path from the quota. The caller holds mu.
func (s *Store) removeUnusable(path string) {
	s.unusable = slices.DeleteFunc(s.unusable, func(a unusable) bool {
		if a.path == path {
			s.used -= a.size
		}
		return a.path == path
	})
}

// unusableDirs lists the unusable directories of a task. The caller holds mu.
func (s *Store) unusableDirs(id task.ID) (paths []string) {
	for _, a := range s.unusable {
		if at, err := s.placed(a.path); err == nil && at == id {
			paths = append(paths, a.path)
		}
	}
	return paths
}

// retry retries the unusable directories of a task, and reports whether there were any.
func (s *Store) retry(id task.ID) bool {
	s.retrying.Lock()
	defer s.retrying.Unlock()
	s.mu.Lock()
	var paths []string
	for _, a := range s.unusable {
		if a.id == id && s.tasks[id] == nil {
			paths = append(paths, a.path)
		}
	}
	for _, path := range paths {
		s.removeUnusable(path)
	}
	s.mu.Unlock()
	for _, path := range paths {
		s.scanTask(path)
	}
	return len(paths) > 0
}

// summary reads both ends of a journal; clean is false if the rest must be read, too.
func (s *Store) summary(e *entry, path string) (clean bool, err error) {
	name := filepath.Join(path, "journal")
	if err := s.regular(name); err != nil {
		return false, err
	}
	f, err := s.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	h, have, clean, err := readSummary(f, st.Size())
	if err != nil {
		return false, err
	}
	if h.id != e.id {
		return false, fmt.Errorf("%w: it belongs to task %s", errDamaged, h.id)
	}
	data, err := s.fs.Stat(filepath.Join(path, "data"))
	if err == nil && !data.Mode().IsRegular() {
		err = fmt.Errorf("its data: %w", errNotFile)
	}
	if err != nil {
		return false, err
	}
	e.facts, e.have = h.facts, have
	e.read = st.ModTime()
	e.lastRead.Store(e.read.UnixNano())
	return clean, nil
}

// recover loads a task, which hashes the pieces without a mark, and marks those that are good.
func (s *Store) recover(e *entry) error {
	c, err := s.load(e)
	if err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		s.log.Error("cannot mark a recovered task durable", "task", e.id, "error", err)
	}
	e.have = c.count()
	return c.closeFiles()
}

// dropDir deletes the directory at path, or records it as unusable if it cannot be deleted.
func (s *Store) dropDir(path string, why error) {
	s.log.Warn("dropping an unusable task", "path", path, "error", why)
	if err := s.deleteDir(path); err != nil {
		s.leaveUnusable(path, "", errors.Join(why, err))
	}
}

// deleteDir moves a task's directory to tmp/ in one step, then deletes it; an absent one is no error. If the directory
// cannot be moved, deleteDir deletes it in its place. If that fails, too, it empties the journal, so that the
// directory is no task any more.
func (s *Store) deleteDir(path string) error {
	away := s.temporary()
	err := s.fs.Rename(path, away)
	if err == nil {
		err = s.fs.RemoveAll(away)
		if err != nil {
			s.log.Error("cannot delete the files of a removed task", "path", away, "error", Remedy(s.cfg.Dir, err))
		}
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if removed := s.fs.RemoveAll(path); removed == nil {
		return nil
	}
	if f, failed := s.fs.OpenFile(filepath.Join(path, "journal"), os.O_WRONLY|os.O_TRUNC, 0); failed == nil {
		_ = f.Close() // the truncation is best effort
	}
	return err
}

// setAside moves a task of a newer version to aside/, for that version.
func (s *Store) setAside(path string, why error) error {
	s.log.Warn("moving a task of a newer version to aside/; a program that can read it uses it again",
		"path", path, "error", why)
	to := s.path("aside", filepath.Base(path))
	if err := s.fs.RemoveAll(to); err != nil {
		return err
	}
	if err := s.fs.Rename(path, to); err != nil {
		return err
	}
	a := unusable{path: to, used: s.cfg.Now()}
	for _, name := range []string{"data", "journal"} {
		if st, err := s.fs.Stat(filepath.Join(to, name)); err == nil {
			a.size += st.Size()
		}
	}
	s.addUnusable(a)
	return nil
}

// Create implements [piece.Store].
func (s *Store) Create(id task.ID, f piece.Metadata) (piece.Replica, error) {
	if _, err := task.ParseID(string(id)); err != nil {
		return nil, fmt.Errorf("creating a task: %w", err)
	}
	if err := f.Check(); err != nil {
		return nil, fmt.Errorf("creating task %s: %w", id.Short(), err)
	}
	s.life.RLock()
	defer s.life.RUnlock()
	for {
		r, err := s.open(id)
		if errors.Is(err, piece.ErrNotFound) {
			var made bool
			if r, made, err = s.create(id, f); err == nil && !made {
				continue // another caller created it meanwhile, or removes it
			}
		}
		if err != nil {
			return nil, fmt.Errorf("creating task %s of %d bytes: %w", id.Short(), f.Length, err)
		}
		if have := r.Metadata(); have.Length != f.Length || have.PieceSize != f.PieceSize {
			return nil, errors.Join(fmt.Errorf("creating task %s of %d bytes in pieces of %d, stored are %d in %d: %w",
				id.Short(), f.Length, f.PieceSize, have.Length, have.PieceSize, piece.ErrOtherMetadata), r.Close())
		}
		return r, nil
	}
}

// Open implements [piece.Store].
func (s *Store) Open(id task.ID) (piece.Replica, error) {
	s.life.RLock()
	defer s.life.RUnlock()
	r, err := s.open(id)
	if err != nil {
		return nil, fmt.Errorf("opening task %s: %w", id.Short(), err)
	}
	return r, nil
}

func (s *Store) open(id task.ID) (*replica, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, piece.ErrClosed
	}
	e := s.tasks[id]
	if e == nil && len(s.unusable) > 0 {
		s.mu.Unlock()
		s.retry(id)
		s.mu.Lock()
		e = s.tasks[id]
	}
	if e == nil || e.gone {
		s.mu.Unlock()
		return nil, piece.ErrNotFound
	}
	e.refs++
	c := e.live
	s.mu.Unlock()
	if c != nil {
		return &replica{c: c}, nil
	}
	c, err := s.ensureOpen(e)
	if err == nil {
		return &replica{c: c}, nil
	}
	s.mu.Lock()
	e.refs--
	s.mu.Unlock()
	if errors.Is(err, piece.ErrNotFound) {
		return nil, err
	}
	if kindOf(err) == busy {
		return nil, Remedy(s.cfg.Dir, err)
	}
	// The caller can create the task again, in another place if this directory cannot be deleted.
	if err := s.removeEntry(e, func() error { s.reject(e.dir, "", err); return nil }); err != nil {
		s.log.Error("closing the files of a task", "task", id, "error", err)
	}
	return nil, piece.ErrNotFound
}

// ensureOpen opens the files of a task, once for all callers that wait.
func (s *Store) ensureOpen(e *entry) (*openTask, error) {
	e.disk.Lock()
	defer e.disk.Unlock()
	s.mu.Lock()
	c, gone := e.live, e.gone
	s.mu.Unlock()
	if gone {
		return nil, piece.ErrNotFound
	}
	if c != nil {
		return c, nil
	}
	c, err := s.load(e)
	if err == nil {
		if err = c.probe(); err != nil {
			err = errors.Join(err, c.closeFiles())
		}
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	e.live = c
	s.mu.Unlock()
	return c, nil
}

// create creates an absent task; made is false if it exists by now.
func (s *Store) create(id task.ID, f piece.Metadata) (r *replica, made bool, err error) {
	e := newEntry(id, f, "")
	e.refs = 1
	e.lastRead.Store(s.tick())
	e.disk.Lock()
	defer e.disk.Unlock()

	s.mu.Lock()
	if other := s.tasks[id]; other != nil {
		gone := other.gone
		s.mu.Unlock()
		if gone {
			<-other.dead
		}
		return nil, false, nil
	}
	s.tasks[id] = e
	s.used += cost(f)
	s.mu.Unlock()
	var c *openTask
	// Create the directory before any eviction: the disk may have become read-only.
	tmp := s.temporary()
	if err = s.evictWhileFull(cost(f), func() error { return s.fs.MkdirAll(tmp, 0o700) }); err == nil {
		var victims []victim
		s.mu.Lock()
		s.used -= cost(f)
		victims, err = s.evictFor(cost(f))
		s.used += cost(f)
		s.mu.Unlock()
		s.dispose(victims, "quota")
		if err == nil {
			err = s.evictWhileFull(cost(f), func() error { c, err = s.createFiles(e, tmp); return err })
		} else if failed := s.fs.RemoveAll(tmp); failed != nil {
			s.log.Error("cannot delete an empty directory", "path", tmp, "error", failed)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if !e.gone { // else Remove waits for e.disk and does the rest
			s.markGone(e)
			delete(s.tasks, id)
			close(e.dead)
		}
		return nil, false, Remedy(s.cfg.Dir, err)
	}
	e.live, e.ready = c, true
	return &replica{c: c}, true, nil
}

// Complete implements [piece.Store].
func (s *Store) Complete(id task.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.tasks[id]
	if e == nil || e.gone || !e.ready || s.closed {
		return false
	}
	have := e.have
	if e.live != nil {
		have = e.live.count()
	}
	return have == e.facts.Layout().Count()
}

// Inventory implements [piece.Store].
func (s *Store) Inventory() []piece.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	out := make([]piece.Entry, 0, len(s.tasks))
	for _, e := range s.tasks {
		if e.gone || !e.ready {
			continue
		}
		have := e.have
		if e.live != nil {
			have = e.live.count()
		}
		out = append(out, piece.Entry{
			ID: e.id, Metadata: e.facts, Have: have, Complete: have == e.facts.Layout().Count(),
			LastRead: s.shownTime(e.lastRead.Load()),
		})
	}
	return out
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.cfg.Dir }

// Limit changes the quota (in bytes, 0 for none) and the water marks, and evicts at once down to the low mark. Open
// tasks stay until they are closed.
func (s *Store) Limit(quota int64, high, low float64) error {
	if quota < 0 || low <= 0 || low > high || high > 1 {
		return fmt.Errorf("limiting the piece store: quota %d, water marks %v and %v: "+
			"want 0 ≤ quota and 0 < low ≤ high ≤ 1", quota, low, high)
	}
	s.mu.Lock()
	s.cfg.Quota, s.cfg.HighWater, s.cfg.LowWater = quota, high, low
	var victims []victim
	if quota > 0 && s.used > int64(high*float64(quota)) {
		idle, _ := s.idle()
		victims = s.evict(idle, s.used-int64(low*float64(quota)))
	}
	s.mu.Unlock()
	s.dispose(victims, "quota")
	return nil
}

// Usage is the use of a store's quota.
type Usage struct {
	// Used is in bytes, as the quota counts them; Quota is 0 if there is none.
	Used, Quota int64
	Tasks       int
	// Evictions counts the evicted tasks since Open.
	Evictions int64
}

// Usage returns the use of the quota.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{Used: s.used, Quota: s.cfg.Quota, Tasks: len(s.tasks), Evictions: s.evictions}
}

// Remove implements [piece.Store].
func (s *Store) Remove(id task.ID) error {
	s.life.RLock()
	defer s.life.RUnlock()
	s.retrying.Lock()
	defer s.retrying.Unlock()
	s.mu.Lock()
	closed, e := s.closed, s.tasks[id]
	s.mu.Unlock()
	if closed {
		return piece.ErrClosed
	}
	if e == nil {
		if err := s.deleteUnusable(id); err != nil {
			return fmt.Errorf("removing task %s: %w", id.Short(), Remedy(s.cfg.Dir, err))
		}
		return nil
	}
	err := s.removeEntry(e, func() error { return s.remove(e.dir) })
	if err = errors.Join(err, s.deleteUnusable(id)); err != nil {
		return fmt.Errorf("removing task %s: %w", id.Short(), Remedy(s.cfg.Dir, err))
	}
	return nil
}

// remove deletes the directory of a removed task, or records it as unusable if it cannot be deleted. It is never
// retried.
func (s *Store) remove(path string) error {
	err := s.deleteDir(path)
	if err != nil {
		s.leaveUnusable(path, "", err)
	}
	return err
}

// deleteUnusable removes the unusable directories of a task.
func (s *Store) deleteUnusable(id task.ID) error {
	s.mu.Lock()
	paths := s.unusableDirs(id)
	for _, path := range paths {
		s.removeUnusable(path)
	}
	s.mu.Unlock()
	var errs error
	for _, path := range paths {
		errs = errors.Join(errs, s.remove(path))
	}
	return errs
}

// removeEntry removes a task from the store; act deletes its directory. A second caller waits for the first.
func (s *Store) removeEntry(e *entry, act func() error) error {
	s.mu.Lock()
	if e.gone {
		s.mu.Unlock()
		<-e.dead
		return nil
	}
	s.markGone(e)
	s.mu.Unlock()
	return s.finishRemoval(e, act)
}

// markGone marks a task as gone. The caller holds mu and calls finishRemoval afterwards.
func (s *Store) markGone(e *entry) {
	e.gone = true
	s.used -= cost(e.facts)
}

// finishRemoval ends the use of a task that is gone; act deletes its directory.
func (s *Store) finishRemoval(e *entry, act func() error) error {
	e.disk.Lock()
	defer e.disk.Unlock()
	s.mu.Lock()
	c := e.live
	e.live = nil
	s.mu.Unlock()
	if c != nil {
		c.fail(piece.ErrRemoved)
	}
	err := act()
	s.mu.Lock()
	delete(s.tasks, e.id)
	close(e.dead)
	s.mu.Unlock()
	if c != nil {
		err = errors.Join(err, c.closeFiles())
	}
	return err
}

// Close implements [piece.Store]: it waits for running writes, syncs and marks everything, and unlocks the directory
// for another process.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.hasten()
	var open []*entry
	for _, e := range s.tasks {
		if e.live != nil && !e.gone {
			open = append(open, e)
		}
	}
	s.mu.Unlock()
	s.workers.Wait()
	var errs error
	var small []*openTask
	s.mu.Lock()
	for _, e := range open {
		if e.live != nil && e.facts.Length <= smallMax {
			small = append(small, e.live)
		}
	}
	s.mu.Unlock()
	if len(small) >= togetherMin {
		_ = s.syncTogether(small) // else each is synced below
	}
	for _, e := range open {
		e.disk.Lock()
		s.mu.Lock()
		c := e.live
		e.live = nil
		s.mu.Unlock()
		if c != nil {
			c.fail(piece.ErrClosed)
			if err := errors.Join(c.sync(), c.closeFiles()); err != nil {
				errs = errors.Join(errs, fmt.Errorf("closing task %s: %w", e.id.Short(), err))
			}
		}
		e.disk.Unlock()
	}
	return errors.Join(errs, unlockDir(s.lock))
}

// release ends one use of an open task.
func (s *Store) release(c *openTask) {
	s.mu.Lock()
	c.e.refs--
	last := c.e.refs == 0 && c.e.live == c
	s.mu.Unlock()
	if !last {
		return
	}
	if settled, stuck := c.synced(); settled || stuck {
		s.closeIdle(c)
	} else {
		s.queueSync(c.e)
	}
}

// closeIdle closes the files of an unused task, unless it must be synced first.
func (s *Store) closeIdle(c *openTask) {
	_, stuck := c.synced()
	s.mu.Lock()
	idle := c.e.refs == 0 && c.e.live == c && !s.closed && (stuck || !c.e.queued)
	if idle {
		c.e.have = c.count()
		c.e.live = nil
	}
	s.mu.Unlock()
	if !idle {
		return
	}
	if err := c.closeFiles(); err != nil {
		s.log.Error("closing the files of a task", "task", c.e.id, "error", err)
	}
}

// queueSync queues a task for a sync in the background, after which its files are closed if it is unused.
func (s *Store) queueSync(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.queued || e.gone || s.closed {
		return
	}
	e.queued = true
	s.queue = append(s.queue, e)
	if len(s.queue) >= togetherMax {
		s.hasten()
	}
	if !s.working {
		s.working = true
		s.workers.Go(s.syncQueue)
	}
}

// syncQueue syncs the tasks in the queue until it is empty or the store is closed.
func (s *Store) syncQueue() {
	for {
		if done := s.syncSmall(); len(done) > 0 {
			for _, c := range done {
				s.closeIdle(c)
			}
			s.pause(togetherPause)
		}
		s.mu.Lock()
		if len(s.queue) == 0 || s.closed {
			s.working = false
			s.mu.Unlock()
			return
		}
		e := s.queue[0]
		s.queue = s.queue[1:]
		e.queued = false
		c := e.live
		s.mu.Unlock()
		if c == nil {
			continue
		}
		if err := c.sync(); err != nil {
			s.log.Error("cannot sync a task to stable storage", "task", e.id, "error", err)
		}
		s.closeIdle(c)
	}
}

// syncSmall takes small tasks out of the queue and syncs them together, if there are enough. It returns those that it
// synced.
func (s *Store) syncSmall() (done []*openTask) {
	s.mu.Lock()
	var small []*entry
	for _, e := range s.queue {
		if e.live != nil && e.facts.Length <= smallMax && len(small) < togetherMax {
			small = append(small, e)
		}
	}
	if len(small) < togetherMin || s.closed {
		s.mu.Unlock()
		return nil
	}
	for _, e := range small {
		e.queued = false
		done = append(done, e.live)
	}
	s.queue = slices.DeleteFunc(s.queue, func(e *entry) bool { return !e.queued })
	s.mu.Unlock()
	err := s.syncTogether(done)
	if err == nil {
		return done
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		s.log.Error("cannot sync the file system, so tasks are synced one by one", "error", Remedy(s.cfg.Dir, err))
	}
	for _, c := range done {
		if err := c.sync(); err != nil {
			s.log.Error("cannot sync a task to stable storage", "task", c.id, "error", err)
		}
	}
	return done
}

// pause waits for a time, or less if many tasks wait for a sync or the store is closed.
func (s *Store) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.soon:
	}
}

// hasten ends a pause, or the next one.
func (s *Store) hasten() {
	select {
	case s.soon <- struct{}{}:
	default:
	}
}

// evictFor chooses the least recently read tasks to evict, down to low water, so that need more bytes fit into the
// quota. It chooses none if that is not enough. The caller holds mu and deletes the victims with dispose.
func (s *Store) evictFor(need int64) ([]victim, error) {
	quota := s.cfg.Quota
	if quota == 0 || s.used+need <= int64(s.cfg.HighWater*float64(quota)) {
		return nil, nil
	}
	idle, evictable := s.idle()
	if s.used+need-evictable > quota {
		return nil, fmt.Errorf("%w: it needs %d bytes, the quota is %d, and open tasks use %d of it: raise the quota",
			piece.ErrNoSpace, need, quota, s.used-evictable)
	}
	return s.evict(idle, s.used+need-int64(s.cfg.LowWater*float64(quota))), nil
}

// victim is a task, or an unusable directory, that can be evicted.
type victim struct {
	e    *entry
	dir  string
	size int64
	used int64
}

// idle lists the victims in the order of eviction, and their size. The caller holds mu.
func (s *Store) idle() (list []victim, size int64) {
	for _, a := range s.unusable {
		list = append(list, victim{dir: a.path, size: a.size, used: a.used.UnixNano()})
		size += a.size
	}
	for _, e := range s.tasks {
		if e.refs == 0 && e.ready && !e.gone {
			list = append(list, victim{e: e, size: cost(e.facts), used: e.lastRead.Load()})
			size += cost(e.facts)
		}
	}
	slices.SortFunc(list, func(a, b victim) int {
		if (a.e == nil) != (b.e == nil) {
			if a.e == nil {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.used, b.used)
	})
	return list, size
}

// evict removes the first victims of list that make up size bytes from the store. The caller holds mu and deletes
// them with dispose.
func (s *Store) evict(list []victim, size int64) []victim {
	freed := int64(0)
	for k, v := range list {
		if freed >= size {
			return list[:k]
		}
		freed += v.size
		s.evictions++
		if v.e != nil {
			s.markGone(v.e)
		} else {
			s.removeUnusable(v.dir)
		}
	}
	return list
}

// dispose deletes the files of victims.
func (s *Store) dispose(victims []victim, reason string) {
	for _, v := range victims {
		var err error
		name := v.dir
		if v.e != nil {
			name = string(v.e.id)
			err = s.finishRemoval(v.e, func() error { return s.deleteDir(v.e.dir) })
		} else {
			err = s.deleteDir(v.dir)
		}
		if err != nil {
			s.log.Error("cannot delete an evicted task", "task", name, "error", Remedy(s.cfg.Dir, err))
			continue
		}
		s.log.Info("evicted a task",
			"task", name, "bytes", v.size, "lastRead", s.shownTime(v.used), "reason", reason)
	}
}

// evictWhileFull calls do, and evicts and calls it again while the disk is full; need is the approximate size in bytes.
// It fails with [piece.ErrNoSpace] if there is no more to evict.
func (s *Store) evictWhileFull(need int64, do func() error) error {
	for {
		err := do()
		if err == nil || !diskFull(err) {
			return err
		}
		free, statErr := s.fs.Free(s.cfg.Dir)
		if statErr != nil {
			free = 0
		}
		s.mu.Lock()
		idle, evictable := s.idle()
		var victims []victim
		if free+evictable >= need {
			victims = s.evict(idle, need)
		}
		s.mu.Unlock()
		if len(victims) == 0 {
			return fmt.Errorf("%w: %w", piece.ErrNoSpace, err)
		}
		s.dispose(victims, "disk full")
	}
}
