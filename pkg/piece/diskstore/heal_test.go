package diskstore_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
	"github.com/darter-io/darter/test/race"
)

// badDisk is a disk that answers some operations on some paths with an error.
type badDisk struct {
	quick
	mu    sync.Mutex
	err   error
	match func(op, path string) bool
	bad   os.FileInfo // a file that match knows as "bad", wherever it is
}

// fail makes matching operations fail with err, until it is called with nil.
func (d *badDisk) fail(err error, match func(op, path string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err, d.match = err, match
}

// mark makes match know a file as "bad", and no other one that gets its inode later.
func (d *badDisk) mark(t *testing.T, path string) {
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad, err = f.Stat()
	require.NoError(t, err)
}

func (d *badDisk) ask(op, path string, stat func() (os.FileInfo, error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		return nil
	}
	if stat == nil {
		stat = func() (os.FileInfo, error) { return os.Stat(path) }
	}
	if st, err := stat(); err == nil && d.bad != nil && os.SameFile(d.bad, st) {
		path = "bad"
	}
	if !d.match(op, path) {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: d.err}
}

func (d *badDisk) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	op := "open"
	if flag&(os.O_RDWR|os.O_WRONLY) != 0 {
		op = "open to write"
	}
	if err := d.ask(op, name, nil); err != nil {
		return nil, err
	}
	f, err := d.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &badFile{f, d, name}, nil
}

func (d *badDisk) MkdirAll(name string, perm fs.FileMode) error {
	if err := d.ask("mkdir", name, nil); err != nil {
		return err
	}
	return d.OS.MkdirAll(name, perm)
}

func (d *badDisk) Rename(from, to string) error {
	if err := d.ask("rename", from, nil); err != nil {
		return err
	}
	return d.OS.Rename(from, to)
}

func (d *badDisk) RemoveAll(name string) error {
	if err := d.ask("remove", name, nil); err != nil {
		return err
	}
	return d.OS.RemoveAll(name)
}

func (d *badDisk) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := d.ask("readdir", name, nil); err != nil {
		return nil, err
	}
	return d.OS.ReadDir(name)
}

func (d *badDisk) Stat(name string) (fs.FileInfo, error) {
	if err := d.ask("stat", name, nil); err != nil {
		return nil, err
	}
	return d.OS.Stat(name)
}

func (d *badDisk) Allocate(f diskstore.File, size int64) error {
	b := f.(*badFile)
	if err := d.ask("allocate", b.name, b.File.Stat); err != nil {
		return err
	}
	return d.OS.Allocate(b.File, size)
}

func (d *badDisk) Datasync(f diskstore.File) error {
	b := f.(*badFile)
	if err := d.ask("sync", b.name, b.File.Stat); err != nil {
		return err
	}
	return d.quick.Datasync(b.File)
}

type badFile struct {
	diskstore.File
	d    *badDisk
	name string
}

func (f *badFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.d.ask("read", f.name, f.File.Stat); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *badFile) Read(p []byte) (int, error) {
	if err := f.d.ask("read", f.name, f.File.Stat); err != nil {
		return 0, err
	}
	return f.File.Read(p)
}

