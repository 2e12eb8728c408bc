// Package diskstore keeps verified pieces on a disk: one preallocated data file and one
// append-only journal per task.
//
// It never gives other bytes than those that were written: what a crash, a full or a failing
// disk leaves in doubt is hashed again before it is served, or dropped. The format, the fsync
// policy, recovery and the quota are told in docs/storage.md. Start at [Open] and
// [Store.Create].
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

// Config says where a store lies and how much it may hold.
type Config struct {
	// Dir is the store's own directory. It is made when it is not there, mode 0700.
	Dir string
	// Quota is how many bytes the store may take on the disk, counting each task with its
	// whole length. Less evicts more; with the default 0 only the disk's size ends it, so
	// set it where something else needs that disk, too.
	Quota int64
	// HighWater and LowWater are fractions of Quota: a task that would take the store
	// above the first makes it evict down to the second. Closer together they evict more
	// often, farther apart more at once. Defaults 0.95 and 0.85; LowWater is HighWater − 0.1
	// when only HighWater is set.
	HighWater, LowWater float64
	// SyncBytes and SyncAfter are after how many new bytes of a task, and how long after the
	// first of them, they are brought to stable storage, in the background. Less makes the disk
	// work while the pieces still come, which costs CPU; more leaves more to hash again after
	// an unclean stop. Defaults 1 GiB and 10 s.
	SyncBytes int64
	SyncAfter time.Duration
	// Logger tells what was dropped and why; nil discards.
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

	// life is read-held by whoever makes, opens or removes a task and held by Close, so
	// that Close finds every task either whole or not there.
	life sync.RWMutex

	// mu is held to find, add, count or forget a task, never while the disk works.
	mu      sync.Mutex
	tasks   map[task.ID]*entry
	used    int64   // bytes, as the quota counts them
	spooled int64   // of these, what open spools take
	aside   []aside // tasks of newer versions, and those that cannot be used or deleted
	queue   []*entry
	working bool // a goroutine settles what is in queue
	closed  bool
	// evictions since the store was opened.
	evictions int64

	// retrying is held while a task that could not be used is tried again, and while one is removed:
	// what is tried again must not come back behind the removal. Deletions may take seconds.
	retrying sync.Mutex
	passed   atomic.Int64 // tasks that could not be used, for the log

	workers sync.WaitGroup // that goroutine; Close waits
	buffers sync.Pool      // *[]byte of bufferSize
}

// bufferSize is what one read or write moves where the kernel cannot do it alone.
const bufferSize = 256 << 10

// entry is one task as the store knows it while nobody has it open.
type entry struct {
	id       task.ID
	lastRead atomic.Int64 // nanoseconds since 1970
	read     time.Time    // what the disk said at the start, which may be beyond lastRead's range
	// sick is where the disk did not take what was written; see content.probe.
	sick sick

	// disk is held while the task is made, loaded or unmade.
	disk sync.Mutex
	dir  string // under disk, once the task is made

	// The rest is under Store.mu.
	facts  piece.Metadata
	have   int      // pieces, when live is nil
	live   *content // nil when its files are not open
	refs   int      // open replicas and those waiting for disk
	ready  bool     // made or found, not just being made
	gone   bool     // being removed
	queued bool     // in Store.queue
	dead   chan struct{}
}

// aside is a task that this version cannot read, or that the disk does not give back.
type aside struct {
	path string
	size int64
	used time.Time
	// id is that of a task which could not be used and may be tried again, else empty.
	id task.ID
}

func newEntry(id task.ID, f piece.Metadata, dir string) *entry {
	return &entry{id: id, facts: f, dir: dir, dead: make(chan struct{})}
}

// cost is what a task counts in the quota: its content in whole blocks, and an allowance
// for its journal.
func cost(f piece.Metadata) int64 {
	const block = 4 << 10
	return (f.Length+block-1)/block*block + block + 256*int64(f.Layout().Count())
}

