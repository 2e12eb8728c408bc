package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reservePart is how much memory is given back at once: a large page, in bytes.
	reservePart = 2 << 20
	// reserveAhead is how much of it stays free for the next user, in bytes.
	reserveAhead = 64 << 20
	// reserveEvery is how often it is looked how much is free.
	reserveEvery = 2 * time.Millisecond
)

// reserve is memory that this process holds and gives back as fast as others take memory.
//
// On a virtual machine whose hypervisor takes free memory back, the first use of a page costs
// seven times what any later use does: 1.2 CPU-s/GiB of written files instead of 0.17, and the
// one or the other by chance. The memory that the reserve gives back was in use a moment ago, so that
// every measured process finds the same memory, that of a machine of one's own.
type reserve struct {
	memory []byte
	done   chan struct{}
	ended  sync.WaitGroup
	// mu is held to look at the fields below and to give memory back.
	mu    sync.Mutex
	given int
	level int64 // what was free when it began
}

// newReserve holds n bytes of memory, or nothing where that is more than half of what is free.
func newReserve(n int64) (*reserve, error) {
	r := &reserve{done: make(chan struct{})}
	free, err := freeMemory()
	if err != nil {
		return nil, err
	}
	if n += reserveAhead; n > free/2 {
		return r, nil
	}
	n = (n + reservePart - 1) / reservePart * reservePart
	if r.memory, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return nil, fmt.Errorf("holding %d bytes of memory: %w", n, err)
	}
	// Without large pages it only takes longer.
	_ = unix.Madvise(r.memory, unix.MADV_HUGEPAGE)
	for i := 0; i < len(r.memory); i += 4 << 10 {
		r.memory[i] = 1
	}
	if r.level, err = freeMemory(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.give(reserveAhead)
	r.ended.Go(r.run)
	return r, nil
}

// run gives back until close.
func (r *reserve) run() {
	tick := time.NewTicker(reserveEvery)
	defer tick.Stop()
	for more := true; more; {
		select {
		case <-tick.C:
		case <-r.done:
			return
		}
		free, err := freeMemory()
		if err != nil {
			return // nothing is measured wrongly, only less repeatably
		}
		r.mu.Lock()
		r.give(r.level + reserveAhead - free)
		more = r.given < len(r.memory)
		r.mu.Unlock()
	}
}

// give gives back the next n bytes. The caller holds mu.
func (r *reserve) give(n int64) {
	if n <= 0 {
		return
	}
	to := r.given + int(min(int64(len(r.memory)-r.given), (n+reservePart-1)/reservePart*reservePart))
	if unix.Madvise(r.memory[r.given:to], unix.MADV_DONTNEED) == nil {
		r.given = to
	}
}

// close gives back what is left.
func (r *reserve) close() error {
	close(r.done)
	r.ended.Wait()
	if r.memory == nil {
		return nil
	}
	return unix.Munmap(r.memory)
}

// freeMemory returns the memory that no process and no file cache uses, in bytes.
func freeMemory() (int64, error) {
	var i unix.Sysinfo_t
	if err := unix.Sysinfo(&i); err != nil {
		return 0, fmt.Errorf("asking for free memory: %w", err)
	}
	return int64(i.Freeram) * int64(i.Unit), nil
}