func (f *badFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.ask("write", f.name, f.File.Stat); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *badFile) Truncate(size int64) error {
	if err := f.d.ask("truncate", f.name, f.File.Stat); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *badFile) Stat() (fs.FileInfo, error) {
	if err := f.d.ask("stat", f.name, f.File.Stat); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

var errnos = []syscall.Errno{
	syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG, syscall.ESTALE, syscall.EACCES, syscall.EPERM,
	syscall.EROFS, syscall.ENXIO,
	syscall.ELOOP, syscall.ENOMEM, syscall.EMFILE, syscall.EINVAL,
}

var operations = []string{
	"open", "open to write", "read", "stat", "write", "truncate", "sync", "allocate", "mkdir", "rename",
	"remove", "readdir",
}

var healMetadata = piece.Metadata{Length: 40_000, PieceSize: 4_000}

// keep downloads a task as the engine does: it opens or creates the task, writes the missing pieces and reads
// everything. It fails unless every byte is right.
func keep(t *testing.T, s *diskstore.Store, name string) error {
	content := storetest.Content(name, healMetadata.Length)
	r, err := s.Create(storetest.ID(name), healMetadata)
	if err != nil {
		return err
	}
	defer r.Close()
	for i := range piece.Index(healMetadata.Layout().Count()) {
		if err := storetest.Write(r, content, i); err != nil {
			return err
		}
	}
	return whole(t, r, content)
}

// whole reads a whole replica.
func whole(t *testing.T, r piece.Replica, content []byte) error {
	got := make([]byte, len(content))
	if n, err := r.ReadAt(got, 0); err != nil {
		assert.Equal(t, content[:n], got[:n])
		return err
	}
	assert.Equal(t, content, got)
	return nil
}

func digits(name string) string { return strings.TrimPrefix(string(storetest.ID(name)), "sha256:") }

// of matches an operation on one task in any place of tasks/.
func of(name, op string) func(string, string) bool {
	return func(o, path string) bool { return o == op && strings.Contains(path, digits(name)) }
}

// One bad task does not prevent the store from opening.
func TestOpenWithBadTask(t *testing.T) {
	for _, errno := range errnos {
		for _, op := range operations {
			for state, dirty := range map[string]bool{"clean": false, "after an unclean stop": true} {
				t.Run(fmt.Sprintf("%v at %s, %s", errno, op, state), func(t *testing.T) {
					dir := t.TempDir()
					s := mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
					for _, name := range []string{"a", "b"} {
						require.NoError(t, keep(t, s, name))
					}
					require.NoError(t, s.Close())
					if dirty {
						journal := fileOf(dir, "a", "journal")
						st, err := os.Stat(journal)
						require.NoError(t, err)
						require.NoError(t, os.Truncate(journal, st.Size()-5))
					}
					d := &badDisk{}
					d.fail(errno, of("a", op))
					s, err := diskstore.Open(diskstore.Config{Dir: dir, FS: d})
					require.NoError(t, err)
					r, err := s.Open(storetest.ID("b"))
					require.NoError(t, err, "the other task is unchanged")
					require.NoError(t, whole(t, r, storetest.Content("b", healMetadata.Length)))
					require.NoError(t, r.Close())
					d.fail(nil, nil)
					require.NoError(t, keep(t, s, "a"), "it recovers without a restart")
					require.NoError(t, s.Close())
					s = mustOpen(t, diskstore.Config{Dir: dir})
					for _, name := range []string{"a", "b"} {
						r, err = s.Open(storetest.ID(name))
						require.NoError(t, err)
						require.NoError(t, whole(t, r, storetest.Content(name, healMetadata.Length)))
						require.NoError(t, r.Close())
					}
					require.NoError(t, s.Close())
				})
			}
		}
	}
}

// A task whose files fail for ever, as on a bad sector, is created again on other files while the store runs.
func TestTaskOnBadFiles(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EUCLEAN, syscall.EBADMSG, syscall.ESTALE, syscall.EACCES,
		syscall.ELOOP} {
		for _, file := range []string{"journal", "data"} {
			for stuck, also := range map[string][]string{"": nil, ", and cannot be moved": {"rename"},
				", and cannot be taken away": {"rename", "remove", "open to write"}} {
				t.Run(fmt.Sprintf("%v of its %s%s", errno, file, stuck), func(t *testing.T) {
					dir := t.TempDir()
					d := &badDisk{}
					s := mustOpen(t, diskstore.Config{Dir: dir, FS: d})
					require.NoError(t, keep(t, s, "a"))
					require.NoError(t, s.Close())
					s = mustOpen(t, diskstore.Config{Dir: dir, FS: d})
					place := filepath.Dir(fileOf(dir, "a", "journal"))
					d.mark(t, filepath.Join(place, file))
					d.fail(errno, func(op, path string) bool {
						if path == "bad" {
							return op == "read" || op == "open" || op == "open to write"
						}
						for _, o := range also {
							if o == op && strings.HasPrefix(path, place) {
								return true
							}
						}
						return false
					})
					_, err := s.Open(storetest.ID("a"))
					require.ErrorIs(t, err, piece.ErrNotFound, "so that it is downloaded again")
					require.NoError(t, keep(t, s, "a"))
					require.NoError(t, keep(t, s, "b"))
					require.NoError(t, s.Close())

					s = mustOpen(t, diskstore.Config{Dir: dir, FS: d})
					r, err := s.Open(storetest.ID("a"))
					require.NoError(t, err, "also after a restart")
					require.NoError(t, whole(t, r, storetest.Content("a", healMetadata.Length)))
					require.NoError(t, r.Close())
					require.NoError(t, s.Close())
					d.fail(nil, nil)
					s = mustOpen(t, diskstore.Config{Dir: dir, FS: d}) // both places are readable now
					require.NoError(t, keep(t, s, "a"))
					assert.Len(t, s.Inventory(), 2)
					require.NoError(t, s.Remove(storetest.ID("a")))
					require.NoError(t, s.Close())
					s = mustOpen(t, diskstore.Config{Dir: dir, FS: d})
					_, err = s.Open(storetest.ID("a"))
					require.ErrorIs(t, err, piece.ErrNotFound, "removal deletes both copies")
					require.NoError(t, s.Close())
				})
			}
		}
	}
}