// Open opens the store in cfg.Dir and recovers what an unclean stop left in doubt; that
// takes about 1 s per GiB that was being downloaded then. It fails with [ErrInUse] when
// another process has the directory, and with what to do where the directory cannot be used. A task
// that cannot be used is no reason to fail: it is dropped, or left where it is.
func Open(cfg Config) (*Store, error) {
	if cfg.HighWater == 0 {
		cfg.HighWater = 0.95
	}
	if cfg.LowWater == 0 {
		cfg.LowWater = max(cfg.HighWater-0.1, cfg.HighWater/2)
	}
	if cfg.HighWater < 0 || cfg.HighWater > 1 || cfg.LowWater < 0 || cfg.LowWater > cfg.HighWater {
		return nil, fmt.Errorf("opening the piece store: water marks %v and %v: want 0 < low ≤ high ≤ 1", cfg.LowWater, cfg.HighWater)
	}
	if cfg.Dir == "" || cfg.Quota < 0 {
		return nil, fmt.Errorf("opening the piece store: directory %q, quota %d: want a directory and a quota that is not negative", cfg.Dir, cfg.Quota)
	}
	if cfg.SyncBytes <= 0 {
		cfg.SyncBytes = 1 << 30
	}
	if cfg.SyncAfter <= 0 {
		cfg.SyncAfter = 10 * time.Second
	}
	s := &Store{cfg: cfg, fs: cfg.FS, log: cfg.Logger, tasks: map[task.ID]*entry{}}
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
			s.temp.Store(max(s.temp.Load(), n)) // its name is not used again
		}
		if err := s.fs.RemoveAll(s.path("tmp", d.Name())); err != nil {
			s.log.Error("what an earlier process left cannot be deleted", "path", s.path("tmp", d.Name()), "error", Remedy(s.cfg.Dir, err))
		}
	}
	if err := s.lookAside(); err != nil {
		return err
	}
	if err := s.scan(); err != nil {
		return err
	}
	if n := s.passed.Load(); n > 0 {
		s.log.Error("tasks on the disk cannot be used; the store works without them, and tries each again when it is wanted",
			"dir", s.cfg.Dir, "tasks", n, "usable", len(s.tasks))
	}
	s.setClock()
	s.mu.Lock()
	victims, err := s.makeRoom(0) // the quota may have become smaller
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

// dirName is a task's name on disk, dir its place.
func dirName(id task.ID) string { return strings.Replace(string(id), ":", "-", 1) }

func (s *Store) dir(id task.ID) string {
	_, digits, _ := strings.Cut(string(id), ":")
	return s.path("tasks", digits[:2], dirName(id))
}

// placesMax is how many places a task may have.
const placesMax = 8

// place is the n-th place of a task: the first is its own, the others are for where that is
// taken by what the disk neither gives back nor deletes.
func (s *Store) place(id task.ID, n int) string {
	if n == 0 {
		return s.dir(id)
	}
	return s.path("tasks", spare, dirName(id)+"."+strconv.Itoa(n))
}

const spare = "spare"

// placed returns the task whose place path is.
func (s *Store) placed(path string) (task.ID, error) {
	name, n, _ := strings.Cut(filepath.Base(path), ".")
	id, err := task.ParseID(strings.Replace(name, "-", ":", 1))
	if err != nil {
		return "", err
	}
	k, _ := strconv.Atoi(n)
	if k < 0 || k >= placesMax || s.place(id, k) != path {
		return "", fmt.Errorf("%w: lies in the wrong place", errDamaged)
	}
	return id, nil
}

// temporary returns a path in tmp/ that nobody else uses.
func (s *Store) temporary() string {
	return s.path("tmp", strconv.FormatInt(s.temp.Add(1), 10))
}

// tick returns the time, later than every tick before it, so that the order of reads is
// known however coarse the clock is, and when it is put back.
func (s *Store) tick() int64 {
	for {
		last := s.clock.Load()
		now := max(s.cfg.Now().UnixNano(), last+1)
		if s.clock.CompareAndSwap(last, now) {
			return now
		}
	}
}

