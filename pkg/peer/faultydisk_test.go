package peer_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
)

// failingFS is a file layer whose disk becomes read-only, or gives one file no more.
type failingFS struct {
	diskstore.OS
	readOnly atomic.Bool
	unread   atomic.Pointer[os.FileInfo]
}

func (f *failingFS) changes() error {
	if f.readOnly.Load() {
		return syscall.EROFS
	}
	return nil
}

func (f *failingFS) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	if flag&(os.O_RDWR|os.O_WRONLY) != 0 && f.readOnly.Load() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EROFS}
	}
	file, err := f.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &failingFile{file, f, name}, nil
}

func (f *failingFS) MkdirAll(name string, perm fs.FileMode) error {
	if err := f.changes(); err != nil {
		return err
	}
	return f.OS.MkdirAll(name, perm)
}

func (f *failingFS) Rename(from, to string) error {
	if err := f.changes(); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *failingFS) RemoveAll(name string) error {
	if err := f.changes(); err != nil {
		return err
	}
	return f.OS.RemoveAll(name)
}

func (f *failingFS) Allocate(file diskstore.File, size int64) error {
	return f.OS.Allocate(file.(*failingFile).File, size)
}

func (f *failingFS) Datasync(diskstore.File) error { return f.changes() }
func (f *failingFS) SyncDir(string) error          { return f.changes() }
func (f *failingFS) SyncAll(*os.File) error        { return errors.ErrUnsupported }

type failingFile struct {
	diskstore.File
	f    *failingFS
	name string
}

func (f *failingFile) read() error {
	bad := f.f.unread.Load()
	if st, err := f.File.Stat(); bad != nil && (err != nil || os.SameFile(*bad, st)) {
		return &fs.PathError{Op: "read", Path: f.name, Err: syscall.EIO}
	}
	return nil
}

func (f *failingFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.read(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *failingFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.f.changes(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *failingFile) Truncate(size int64) error {
	if err := f.f.changes(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// spoil makes a file unreadable, and no other one that gets its inode later.
func (f *failingFS) spoil(t *testing.T, path string) {
	file, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	st, err := file.Stat()
	require.NoError(t, err)
	f.unread.Store(&st)
}

func (s *swarm) onFailingDisk() (n *node, f *failingFS, dir string) {
	f, dir = &failingFS{}, s.t.TempDir()
	store, err := diskstore.Open(diskstore.Config{Dir: dir, FS: f})
	require.NoError(s.t, err)
	n = s.node(store)
	s.t.Cleanup(func() {
		require.NoError(s.t, n.stop())
		require.NoError(s.t, store.Close())
	})
	return n, f, dir
}

func TestAnUnreadableJournalHealsWithTheNextPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(70, 20*piece.SizeMin))
		n, disk, dir := s.onFailingDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		time.Sleep(10 * time.Minute) // its files are closed
		disk.spoil(t, dataFile(t, dir, "journal"))
		for range 3 {
			data, err := s.readAll(n)
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.origin.content, data))
		}
		assert.Len(t, s.origin.requests(), 2)
	})
}

func TestAPieceThatTheDiskDoesNotGiveComesAgainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(71, 4*piece.SizeMin))
		s.seed()
		n, disk, dir := s.onFailingDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		disk.spoil(t, dataFile(t, dir, "data")) // for ever, also when it is written again
		_, err = s.readAll(n)
		require.ErrorIs(t, err, syscall.EIO)
		assert.LessOrEqual(t, n.engine.Stats().Seeds+n.engine.Stats().Peers, int64(6*piece.SizeMin))
		data, err := s.readAll(n)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(s.origin.content, data))
	})
}

func TestAReadOnlyDiskServesWhatIsCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(72, 20*piece.SizeMin))
		s.seed() // a neighbour that sends its digests
		n, disk, _ := s.onFailingDisk()
		_, err := s.readAll(n)
		require.NoError(t, err)
		time.Sleep(time.Minute) // on stable storage
		disk.readOnly.Store(true)
		for _, wait := range []time.Duration{0, 10 * time.Minute, time.Second} {
			time.Sleep(wait)
			data, err := s.readAll(n)
			require.NoError(t, err)
			require.True(t, bytes.Equal(s.origin.content, data))
		}
		other := newSwarm(t, randomBytes(73, 2*piece.SizeMin)) // an object that is not stored
		spec := other.spec()
		_, err = s.read(t.Context(), n, spec, 0, 10)
		require.Error(t, err)
		disk.readOnly.Store(false)
	})
}