// A task that takes no more writes is created again.
func TestUnwritableTask(t *testing.T) {
	for _, file := range []string{"journal", "data"} {
		for _, ops := range [][]string{{"write"}, {"write", "truncate"}, {"sync"}} {
			if file == "data" && ops[0] == "sync" {
				continue // the pieces are dropped and written again
			}
			t.Run(fmt.Sprint(file, ops), func(t *testing.T) {
				d := &badDisk{}
				s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: d, SyncBytes: 1})
				content := storetest.Content("a", healMetadata.Length)
				r, err := s.Create(storetest.ID("a"), healMetadata)
				require.NoError(t, err)
				require.NoError(t, storetest.Write(r, content, 0))
				// From here on its current file is bad; others are good.
				d.mark(t, fileOf(s.Dir(), "a", file))
				d.fail(syscall.EIO, func(op, path string) bool { return path == "bad" && slices.Contains(ops, op) })
				var failed error
				for i := piece.Index(1); i < 10 && failed == nil; i++ {
					failed = storetest.Write(r, content, i)
				}
				if ops[0] == "write" {
					require.ErrorIs(t, failed, syscall.EIO)
				}
				require.NoError(t, r.Close())
				require.NoError(t, keep(t, s, "a"), "the next pull")
				require.NoError(t, keep(t, s, "b"))
				_ = s.Close() // fails, since the journal cannot be synced
				s = mustOpen(t, diskstore.Config{Dir: s.Dir(), FS: d})
				require.NoError(t, keep(t, s, "a"))
				_ = s.Close()
			})
		}
	}
}

// readOnly matches the operations that a read-only file system refuses.
func readOnly(op, _ string) bool {
	switch op {
	case "open", "read", "stat", "readdir":
		return false
	}
	return true
}

// A read-only disk still serves its pieces.
func TestReadOnlyDisk(t *testing.T) {
	for state, open := range map[string]bool{"open then": true, "closed then": false} {
		t.Run(state, func(t *testing.T) {
			d := &badDisk{}
			dir := t.TempDir()
			s := mustOpen(t, diskstore.Config{Dir: dir, FS: d, Quota: 3 * 60_000})
			for _, name := range []string{"a", "b"} {
				require.NoError(t, keep(t, s, name))
			}
			require.NoError(t, s.Close())
			s = mustOpen(t, diskstore.Config{Dir: dir, FS: d, Quota: 3 * 60_000})
			var held piece.Replica
			if open {
				var err error
				held, err = s.Open(storetest.ID("a"))
				require.NoError(t, err)
			}
			d.fail(syscall.EROFS, readOnly)
			for range 3 {
				for _, name := range []string{"a", "b"} {
					require.NoError(t, keep(t, s, name), "cached tasks are served without a write")
				}
				for _, name := range []string{"c", "d", "e"} { // more than the quota
					err := keep(t, s, name)
					require.ErrorIs(t, err, syscall.EROFS)
					require.ErrorContains(t, err, "mount it writable")
				}
			}
			assert.Len(t, s.Inventory(), 2)
			if held != nil {
				require.NoError(t, held.Close())
			}
			d.fail(nil, nil)
			require.NoError(t, keep(t, s, "c"), "without a restart")
			require.NoError(t, s.Close())
		})
	}
}