// lookAside brings back the tasks of aside/ that this version can read.
func (s *Store) lookAside() error {
	list, err := s.fs.ReadDir(s.path("aside"))
	if err != nil {
		return err
	}
	for _, d := range list {
		path := s.path("aside", d.Name())
		id, err := task.ParseID(strings.Replace(d.Name(), "-", ":", 1))
		if err == nil {
			err = s.readable(path)
		}
		switch {
		case errors.Is(err, errNewer):
			a := aside{path: path}
			for _, name := range []string{"data", "journal"} {
				if st, err := s.fs.Stat(filepath.Join(path, name)); err == nil {
					a.size += st.Size()
					a.used = st.ModTime()
				}
			}
			s.aside = append(s.aside, a)
			s.used += a.size
			continue
		case err == nil:
			if err = s.fs.MkdirAll(filepath.Dir(s.dir(id)), 0o700); err == nil {
				err = s.fs.Rename(path, s.dir(id))
			}
		}
		if err != nil { // of no version, or there is one of this version already
			s.log.Warn("dropping a task that was set aside", "path", path, "error", err)
			if err := s.fs.RemoveAll(path); err != nil {
				s.leaveBehind(path, "", err)
			}
		}
	}
	return nil
}

// readable tells whether this version can read the task at path.
func (s *Store) readable(path string) error {
	f, err := s.fs.OpenFile(filepath.Join(path, "journal"), os.O_RDONLY, 0)
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

// scan takes every task of tasks/ into the inventory. What lies in a spare place is newer than
// what lies in the task's own, so it comes first.
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
		s.passed.Add(1)
		s.log.Error("a directory of tasks cannot be read", "path", path, "error", Remedy(path, err))
	}
	for _, d := range list {
		s.scanTask(filepath.Join(path, d.Name()))
	}
}

// scanTask takes one task into the inventory, or out of tasks/ when it is none.
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
		s.dropDir(path, errors.New("the same task lies elsewhere, too"))
	}
}

// reject does with a task that cannot be used what its error demands.
func (s *Store) reject(path string, id task.ID, err error) {
	switch judge(err) {
	case newer:
		if failed := s.setAside(path, err); failed != nil {
			s.leaveBehind(path, "", errors.Join(err, failed))
		}
	case lost:
		s.dropDir(path, err)
	default:
		s.leaveBehind(path, id, err)
	}
}

// passedMax bounds how many tasks that cannot be used are named in the log.
const passedMax = 20

// leaveBehind notes a directory that can be neither used nor deleted. It counts against the quota,
// and is the first to go. Where id is not empty, the task is tried again when it is wanted.
func (s *Store) leaveBehind(path string, id task.ID, why error) {
	if s.passed.Add(1) <= passedMax {
		s.log.Error("a task on the disk cannot be used and stays where it is; delete it by hand where it does not heal",
			"path", path, "error", Remedy(path, why))
	}
	a := aside{path: path, id: id, used: s.cfg.Now()}
	for _, name := range []string{"data", "journal"} {
		if st, err := s.fs.Stat(filepath.Join(path, name)); err == nil {
			a.size += st.Size()
		}
	}
	s.noteAside(a)
}

// noteAside counts what lies aside.
func (s *Store) noteAside(a aside) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetAside(a.path)
	s.aside = append(s.aside, a)
	s.used += a.size
}

// forgetAside counts what lay at path no more. The caller holds mu.
func (s *Store) forgetAside(path string) {
	s.aside = slices.DeleteFunc(s.aside, func(a aside) bool {
		if a.path == path {
			s.used -= a.size
		}
		return a.path == path
	})
}

// leftBehind lists where what is left of a task lies. The caller holds mu.
func (s *Store) leftBehind(id task.ID) (paths []string) {
	for _, a := range s.aside {
		if at, err := s.placed(a.path); err == nil && at == id {
			paths = append(paths, a.path)
		}
	}
	return paths
}

// retry tries tasks again that could not be used, and reports whether there were any of that ID.
func (s *Store) retry(id task.ID) bool {
	s.retrying.Lock()
	defer s.retrying.Unlock()
	s.mu.Lock()
	var paths []string
	for _, a := range s.aside {
		if a.id == id && s.tasks[id] == nil {
			paths = append(paths, a.path)
		}
	}
	for _, path := range paths {
		s.forgetAside(path)
	}
	s.mu.Unlock()
	for _, path := range paths {
		s.scanTask(path)
	}
	return len(paths) > 0
}

