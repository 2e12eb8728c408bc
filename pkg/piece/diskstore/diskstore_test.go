package diskstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

func mustOpen(t testing.TB, cfg diskstore.Config) *diskstore.Store {
	t.Helper()
	s, err := diskstore.Open(cfg)
	require.NoError(t, err)
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, syncBytes := range map[string]int64{"syncing seldom": 0, "syncing always": 1} {
		t.Run(name, func(t *testing.T) {
			configs := &sync.Map{}
			open := func(t testing.TB, cfg diskstore.Config) piece.Store {
				cfg.SyncBytes = syncBytes
				s := mustOpen(t, cfg)
				configs.Store(s, cfg)
				return s
			}
			storetest.Run(t, storetest.Factory{
				New: func(t testing.TB) piece.Store { return open(t, diskstore.Config{Dir: t.TempDir()}) },
				WithQuota: func(t testing.TB, q int64) piece.Store {
					return open(t, diskstore.Config{Dir: t.TempDir(), Quota: q, HighWater: 1, LowWater: 1})
				},
				Reopen: func(t testing.TB, s piece.Store) piece.Store {
					require.NoError(t, s.Close())
					cfg, _ := configs.Load(s)
					return open(t, cfg.(diskstore.Config))
				},
			})
		})
	}
}

// The error for a second process names the first one and says what to do.
func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, diskstore.Config{Dir: dir})
	_, err := diskstore.Open(diskstore.Config{Dir: dir})
	require.ErrorIs(t, err, diskstore.ErrInUse)
	assert.ErrorContains(t, err, dir)
	assert.ErrorContains(t, err, "process "+strconv.Itoa(os.Getpid()))
	assert.ErrorContains(t, err, "stop it, or give this process a directory of its own")
	require.NoError(t, s.Close())
	s = mustOpen(t, diskstore.Config{Dir: dir})
	require.NoError(t, s.Close())
}

// The error of an unusable directory says what to do.
func TestUnusableDirectory(t *testing.T) {
	for err, remedy := range map[error]string{
		syscall.EACCES:  "chown -R",
		syscall.EROFS:   "mount it writable",
		syscall.ENOSPC:  "free some space",
		syscall.ENOTDIR: "a file is in the way",
	} {
		dir := t.TempDir()
		d := &disk{}
		d.set(func(op, name string, n int) (int, error) {
			if op == "mkdir" && name == "tasks" {
				return 0, err
			}
			return n, nil
		})
		_, got := diskstore.Open(diskstore.Config{Dir: dir, FS: d})
		require.ErrorIs(t, got, err)
		assert.ErrorContains(t, got, remedy)
		assert.ErrorContains(t, got, dir)
		s := mustOpen(t, diskstore.Config{Dir: dir}) // the lock is released
		require.NoError(t, s.Close())
	}
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := diskstore.Open(diskstore.Config{Dir: file})
	assert.ErrorContains(t, err, "a file is in the way")
	_, err = diskstore.HostID(file)
	assert.ErrorContains(t, err, "a file is in the way")
}

func TestInvalidConfig(t *testing.T) {
	for _, cfg := range []diskstore.Config{
		{}, {Dir: "x", Quota: -1}, {Dir: "x", HighWater: 1.1}, {Dir: "x", HighWater: 0.5, LowWater: 0.6},
		{Dir: "x", LowWater: -1},
	} {
		_, err := diskstore.Open(cfg)
		assert.Error(t, err, "%+v", cfg)
	}
}

// No other user can read the files.
func TestFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "store")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s := mustOpen(t, diskstore.Config{Dir: dir})
	r, err := s.Create(storetest.ID("a"), crashMetadata)
	require.NoError(t, err)
	_, err = diskstore.HostID(dir)
	require.NoError(t, err)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if d.IsDir() {
			assert.Equal(t, fs.FileMode(0o700), st.Mode().Perm(), path)
		} else {
			assert.Equal(t, fs.FileMode(0o600), st.Mode().Perm(), path)
		}
		return err
	}))
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// A host keeps its ID as long as its directory.
func TestHostID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	ids := make(chan string, 8)
	var g sync.WaitGroup
	for range cap(ids) {
		g.Go(func() {
			id, err := diskstore.HostID(dir)
			assert.NoError(t, err)
			ids <- string(id)
		})
	}
	g.Wait()
	first := <-ids
	assert.Len(t, first, 32)
	for range cap(ids) - 1 {
		assert.Equal(t, first, <-ids, "concurrent callers get the same ID")
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 2, "the key and the ID")
	other, err := diskstore.HostID(t.TempDir())
	require.NoError(t, err)
	assert.NotEqual(t, first, string(other))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "host-id"), []byte("?"), 0o600))
	_, err = diskstore.HostID(dir)
	assert.ErrorContains(t, err, "delete that file")
}

