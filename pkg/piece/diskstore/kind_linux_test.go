package diskstore_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece/diskstore"
)

// Opening a pipe for reading waits for a writer.
func TestPipeInPlaceOfAFile(t *testing.T) {
	for _, file := range []string{"journal", "data"} {
		t.Run(file, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
			for _, name := range []string{"a", "b"} {
				require.NoError(t, keep(t, s, name))
			}
			require.NoError(t, s.Close())
			path := fileOf(dir, "a", file)
			require.NoError(t, os.Remove(path))
			require.NoError(t, syscall.Mkfifo(path, 0o600))
			opened := make(chan *diskstore.Store, 1)
			go func() {
				s, err := diskstore.Open(diskstore.Config{Dir: dir, FS: quick{}})
				assert.NoError(t, err)
				opened <- s
			}()
			select {
			case s = <-opened:
			case <-time.After(time.Minute): // without a writer it would wait for ever
				t.Fatal("the store waits for the other end of a pipe")
			}
			require.NoError(t, keep(t, s, "a"), "it is fetched again")
			require.NoError(t, keep(t, s, "b"))
			require.NoError(t, s.Close())
		})
	}
}

// A program that lacks a resource or a permission at its start deletes nothing that a newer version wrote.
func TestAsideStaysWhereItCannotBeRead(t *testing.T) {
	for errno, stays := range map[syscall.Errno]bool{
		syscall.EMFILE: true, syscall.ENOMEM: true, syscall.EACCES: true, syscall.ESTALE: true, syscall.EIO: false,
	} {
		t.Run(errno.Error(), func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
			require.NoError(t, keep(t, s, "a"))
			require.NoError(t, s.Close())
			journal := fileOf(dir, "a", "journal")
			b, err := os.ReadFile(journal)
			require.NoError(t, err)
			b[11]++ // the last byte of the version
			require.NoError(t, os.WriteFile(journal, b, 0o600))
			require.NoError(t, mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}}).Close())

			d := &badDisk{}
			d.fail(errno, of("a", "open"))
			s = mustOpen(t, diskstore.Config{Dir: dir, FS: d})
			d.fail(nil, nil)
			require.NoError(t, s.Close())
			left, err := filepath.Glob(filepath.Join(dir, "aside", "*", "data"))
			require.NoError(t, err)
			assert.Len(t, left, map[bool]int{true: 1, false: 0}[stays])
		})
	}
}
