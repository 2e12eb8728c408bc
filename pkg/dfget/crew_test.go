package dfget

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
)

// Small files run more and more at once, and large ones only a few.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew()
		var entered atomic.Int64
		more := func() {
			go func() {
				c.enter()
				entered.Add(1)
			}()
			synctest.Wait()
		}
		for range 50 {
			more()
		}
		assert.EqualValues(t, parallelMin, entered.Load())
		for left := range 20 {
			c.leave(true)
			synctest.Wait()
			assert.EqualValues(t, min(parallelMin+left+1, parallelMax)+left+1, entered.Load())
		}
		c.large()
		for range parallelMax - parallelMin {
			c.leave(false)
			synctest.Wait()
		}
		assert.EqualValues(t, parallelMax+20, entered.Load(), "they end before another one begins")
		c.leave(false)
		synctest.Wait()
		assert.EqualValues(t, parallelMax+21, entered.Load())
		for range 50 - 21 - parallelMax + 3 {
			c.leave(false)
			synctest.Wait()
		}
		assert.EqualValues(t, 50, entered.Load())
	})
}

// slowFiles gives files of an unknown length, each of which takes a second. It counts how many run at once.
type slowFiles struct {
	size         int
	running, top atomic.Int64
}

func (f *slowFiles) fetch(context.Context, *job, int64, string) (*answer, error) {
	for n := f.running.Add(1); ; {
		top := f.top.Load()
		if n <= top || f.top.CompareAndSwap(top, n) {
			break
		}
	}
	body := io.MultiReader(bytes.NewReader(make([]byte, f.size)), ended(func() {
		time.Sleep(time.Second)
		f.running.Add(-1)
	}))
	return &answer{body: io.NopCloser(body), length: -1}, nil
}

func (f *slowFiles) progress(context.Context, *job, string) (shares, bool) { return shares{}, false }
func (f *slowFiles) close()                                                {}

// ended is a reader at its end.
type ended func()

func (e ended) Read([]byte) (int, error) {
	e()
	return 0, io.EOF
}

// The bytes of a file of unknown length decide whether it is small.
func TestCrewWithoutLengths(t *testing.T) {
	for _, row := range []struct {
		size int
		top  int64
	}{{smallMax + 1, parallelMin}, {10, parallelMax}} {
		t.Run(fmt.Sprint(row.size), func(t *testing.T) {
			set := config.Dfget{Output: t.TempDir()}
			synctest.Test(t, func(t *testing.T) {
				files := &slowFiles{size: row.size}
				cfg := Config{Settings: set}
				for i := range 60 {
					cfg.URLs = append(cfg.URLs, fmt.Sprintf("http://files.test/f%d", i))
				}
				g := New(cfg)
				g.source = files
				g.cfg.Settings.Netrc = "none"
				jobs, err := g.jobs()
				require.NoError(t, err)
				require.Empty(t, g.download(t.Context(), jobs, nil))
				assert.Equal(t, row.top, files.top.Load())
			})
		})
	}
}

// tiny gives files of 10 bytes.
type tiny struct{}

func (tiny) fetch(context.Context, *job, int64, string) (*answer, error) {
	return &answer{body: io.NopCloser(bytes.NewReader(make([]byte, 10))), length: 10}, nil
}

func (tiny) progress(context.Context, *job, string) (shares, bool) { return shares{}, false }
func (tiny) close()                                                {}

// The memory for a small file follows its length.
func TestSmallFilesTakeLittleMemory(t *testing.T) {
	const files = 200
	g := New(Config{Settings: config.Dfget{Output: t.TempDir(), Netrc: "none", Progress: "none"}})
	for i := range files {
		g.cfg.URLs = append(g.cfg.URLs, fmt.Sprintf("http://files.test/f%d", i))
	}
	g.source = tiny{}
	jobs, err := g.jobs()
	require.NoError(t, err)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	require.Empty(t, g.download(t.Context(), jobs, nil))
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(files*bufferSize/4))
}