// Eviction begins above the high mark and ends at the low one.
func TestWaterMarks(t *testing.T) {
	const length = 1 << 20
	facts := piece.Metadata{Length: length, PieceSize: 1 << 18}
	s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: quick{}, Quota: 20 * length, HighWater: 0.9, LowWater: 0.5})
	most := 0
	for k := range 40 {
		r, err := s.Create(storetest.ID(fmt.Sprint(k)), facts)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		n := len(s.Inventory())
		if n < most {
			assert.Equal(t, 17, most, "17 tasks and their journals are 0.85 of the quota, 18 above 0.9")
			assert.Equal(t, 9, n, "10 are above 0.5")
			most = 0
		}
		most = max(most, n)
		assert.LessOrEqual(t, s.Usage().Used, s.Usage().Quota)
	}
	require.NoError(t, s.Close())
}

// A smaller quota evicts at once, but no open task.
func TestLimit(t *testing.T) {
	s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: quick{}})
	for k := range 10 {
		r, err := s.Create(storetest.ID(fmt.Sprint(k)), piece.MetadataFor(1<<20, ""))
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
	held, err := s.Open(storetest.ID("0"))
	require.NoError(t, err)
	require.NoError(t, s.Limit(5<<20, 0.9, 0.5))
	assert.Less(t, s.Usage().Used, int64(5<<20)/2)
	assert.Equal(t, 2, s.Usage().Tasks)
	require.NoError(t, s.Limit(1<<20, 0.9, 0.5))
	assert.Equal(t, 1, s.Usage().Tasks, "open tasks stay, even above the quota")
	require.NoError(t, held.Close())
	require.Error(t, s.Limit(1<<20, 0.5, 0.9))
	assert.Equal(t, int64(1<<20), s.Usage().Quota)
	require.NoError(t, s.Close())
}

// A smaller quota evicts at the next start.
func TestSmallerQuotaAtStart(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, diskstore.Config{Dir: dir})
	for k := range 10 {
		r, err := s.Create(storetest.ID(fmt.Sprint(k)), piece.MetadataFor(1<<20, ""))
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
	require.NoError(t, s.Close())
	s = mustOpen(t, diskstore.Config{Dir: dir, Quota: 5 << 20})
	assert.LessOrEqual(t, s.Usage().Used, int64(0.85*(5<<20)))
	assert.Positive(t, s.Usage().Evictions)
	assert.Len(t, s.Inventory(), 4)
	require.NoError(t, s.Close())
}

// full is a disk of a given size. It fails an allocation that does not fit, or a write if the file system cannot
// allocate.
type full struct {
	quick
	dir       string
	size      int64
	sparse    bool
	mu        sync.Mutex
	sparseUse map[string]int64
}

func (f *full) use() int64 {
	sum := int64(0)
	_ = filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "data" {
			return nil // the file vanished
		}
		if f.sparse {
			sum += f.sparseUse[path]
		} else if st, err := d.Info(); err == nil {
			sum += st.Size()
		}
		return nil
	})
	return sum
}

func (f *full) Free(string) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size - f.use(), nil
}

func (f *full) Allocate(file diskstore.File, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.sparse && f.use()+size > f.size {
		return syscall.ENOSPC
	}
	return file.Truncate(size)
}

func (f *full) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	file, err := f.quick.OpenFile(name, flag, perm)
	if err != nil || !f.sparse || filepath.Base(name) != "data" {
		return file, err
	}
	return &fullFile{File: file, f: f, name: name}, nil
}

func (f *full) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sparse {
		f.sparseUse[filepath.Join(to, "data")] += f.sparseUse[filepath.Join(from, "data")]
		delete(f.sparseUse, filepath.Join(from, "data"))
	}
	return f.quick.Rename(from, to)
}

type fullFile struct {
	diskstore.File
	f    *full
	name string
}