// summary reads what the two ends of a journal tell; clean is false when more must be read.
func (s *Store) summary(e *entry, path string) (clean bool, err error) {
	f, err := s.fs.OpenFile(filepath.Join(path, "journal"), os.O_RDONLY, 0)
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
		return false, fmt.Errorf("%w: speaks of task %s", errDamaged, h.id)
	}
	if _, err := s.fs.Stat(filepath.Join(path, "data")); err != nil {
		return false, err
	}
	e.facts, e.have = h.facts, have
	e.read = st.ModTime()
	e.lastRead.Store(e.read.UnixNano())
	return clean, nil
}

// recover loads a task, which hashes what is unproven, and marks what is left.
func (s *Store) recover(e *entry) error {
	c, err := s.load(e)
	if err != nil {
		return err
	}
	if err := c.sync(); err != nil {
		s.log.Error("a recovered task cannot be marked durable", "task", e.id, "error", err)
	}
	e.have = c.count()
	return c.shut()
}

// dropDir unmakes what lies at path; what cannot be deleted is left behind.
func (s *Store) dropDir(path string, why error) {
	s.log.Warn("dropping what is no usable task", "path", path, "error", why)
	if err := s.unmake(path); err != nil {
		s.leaveBehind(path, "", errors.Join(why, err))
	}
}

// unmake takes a task's directory out of sight in one step and then deletes it; one that
// is not there is no error. Where it cannot be moved it is deleted in its place, and where
// that fails, too, its journal is emptied, so that it is no task any more.
func (s *Store) unmake(path string) error {
	away := s.temporary()
	err := s.fs.Rename(path, away)
	if err == nil {
		err = s.fs.RemoveAll(away)
		if err != nil {
			s.log.Error("a task was taken away, but its files cannot be deleted", "path", away, "error", Remedy(s.cfg.Dir, err))
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
		_ = f.Close() // that it is not a task any more is all that can be had
	}
	return err
}

// setAside keeps a newer version's task for that version.
func (s *Store) setAside(path string, why error) error {
	s.log.Warn("setting aside a task of a newer version; it comes back with a program that can read it",
		"path", path, "error", why)
	to := s.path("aside", filepath.Base(path))
	if err := s.fs.RemoveAll(to); err != nil {
		return err
	}
	if err := s.fs.Rename(path, to); err != nil {
		return err
	}
	a := aside{path: to, used: s.cfg.Now()}
	for _, name := range []string{"data", "journal"} {
		if st, err := s.fs.Stat(filepath.Join(to, name)); err == nil {
			a.size += st.Size()
		}
	}
	s.noteAside(a)
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
				continue // somebody else made it meanwhile, or is removing it
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
	if e == nil && len(s.aside) > 0 {
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
	c, err := s.wake(e)
	if err == nil {
		return &replica{c: c}, nil
	}
	s.mu.Lock()
	e.refs--
	s.mu.Unlock()
	if errors.Is(err, piece.ErrNotFound) {
		return nil, err
	}
	if judge(err) == busy {
		return nil, Remedy(s.cfg.Dir, err)
	}
	// It is brought anew, and what is left of it is in nobody's way.
	if err := s.expel(e, func() error { s.reject(e.dir, "", err); return nil }); err != nil {
		s.log.Error("closing the files of a task", "task", id, "error", err)
	}
	return nil, piece.ErrNotFound
}

// wake opens the files of a task, once for all who wait.
func (s *Store) wake(e *entry) (*content, error) {
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
			err = errors.Join(err, c.shut())
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

// create makes a task that is not there; made is false when it is there by now.
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
	var c *content
	// Nothing is evicted for what cannot be made: the disk may have become read-only.
	tmp := s.temporary()
	if err = s.withRoom(cost(f), func() error { return s.fs.MkdirAll(tmp, 0o700) }); err == nil {
		var victims []victim
		s.mu.Lock()
		s.used -= cost(f)
		victims, err = s.makeRoom(cost(f))
		s.used += cost(f)
		s.mu.Unlock()
		s.dispose(victims, "quota")
		if err == nil {
			err = s.withRoom(cost(f), func() error { c, err = s.make(e, tmp); return err })
		} else if failed := s.fs.RemoveAll(tmp); failed != nil {
			s.log.Error("an empty directory cannot be deleted", "path", tmp, "error", failed)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		if !e.gone { // else Remove, which waits for disk, does the rest
			s.leave(e)
			delete(s.tasks, id)
			close(e.dead)
		}
		return nil, false, Remedy(s.cfg.Dir, err)
	}
	e.live, e.ready = c, true
	return &replica{c: c}, true, nil
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
			LastRead: s.told(e.lastRead.Load()),
		})
	}
	return out
}

