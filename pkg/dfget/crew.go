package dfget

import "sync"

const (
	// parallelMin bounds the concurrent downloads of large files. More of them share the same bandwidth and only delay
	// the first.
	parallelMin = 3
	// parallelMax bounds those of small files, which wait for answers most of the time.
	parallelMax = 16
	// smallMax is the length of a small file, in bytes.
	smallMax = 1 << 20
)

// crew bounds the concurrent downloads of one command: parallelMin at first, one more for each small file that is
// complete, up to parallelMax, and parallelMin again from a large file on.
type crew struct {
	// mu is held to count, never during a download.
	mu               sync.Mutex
	free             sync.Cond
	running, allowed int
}

func newCrew() *crew {
	c := &crew{allowed: parallelMin}
	c.free.L = &c.mu
	return c
}

// enter waits until one more download may run.
func (c *crew) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.running >= c.allowed {
		c.free.Wait()
	}
	c.running++
}

// large notes that a running download is of a large file.
func (c *crew) large() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.allowed = parallelMin
}

// leave ends a download; small is true for a small file that is complete.
func (c *crew) leave(small bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	if small {
		c.allowed = min(c.allowed+1, parallelMax)
	}
	c.free.Broadcast()
}
