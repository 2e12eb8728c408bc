package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// alone requires that a directory holds one file, with that content and mode 0600.
func alone(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, content, string(b))
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), info.Mode())
	files, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, files, 1, "no temporary file is left")
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, Write(path, []byte("one")))
	alone(t, path, "one")
	require.NoError(t, Write(path, []byte("two")))
	alone(t, path, "two")

	t.Run("a missing directory is an error", func(t *testing.T) {
		require.Error(t, Write(filepath.Join(path, "none"), nil))
		alone(t, path, "two")
	})
	t.Run("a symbolic link is replaced, not followed", func(t *testing.T) {
		dir := t.TempDir()
		link := filepath.Join(dir, "link")
		require.NoError(t, os.Symlink(path, link))
		require.NoError(t, Write(link, []byte("three")))
		alone(t, link, "three")
		alone(t, path, "two")
	})
	t.Run("a directory in the way is an error and leaves nothing behind", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "f"), 0o700))
		require.Error(t, Write(filepath.Join(dir, "f"), nil))
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, files, 1)
	})
}

func TestReplaceFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, Write(path, []byte("one")))
	broken := errors.New("broken")
	err := Replace(path, func(f *os.File) error {
		_, err := f.WriteString("half")
		return errors.Join(err, broken)
	})
	require.ErrorIs(t, err, broken)
	alone(t, path, "one")
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var created atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := Create(path, func(f *os.File) error {
				_, err := f.WriteString("content")
				return err
			})
			if err == nil {
				created.Add(1)
				return
			}
			assert.ErrorIs(t, err, fs.ErrExist)
		})
	}
	wg.Wait()
	assert.Equal(t, int32(1), created.Load(), "one process creates the file")
	alone(t, path, "content")
}