func (w *fullFile) WriteAt(p []byte, off int64) (int, error) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.f.use()+int64(len(p)) > w.f.size {
		return 0, syscall.ENOSPC
	}
	name := w.name
	if filepath.Base(filepath.Dir(filepath.Dir(name))) == "tmp" { // opened before the rename to its place
		st, err := w.File.Stat()
		if err != nil {
			return 0, err
		}
		_ = filepath.WalkDir(filepath.Join(w.f.dir, "tasks"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "data" {
				if other, err := os.Stat(path); err == nil && os.SameFile(st, other) {
					name = path
				}
			}
			return nil
		})
	}
	w.f.sparseUse[name] += int64(len(p))
	return w.File.WriteAt(p, off)
}

// A full disk evicts first, then fails only the task that does not fit.
func TestFullDisk(t *testing.T) {
	const length = 1 << 20
	facts := piece.Metadata{Length: length, PieceSize: length / 4}
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("sparse=%v", sparse), func(t *testing.T) {
			dir := t.TempDir()
			f := &full{dir: dir, size: 3 * length, sparse: sparse, sparseUse: map[string]int64{}}
			s := mustOpen(t, diskstore.Config{Dir: dir, FS: f})
			fill := func(name string) (piece.Replica, error) {
				r, err := s.Create(storetest.ID(name), facts)
				if err != nil {
					return nil, err
				}
				for i := range piece.Index(4) {
					if err := storetest.Write(r, storetest.Content(name, length), i); err != nil {
						return nil, errors.Join(err, r.Close())
					}
				}
				return r, nil
			}
			for _, name := range []string{"a", "b", "c", "d"} { // d finds the disk full
				r, err := fill(name)
				require.NoError(t, err, name)
				require.NoError(t, r.Close())
			}
			_, err := s.Open(storetest.ID("a"))
			require.ErrorIs(t, err, piece.ErrNotFound, "least recently read")
			require.Len(t, s.Inventory(), 3)

			var held []piece.Replica
			for _, name := range []string{"b", "c", "d"} {
				r, err := s.Open(storetest.ID(name))
				require.NoError(t, err)
				held = append(held, r)
			}
			_, err = fill("e")
			require.ErrorIs(t, err, piece.ErrNoSpace)
			require.ErrorIs(t, err, syscall.ENOSPC)
			for k, name := range []string{"b", "c", "d"} {
				assert.Equal(t, 4, storetest.Check(t, held[k], storetest.Content(name, length)))
				require.NoError(t, held[k].Close())
			}
			_, err = s.Create(storetest.ID("huge"), piece.MetadataFor(100*length, ""))
			if !sparse {
				require.ErrorIs(t, err, piece.ErrNoSpace)
				assert.GreaterOrEqual(t, len(s.Inventory()), 3, "a task that can never fit evicts nothing")
			}
			require.NoError(t, s.Close())
		})
	}
}

// durable returns a store over d that has synced pieces 0 to 3 of task a, and syncs after 3000 new bytes.
func durable(t *testing.T, d *disk) (*diskstore.Store, piece.Replica, []byte) {
	dir, content := crashed(t, 0, 1, 2, 3)
	s := mustOpen(t, diskstore.Config{Dir: dir, FS: d, SyncBytes: 3000})
	r, err := s.Open(storetest.ID("a"))
	require.NoError(t, err)
	return s, r, content
}

