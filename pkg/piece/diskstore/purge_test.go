package diskstore_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// stuck is a disk on which nothing that lies under tasks/ or aside/ can be moved or deleted.
type stuck struct {
	diskstore.OS
	mu  sync.Mutex
	err error
	// synced are the directories whose entries were brought to the disk.
	synced []string
}

func (s *stuck) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && (strings.Contains(from, "/tasks/") || strings.Contains(from, "/aside/")) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: s.err}
	}
	return s.OS.Rename(from, to)
}

func (s *stuck) RemoveAll(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil && (strings.Contains(name, "/tasks/") || strings.Contains(name, "/aside/")) {
		return &os.PathError{Op: "unlinkat", Path: name, Err: s.err}
	}
	return s.OS.RemoveAll(name)
}

func (s *stuck) SyncDir(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = append(s.synced, name)
	return s.OS.SyncDir(name)
}

func (s *stuck) free(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// store opens a store over a disk.
func (s *stuck) store(t *testing.T, dir string) *diskstore.Store {
	store, err := diskstore.Open(diskstore.Config{Dir: dir, FS: s})
	require.NoError(t, err)
	return store
}

// fill puts a whole task in a store.
func fill(t *testing.T, s *diskstore.Store, content []byte) {
	r, err := s.Create(storetest.ID("a"), piece.MetadataFor(int64(len(content)), ""))
	require.NoError(t, err)
	require.NoError(t, storetest.Write(r, content, 0))
	require.NoError(t, r.Close())
}

func TestSweepEndsWhatRemoveCouldNot(t *testing.T) {
	dir, id, content := t.TempDir(), storetest.ID("a"), []byte("what has to go")
	disk := &stuck{}
	s := disk.store(t, dir)
	fill(t, s, content)
	disk.free(syscall.EIO)
	require.ErrorIs(t, s.Remove(id), syscall.EIO)
	_, err := s.Open(id)
	require.ErrorIs(t, err, piece.ErrNotFound, "it is not given out any more")
	require.ErrorIs(t, s.Sweep(id), syscall.EIO)
	require.ErrorIs(t, s.Sweep(id), syscall.EIO)

	disk.free(nil)
	require.NoError(t, s.Sweep(id))
	left, err := filepath.Glob(filepath.Join(dir, "tasks", "*", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Contains(t, strings.Join(disk.synced, " "), "/tasks/", "no power cut brings it back")
	require.NoError(t, s.Sweep(id), "what is not there")
	assert.Zero(t, s.Usage().Used)
	assert.Zero(t, s.Usage().Tasks)

	fill(t, s, content)
	require.NoError(t, s.Sweep(id))
	r, err := s.Open(id)
	require.NoError(t, err, "what was made since stays")
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, s.Sweep(id), piece.ErrClosed)
}

func TestSweepTakesWhatWasSetAside(t *testing.T) {
	dir, id := t.TempDir(), storetest.ID("a")
	disk := &stuck{}
	s := disk.store(t, dir)
	fill(t, s, []byte("of a newer version"))
	require.NoError(t, s.Close())
	journal, err := filepath.Glob(filepath.Join(dir, "tasks", "*", "*", "journal"))
	require.NoError(t, err)
	require.Len(t, journal, 1)
	b, err := os.ReadFile(journal[0])
	require.NoError(t, err)
	b[11]++ // the last byte of the version
	require.NoError(t, os.WriteFile(journal[0], b, 0o600))

	s = disk.store(t, dir)
	require.Positive(t, s.Usage().Used)
	require.NoError(t, s.Remove(id))
	require.NoError(t, s.Sweep(id))
	left, err := filepath.Glob(filepath.Join(dir, "aside", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Zero(t, s.Usage().Used)
	require.NoError(t, s.Close())
}

func TestSweepAndCreateAtOnce(t *testing.T) {
	s := (&stuck{}).store(t, t.TempDir())
	id, facts := storetest.ID("a"), piece.MetadataFor(3, "")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				assert.NoError(t, s.Sweep(id))
			}
		})
		wg.Go(func() {
			for range 50 {
				r, err := s.Create(id, facts)
				if assert.NoError(t, err) {
					assert.NoError(t, r.Close())
				}
				assert.NoError(t, s.Remove(id))
			}
		})
	}
	wg.Wait()
	assert.Zero(t, s.Usage().Used)
	require.NoError(t, s.Close())
}
