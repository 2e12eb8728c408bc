package dfget

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The error names the target and the reason, for a directory of another user and, if the test may mount file
// systems, for a read-only and for a full one.
func TestUnwritableTarget(t *testing.T) {
	t.Run("of another user", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "f")
		require.NoError(t, os.Chmod(filepath.Dir(file), 0o500))
		failed := make(chan error)
		go func() {
			if os.Geteuid() == 0 {
				// Root may write everywhere, so this thread takes another user's rights to files. The thread
				// ends with its goroutine.
				runtime.LockOSThread()
				_, _ = unix.SetfsuidRetUid(65534)
			}
			_, err := openTarget(file, nil, "", "")
			failed <- err
		}()
		err := <-failed
		assert.ErrorContains(t, err, file+".part")
		assert.ErrorContains(t, err, "permission denied")
	})
	mount := func(t *testing.T, options string, flags uintptr) (dir string) {
		dir = filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.Mkdir(dir, 0o700))
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Skipf("mounting a small file system needs root; run the tests as root: %v", err)
		}
		t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		return dir
	}
	t.Run("read-only", func(t *testing.T) {
		file := filepath.Join(mount(t, "size=65536", unix.MS_RDONLY), "f")
		_, err := openTarget(file, nil, "", "")
		assert.ErrorContains(t, err, file+".part")
		assert.ErrorContains(t, err, "read-only file system")
	})
	t.Run("full", func(t *testing.T) {
		const size = 64 << 10
		file := filepath.Join(mount(t, fmt.Sprintf("size=%d,mode=0700", size), 0), "f")
		target, err := openTarget(file, nil, "", "")
		require.NoError(t, err)
		defer target.close()
		require.NoError(t, target.begin(`"file:00"`))
		var failed error
		for wrote := 0; failed == nil && wrote <= size; wrote += 4096 {
			failed = target.write(make([]byte, 4096))
		}
		assert.ErrorContains(t, failed, "writing "+file)
		assert.ErrorContains(t, failed, "no space left on device")
		// The next run continues the bytes that fitted.
		assert.Contains(t, target.kept(), "is kept in "+file+".part")
		again, err := os.Stat(file + ".part")
		require.NoError(t, err)
		assert.Equal(t, target.offset, again.Size())
	})
}

// After a kill at any moment, the note on the disk is that of the bytes in the part, or there is none.
func TestNoteOfFormerVersion(t *testing.T) {
	for _, row := range []struct {
		name, identity string
		small          bool
		want           string
	}{
		{"a small file of another version", `"file:02"`, true, ""},
		{"a large file of another version", `"file:02"`, false, `"file:02"`},
		{"a file without a version", "", false, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "f")
			require.NoError(t, os.WriteFile(file+".part", nil, 0o600))
			require.NoError(t, os.WriteFile(file+".part.id", []byte("\"file:01\"\n"), 0o600))
			target, err := openTarget(file, nil, "", "")
			require.NoError(t, err)
			defer target.close()
			require.Equal(t, `"file:01"`, target.identity)
			target.small = row.small
			require.NoError(t, target.begin(row.identity))
			require.NoError(t, target.write([]byte("bytes")))
			note, _ := readNote(file + ".part.id")
			assert.Equal(t, row.want, note)
		})
	}
}

// sweep deletes the cache of a killed dfget, and no other.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	// cache makes the cache directory of a dfget's own peer; held means that the peer still runs.
	cache := func(name string, age time.Duration, held bool) string {
		store := filepath.Join(dir, name, "data", "cache")
		require.NoError(t, os.MkdirAll(filepath.Join(store, "tasks"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(store, "tasks", "data"), []byte("pieces"), 0o600))
		lock := filepath.Join(store, "lock")
		f, err := os.Create(lock)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		if held {
			require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		}
		then := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(lock, then, then))
		return filepath.Join(dir, name)
	}
	killed := cache(".dfget-1", time.Hour, false)
	running, starting := cache(".dfget-2", time.Hour, true), cache(".dfget-3", 0, false)
	other := cache("others-4", time.Hour, false)
	killedNow := cache(".dfget-peer-5", 0, false)
	early := filepath.Join(dir, ".dfget-peer-6") // killed before it wrote anything
	require.NoError(t, os.Mkdir(early, 0o700))
	own, lock, err := newCache(dir)
	require.NoError(t, err)
	defer lock.Close()
	sweep(dir, slog.New(slog.DiscardHandler))
	assert.NoDirExists(t, killed)
	assert.NoDirExists(t, killedNow)
	assert.NoDirExists(t, early)
	assert.DirExists(t, own)
	require.NoError(t, lock.Close()) // as if that one was killed, too
	sweep(dir, slog.New(slog.DiscardHandler))
	assert.NoDirExists(t, own)
	for _, kept := range []string{running, starting, other} {
		assert.FileExists(t, filepath.Join(kept, "data", "cache", "tasks", "data"))
	}
}