// A failed fsync drops exactly the pieces that are not durable.
func TestFailedFsync(t *testing.T) {
	for _, file := range []string{"data", "journal"} {
		t.Run("during a write to the "+file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &disk{}
				s, r, content := durable(t, d)
				syncing, writing, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
				writes, syncs := 0, 0
				d.set(func(op, name string, n int) (int, error) {
					switch {
					case op == "write" && name == file:
						if writes++; writes == 4 {
							close(writing)
							if file == "data" {
								<-goOn
								break
							}
							for r.Has(4) { // until the failed fsync is handled, which then waits for this journal
								runtime.Gosched()
							}
						}
					case op == "sync" && name == "data":
						if syncs++; syncs == 1 {
							close(syncing)
							<-writing
							return 0, syscall.EIO
						}
					}
					return n, nil
				})
				for i := range piece.Index(3) {
					require.NoError(t, storetest.Write(r, content, 4+i))
				}
				<-syncing
				seventh := make(chan error)
				go func() { seventh <- storetest.Write(r, content, 7) }()
				<-writing
				if file == "data" {
					synctest.Wait()
					for _, i := range []piece.Index{4, 5, 6} {
						assert.False(t, r.Has(i), "piece %d may be lost", i)
						require.NoError(t, storetest.Write(r, content, i))
					}
					synctest.Wait()
					assert.Equal(t, 1, syncs, "no sync begins before the write of piece 7 sees the failed fsync")
				}
				close(goOn)
				require.ErrorContains(t, <-seventh, "an fsync failed meanwhile")
				synctest.Wait()
				assert.False(t, r.Has(7))
				for i := range piece.Index(4) {
					assert.True(t, r.Has(i), "piece %d was durable before", i)
				}
				image := copyTree(t, s.Dir())
				for i := range piece.Index(10) {
					require.NoError(t, storetest.Write(r, content, i))
				}
				synctest.Wait()
				assert.Equal(t, 10, storetest.Check(t, r, content))
				require.NoError(t, r.Close())
				require.NoError(t, s.Close())

				s = mustOpen(t, diskstore.Config{Dir: image})
				r, err := s.Open(storetest.ID("a"))
				require.NoError(t, err)
				assert.False(t, r.Has(7), "also after a crash")
				storetest.Check(t, r, content)
				require.NoError(t, r.Close())
				require.NoError(t, s.Close())
			})
		})
	}
}

// Pieces are synced SyncAfter the first of them.
func TestSyncAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: d, SyncAfter: time.Minute})
		content := storetest.Content("a", crashMetadata.Length)
		r, err := s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err)
		var syncs atomic.Int64
		d.set(func(op, name string, n int) (int, error) {
			if op == "sync" && name == "data" {
				syncs.Add(1)
			}
			return n, nil
		})
		for round := range 2 {
			for i := range piece.Index(5) {
				require.NoError(t, storetest.Write(r, content, piece.Index(5*round)+i))
				time.Sleep(10 * time.Second)
			}
			synctest.Wait()
			assert.EqualValues(t, round, syncs.Load(), "no sync during the writes, nor at completion")
			time.Sleep(10 * time.Second)
			synctest.Wait()
			assert.EqualValues(t, round+1, syncs.Load(), "a minute after the first write")
		}
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
		assert.EqualValues(t, 2, syncs.Load(), "no unsynced piece was left")
	})
}

// A piece that is written during a sync is not covered by its mark.
func TestWriteDuringSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s, r, content := durable(t, d)
		syncs := 0
		d.set(func(op, name string, n int) (int, error) {
			if op == "sync" && name == "data" {
				if syncs++; syncs == 1 {
					assert.NoError(t, storetest.Write(r, content, 9))
				}
			}
			return n, nil
		})
		for i := range piece.Index(3) {
			require.NoError(t, storetest.Write(r, content, 4+i))
		}
		synctest.Wait()
		require.Equal(t, 1, syncs)
		image := copyTree(t, s.Dir())
		d.set(nil)
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())

		for i := range piece.Index(10) { // no mark covers the pieces that the disk does not have
			if r := crashMetadata.Layout(); i >= 7 {
				flip(t, filepath.Join(filepath.Dir(fileOf(image, "a", "data")), "data"), r.Offset(i))
			}
		}
		s = mustOpen(t, diskstore.Config{Dir: image})
		r, err := s.Open(storetest.ID("a"))
		require.NoError(t, err)
		assert.Equal(t, 7, storetest.Check(t, r, content))
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	})
}

// A piece that is written again during a sync is not covered by its mark.
func TestRewriteDuringSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s, r, content := durable(t, d)
		syncs := 0
		var hook func(op, name string, n int) (int, error)
		hook = func(op, name string, n int) (int, error) {
			switch {
			case op == "sync" && name == "data":
				if syncs++; syncs > 1 {
					return 0, syscall.EIO
				}
				d.fail(storetest.ReadError)
				_, err := r.ReadAt(make([]byte, 1), 4500)
				assert.ErrorIs(t, err, syscall.EIO)
				d.set(hook)
				assert.NoError(t, storetest.Write(r, content, 4))
			}
			return n, nil
		}
		d.set(hook)
		for i := range piece.Index(3) {
			require.NoError(t, storetest.Write(r, content, 4+i))
		}
		synctest.Wait()
		assert.True(t, r.Has(4))
		for i := range piece.Index(3) {
			_ = storetest.Write(r, content, 7+i)
		}
		synctest.Wait()
		require.GreaterOrEqual(t, syncs, 2)
		assert.False(t, r.Has(4), "the second sync failed, and the first did not cover it")
		assert.True(t, r.Has(5))
		d.set(nil)
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	})
}

func TestCloseWaitsForWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s, r, content := durable(t, d)
		goOn := make(chan struct{})
		d.set(func(op, name string, n int) (int, error) {
			if op == "write" && name == "data" {
				<-goOn
			}
			return n, nil
		})
		written, closed := make(chan error, 1), make(chan error, 1)
		go func() { written <- storetest.Write(r, content, 4) }()
		synctest.Wait()
		go func() { closed <- s.Close() }()
		synctest.Wait()
		assert.Empty(t, closed, "a running write would change a directory that another process may use")
		close(goOn)
		require.NoError(t, <-written)
		require.NoError(t, <-closed)
		s = mustOpen(t, diskstore.Config{Dir: s.Dir()})
		assert.Equal(t, 5, s.Inventory()[0].Have)
		require.NoError(t, s.Close())
	})
}

// A torn record may contain a complete record as its payload; a reader must not find it. Here it records piece 5 with
// the digest of zeros.
func TestRecordInsideTornRecord(t *testing.T) {
	zeros := piece.Sum(make([]byte, 1000))
	record := framed(append([]byte{1, 0, 0, 0, 5}, zeros[:]...))
	// A reader would find the inner record if a record of the same length overwrote the start of the torn one.
	der := append(make([]byte, len(record)-9), bytes.Repeat(record, 20)...)
	check := func(t *testing.T, image string, content []byte) {
		t.Helper()
		s := mustOpen(t, diskstore.Config{Dir: image})
		r, err := s.Open(storetest.ID("a"))
		require.NoError(t, err)
		assert.False(t, r.Has(5))
		assert.True(t, r.Has(7))
		storetest.Check(t, r, content)
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	}

	t.Run("after a failed append", func(t *testing.T) {
		d := &disk{}
		s, r, content := durable(t, d)
		d.fail(storetest.NoteShort)
		require.Error(t, r.AddRuns(nil, [][]byte{der}))
		d.set(nil)
		require.NoError(t, storetest.Write(r, content, 7))
		image := copyTree(t, s.Dir())
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
		check(t, image, content)
	})
	t.Run("after a failed truncation", func(t *testing.T) {
		d := &disk{}
		s, r, content := durable(t, d)
		d.fail(storetest.NoteStuck)
		require.Error(t, r.AddRuns(nil, [][]byte{der}))
		d.set(nil)
		require.ErrorContains(t, storetest.Write(r, content, 7), "takes no more records until the task is closed")
		require.NoError(t, r.Close())
		r, err := s.Open(storetest.ID("a"))
		require.NoError(t, err)
		require.NoError(t, storetest.Write(r, content, 7))
		image := copyTree(t, s.Dir())
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
		check(t, image, content)
	})
	t.Run("after a crash", func(t *testing.T) {
		dir, content := crashed(t, 0, 1, 2, 3)
		f, err := os.OpenFile(fileOf(dir, "a", "journal"), os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		torn := framed(append([]byte{4}, der...))
		_, err = f.Write(torn[:len(torn)-1])
		require.NoError(t, err)
		require.NoError(t, f.Close())
		// A mark in between would hide the error, so the fsync fails.
		d := &disk{}
		d.fail(storetest.SyncError)
		s := mustOpen(t, diskstore.Config{Dir: dir, FS: d})
		r, err := s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err)
		require.NoError(t, storetest.Write(r, content, 7))
		image := copyTree(t, dir)
		require.NoError(t, r.Close())
		_ = s.Close() // the fsync fails
		check(t, image, content)
	})
}

