package diskstore_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// lostBytes copies a store and loses all bytes of pieces, as a power cut may lose those that were not synced.
func lostBytes(t *testing.T, dir string) string {
	cut := filepath.Join(t.TempDir(), "cut")
	require.NoError(t, os.CopyFS(cut, os.DirFS(dir)))
	require.NoError(t, filepath.WalkDir(cut, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "data" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(path, make([]byte, info.Size()), 0o600)
	}))
	return cut
}

// believed counts the pieces that a store holds after an open.
func believed(t *testing.T, dir string) (n int) {
	s := mustOpen(t, diskstore.Config{Dir: dir})
	defer s.Close()
	for _, e := range s.Inventory() {
		n += e.Have
	}
	return n
}

// Many small tasks cost one sync of the file system, and no mark precedes it. If that fails, each is synced alone.
func TestSmallTasksAreSyncedTogether(t *testing.T) {
	t.Parallel()
	const tasks = 40
	for _, row := range []struct {
		name string
		err  error
	}{{"one sync", nil}, {"not supported", errors.ErrUnsupported}, {"a failed write somewhere", syscall.EIO}} {
		t.Run(row.name, func(t *testing.T) {
			dir, d := t.TempDir(), &disk{}
			began, queued, together := make(chan struct{}), make(chan struct{}), make(chan string, 2)
			var first sync.Once
			var mu sync.Mutex
			var syncs int
			d.set(func(op, _ string, n int) (int, error) {
				switch op {
				case "sync":
					first.Do(func() { close(began) })
					<-queued
					mu.Lock()
					defer mu.Unlock()
					syncs++
				case "sync all":
					together <- lostBytes(t, dir)
					return n, row.err
				}
				return n, nil
			})
			s := mustOpen(t, diskstore.Config{Dir: dir, FS: d})
			for i := range tasks {
				name := fmt.Sprint(i)
				content := storetest.Content(name, 1000)
				r, err := s.Create(storetest.ID(name), piece.MetadataFor(int64(len(content)), ""))
				require.NoError(t, err)
				require.NoError(t, storetest.Write(r, content, 0))
				require.NoError(t, r.Close())
				if i == 0 {
					<-began // the worker is in the sync of the first task, while the others are queued
				}
			}
			close(queued)
			cut := <-together
			require.NoError(t, s.Close())
			assert.LessOrEqual(t, believed(t, cut), 1, "no mark precedes the sync")
			assert.Equal(t, tasks, believed(t, lostBytes(t, dir)), "afterwards, each task has a mark")
			assert.Equal(t, tasks, believed(t, dir))
			if row.err == nil {
				assert.LessOrEqual(t, syncs, 2, "data and journal of the first task")
			} else {
				assert.GreaterOrEqual(t, syncs, 2*tasks)
			}
		})
	}
}