// Dir is where the store lies.
func (s *Store) Dir() string { return s.cfg.Dir }

// Limit changes the quota (in bytes, 0 for none) and the water marks, and evicts at once
// what is above; what open tasks hold stays until they are closed.
func (s *Store) Limit(quota int64, high, low float64) error {
	if quota < 0 || low <= 0 || low > high || high > 1 {
		return fmt.Errorf("limiting the piece store: quota %d, water marks %v and %v: want 0 ≤ quota and 0 < low ≤ high ≤ 1", quota, low, high)
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

// Usage is how full a store is.
type Usage struct {
	// Used is what the quota counts, in bytes; Quota is 0 when there is none.
	Used, Quota int64
	Tasks       int
	// Evictions counts what was taken out to make room, since the store was opened.
	Evictions int64
}

// Usage tells how full the store is.
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
		if err := s.removeLeft(id); err != nil {
			return fmt.Errorf("removing task %s: %w", id.Short(), Remedy(s.cfg.Dir, err))
		}
		return nil
	}
	err := s.expel(e, func() error { return s.remove(e.dir) })
	if err = errors.Join(err, s.removeLeft(id)); err != nil {
		return fmt.Errorf("removing task %s: %w", id.Short(), Remedy(s.cfg.Dir, err))
	}
	return nil
}

// remove unmakes a task that is not wanted any more. Where that fails it is left behind, and not
// tried again.
func (s *Store) remove(path string) error {
	err := s.unmake(path)
	if err != nil {
		s.leaveBehind(path, "", err)
	}
	return err
}

// removeLeft removes what was left behind of a task.
func (s *Store) removeLeft(id task.ID) error {
	s.mu.Lock()
	paths := s.leftBehind(id)
	for _, path := range paths {
		s.forgetAside(path)
	}
	s.mu.Unlock()
	var errs error
	for _, path := range paths {
		errs = errors.Join(errs, s.remove(path))
	}
	return errs
}

// expel takes a task out of the store and its directory away by means of act. Who is late
// waits until the first is done.
func (s *Store) expel(e *entry, act func() error) error {
	s.mu.Lock()
	if e.gone {
		s.mu.Unlock()
		<-e.dead
		return nil
	}
	s.leave(e)
	s.mu.Unlock()
	return s.finish(e, act)
}

// leave marks a task as gone. The caller holds mu, and calls finish afterwards.
func (s *Store) leave(e *entry) {
	e.gone = true
	s.used -= cost(e.facts)
}

// finish ends the use of a task that has left and takes its directory away.
func (s *Store) finish(e *entry, act func() error) error {
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
		err = errors.Join(err, c.shut())
	}
	return err
}

// Close implements [piece.Store]: writes that run come to their end, everything is brought
// to stable storage and marked, and the directory is free for another process.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var open []*entry
	for _, e := range s.tasks {
		if e.live != nil && !e.gone {
			open = append(open, e)
		}
	}
	s.mu.Unlock()
	s.workers.Wait()
	var errs error
	for _, e := range open {
		e.disk.Lock()
		s.mu.Lock()
		c := e.live
		e.live = nil
		s.mu.Unlock()
		if c != nil {
			c.fail(piece.ErrClosed)
			if err := errors.Join(c.sync(), c.shut()); err != nil {
				errs = errors.Join(errs, fmt.Errorf("closing task %s: %w", e.id.Short(), err))
			}
		}
		e.disk.Unlock()
	}
	return errors.Join(errs, unlockDir(s.lock))
}