// A journal takes records again right after one failed append.
func TestJournalRecovers(t *testing.T) {
	d := &disk{}
	dir := t.TempDir()
	s := mustOpen(t, diskstore.Config{Dir: dir, FS: d})
	content := storetest.Content("a", crashMetadata.Length)
	r, err := s.Create(storetest.ID("a"), crashMetadata)
	require.NoError(t, err)
	require.NoError(t, storetest.Write(r, content, 0))
	d.fail(storetest.NoteShort)
	require.ErrorIs(t, storetest.Write(r, content, 1), io.ErrShortWrite)
	require.ErrorIs(t, r.AddRuns(nil, [][]byte{{1}}), io.ErrShortWrite)
	_, certificates := r.Runs()
	assert.Empty(t, certificates)
	d.set(nil)
	require.NoError(t, storetest.Write(r, content, 2))
	require.NoError(t, storetest.Write(r, content, 1))
	assert.Equal(t, 3, storetest.Check(t, r, content))
	image := copyTree(t, dir)
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())

	s = mustOpen(t, diskstore.Config{Dir: image})
	r, err = s.Open(storetest.ID("a"))
	require.NoError(t, err)
	assert.Equal(t, 3, storetest.Check(t, r, content), "no torn record hides the later ones")
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// A slow write blocks no other piece and no reader.
func TestSlowWriteBlocksNoOther(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: d})
	content := storetest.Content("a", crashMetadata.Length)
	r, err := s.Create(storetest.ID("a"), crashMetadata)
	require.NoError(t, err)
	require.NoError(t, storetest.Write(r, content, 0))
	stuck, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.set(func(op, name string, n int) (int, error) {
		if op == "write" && name == "data" {
			first := false
			once.Do(func() { first = true })
			if first {
				close(stuck)
				<-goOn
			}
		}
		return n, nil
	})
	done := make(chan error, 2)
	go func() { done <- storetest.Write(r, content, 1) }()
	<-stuck
	go func() { done <- storetest.Write(r, content, 1) }() // the same piece waits for the first
	require.NoError(t, storetest.Write(r, content, 2))
	require.NoError(t, r.AddRuns(nil, [][]byte{{1}}))
	assert.Equal(t, 2, storetest.Check(t, r, content))
	assert.Equal(t, 2, s.Inventory()[0].Have)
	other, err := s.Create(storetest.ID("b"), crashMetadata)
	require.NoError(t, err)
	require.NoError(t, other.Close())
	close(goOn)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	assert.Equal(t, 3, storetest.Check(t, r, content))
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// A write that runs during Close is complete or absent.
func TestWriteDuringClose(t *testing.T) {
	dir := t.TempDir()
	content := storetest.Content("a", crashMetadata.Length)
	for range 20 {
		s := mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
		r, err := s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err)
		var g sync.WaitGroup
		var mu sync.Mutex
		written := map[piece.Index]bool{}
		before := r.Have()
		for i := range piece.Index(10) {
			g.Go(func() {
				err := storetest.Write(r, content, i)
				mu.Lock()
				defer mu.Unlock()
				if written[i] = err == nil; err != nil {
					assert.ErrorIs(t, err, piece.ErrClosed)
				}
			})
		}
		require.NoError(t, s.Close())
		g.Wait()
		s = mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
		r, err = s.Open(storetest.ID("a"))
		require.NoError(t, err)
		storetest.Check(t, r, content)
		for i, ok := range written {
			assert.Equal(t, ok || before.Has(i), r.Has(i), "piece %d", i)
		}
		require.NoError(t, s.Remove(storetest.ID("a")))
		require.NoError(t, s.Close())
	}
}

func TestUnusedTaskHasNoOpenFiles(t *testing.T) {
	dir := t.TempDir()
	open := func() (n int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc/self/fd, which only Linux has")
		}
		for _, d := range list {
			if to, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil {
				if rel, err := filepath.Rel(dir, to); err == nil && filepath.IsLocal(rel) && rel != "lock" {
					n++
				}
			}
		}
		return n
	}
	s := mustOpen(t, diskstore.Config{Dir: dir})
	content := storetest.Content("a", crashMetadata.Length)
	var held []piece.Replica
	for k := range 20 {
		r, err := s.Create(storetest.ID(fmt.Sprint(k)), crashMetadata)
		require.NoError(t, err)
		require.NoError(t, storetest.Write(r, content, 0))
		_, err = r.CopyTo(io.Discard, 0, 10)
		require.NoError(t, err)
		held = append(held, r)
	}
	assert.Equal(t, 60, open(), "data, journal, and a description to read from")
	for _, r := range held {
		require.NoError(t, r.Close())
	}
	require.Eventually(t, func() bool { return open() == 0 }, time.Minute, time.Millisecond)
	require.NoError(t, s.Close())
}