// An incomplete task on a read-only disk serves its pieces.
func TestIncompleteTaskOnReadOnlyDisk(t *testing.T) {
	d := &badDisk{}
	dir := t.TempDir()
	s := mustOpen(t, diskstore.Config{Dir: dir, FS: d})
	content := storetest.Content("a", healMetadata.Length)
	r, err := s.Create(storetest.ID("a"), healMetadata)
	require.NoError(t, err)
	for i := range piece.Index(4) {
		require.NoError(t, storetest.Write(r, content, i))
	}
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
	s = mustOpen(t, diskstore.Config{Dir: dir, FS: d})
	d.fail(syscall.EROFS, readOnly)
	r, err = s.Open(storetest.ID("a"))
	require.NoError(t, err)
	require.NoError(t, whole(t, r, content[:4*healMetadata.PieceSize]))
	err = storetest.Write(r, content, 4)
	require.ErrorIs(t, err, syscall.EROFS)
	require.ErrorContains(t, err, "mount it writable")
	require.NoError(t, r.Close())
	d.fail(nil, nil)
	require.NoError(t, keep(t, s, "a"))
	require.NoError(t, s.Close())
}

// For every error at every operation of a running store: readable bytes are right, other tasks are unaffected, and
// the store recovers when the fault ends.
func TestEveryErrorHeals(t *testing.T) {
	all := append(errnos, syscall.ENOSPC, syscall.EDQUOT)
	if race.Enabled {
		all = []syscall.Errno{syscall.EIO, syscall.ENOSPC}
	}
	for _, errno := range all {
		for _, op := range operations {
			t.Run(fmt.Sprintf("%v at %s", errno, op), func(t *testing.T) {
				d := &badDisk{}
				dir := t.TempDir()
				cfg := diskstore.Config{Dir: dir, FS: d, Quota: 4 * 60_000, SyncBytes: 10_000}
				s := mustOpen(t, cfg)
				for _, name := range []string{"a", "b", "c"} {
					require.NoError(t, keep(t, s, name))
				}
				d.fail(errno, func(o, _ string) bool { return o == op })
				for range 2 {
					// Cached tasks, new tasks, and evictions.
					for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
						_ = keep(t, s, name) // may fail, but never with wrong bytes
					}
					_ = s.Remove(storetest.ID("b"))
				}
				d.fail(nil, nil)
				for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
					require.NoError(t, keep(t, s, name), name)
				}
				require.NoError(t, s.Close())
				s = mustOpen(t, cfg)
				for _, e := range s.Inventory() {
					r, err := s.Open(e.ID)
					require.NoError(t, err)
					require.NoError(t, r.Close())
				}
				for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
					require.NoError(t, keep(t, s, name), name)
				}
				assert.LessOrEqual(t, s.Usage().Used, cfg.Quota)
				require.NoError(t, s.Close())
			})
		}
	}
}

// A directory that cannot be deleted does not prevent a new task.
func TestUndeletableDirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, mustOpen(t, diskstore.Config{Dir: dir}).Close())
	for _, name := range []string{"1", "2", "x"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "tmp", name), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tmp", name, "data"), nil, 0o600))
	}
	d := &badDisk{}
	d.fail(syscall.EIO, func(op, path string) bool {
		return op == "remove" && strings.Contains(path, string(filepath.Separator)+"tmp"+string(filepath.Separator))
	})
	s, err := diskstore.Open(diskstore.Config{Dir: dir, FS: d})
	require.NoError(t, err)
	require.NoError(t, keep(t, s, "a"))
	require.NoError(t, keep(t, s, "b"))
	require.NoError(t, s.Close())
}