// release ends one use of a content.
func (s *Store) release(c *content) {
	s.mu.Lock()
	c.e.refs--
	last := c.e.refs == 0 && c.e.live == c
	s.mu.Unlock()
	if !last {
		return
	}
	if settled, stuck := c.settled(); settled || stuck {
		s.rest(c)
	} else {
		s.settle(c.e)
	}
}

// rest closes the files of a content that nobody uses, unless it is to be settled first.
func (s *Store) rest(c *content) {
	_, stuck := c.settled()
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
	if err := c.shut(); err != nil {
		s.log.Error("closing the files of a task", "task", c.e.id, "error", err)
	}
}

// settle has a task's news brought to stable storage in the background, and its files
// closed when nobody uses it then.
func (s *Store) settle(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.queued || e.gone || s.closed {
		return
	}
	e.queued = true
	s.queue = append(s.queue, e)
	if !s.working {
		s.working = true
		s.workers.Go(s.work)
	}
}

// work settles what is in the queue, until it is empty or the store is closed.
func (s *Store) work() {
	for {
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
			s.log.Error("a task cannot be brought to stable storage", "task", e.id, "error", err)
		}
		s.rest(c)
	}
}

// makeRoom chooses what to evict so that need more bytes fit into the quota, read least
// recently first and down to low water. It chooses nothing when that would not do. The
// caller holds mu and disposes of what is returned.
func (s *Store) makeRoom(need int64) ([]victim, error) {
	quota := s.cfg.Quota
	if quota == 0 || s.used+need <= int64(s.cfg.HighWater*float64(quota)) {
		return nil, nil
	}
	idle, evictable := s.idle()
	if s.used+need-evictable > quota {
		return nil, fmt.Errorf("%w: it needs %d bytes, the quota is %d, of which %d are in use by open tasks: raise the quota",
			piece.ErrNoSpace, need, quota, s.used-evictable)
	}
	return s.evict(idle, s.used+need-int64(s.cfg.LowWater*float64(quota))), nil
}

// victim is something that can be evicted: a task, or one that was set aside.
type victim struct {
	e     *entry
	aside string
	size  int64
	used  int64
}

// idle lists what can be evicted, in the order in which it goes, and its size. The caller
// holds mu.
func (s *Store) idle() (list []victim, size int64) {
	for _, a := range s.aside {
		list = append(list, victim{aside: a.path, size: a.size, used: a.used.UnixNano()})
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

// evict takes the first of list that make up size bytes out of the store. The caller holds
// mu and disposes of what is returned.
func (s *Store) evict(list []victim, size int64) []victim {
	freed := int64(0)
	for k, v := range list {
		if freed >= size {
			return list[:k]
		}
		freed += v.size
		s.evictions++
		if v.e != nil {
			s.leave(v.e)
		} else {
			s.forgetAside(v.aside)
		}
	}
	return list
}

// dispose deletes what was evicted.
func (s *Store) dispose(victims []victim, reason string) {
	for _, v := range victims {
		var err error
		name := v.aside
		if v.e != nil {
			name = string(v.e.id)
			err = s.finish(v.e, func() error { return s.unmake(v.e.dir) })
		} else {
			err = s.unmake(v.aside)
		}
		if err != nil {
			s.log.Error("an evicted task cannot be deleted", "task", name, "error", Remedy(s.cfg.Dir, err))
			continue
		}
		s.log.Info("evicted a task", "task", name, "bytes", v.size, "lastRead", s.told(v.used), "reason", reason)
	}
}

// withRoom does what may find the disk full, and makes room on the disk as long as that
// helps; need is about how much. In the end it fails with [piece.ErrNoSpace].
func (s *Store) withRoom(need int64, do func() error) error {
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
