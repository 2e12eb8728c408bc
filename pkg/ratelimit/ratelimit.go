// Package ratelimit holds flows of bytes to a rate that they share.
//
// In any span of time a [Limiter] lets pass what its rate allows in that span and at most
// 40 ms of it on top, however many flows there are, and each flow gets as much as the next.
// The rate may change while flows wait. Nothing is counted that was not let pass: a flow that
// ends while it waits leaves the others as if it had never come. A nil or zero Limiter limits
// nothing. Start at [Limiter.Wait].
package ratelimit

import (
	"context"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
)

const (
	// Min is the lowest sensible rate, in bytes per second: below it a flow among forty
	// would be silent for so long that its other side takes it for dead.
	Min = 64 << 10
	// quantumMin and quantumMax bound what passes in one go, in bytes.
	quantumMin = 1 << 10
	quantumMax = 256 << 10
)

// Limiter is a rate that any number of flows share: each passes a quantum and then waits
// behind the others. Its zero value, or nil, is no limit. Safe for concurrent use.
type Limiter struct {
	state atomic.Pointer[state]
	// mu is held to replace state, never while a flow waits.
	mu sync.Mutex
}

// state is a limiter at one rate.
type state struct {
	// turn is held by the one flow that takes from the bucket; the others queue for it in the
	// order they came. So the bucket owes nothing to a flow that only queues, and what it owes
	// to the one that leaves can be taken back in full: a bucket cannot take back a
	// reservation behind which it has made others.
	turn    *semaphore.Weighted
	bucket  *rate.Limiter
	rate    int64
	quantum int
	changed chan struct{} // closes when another rate is in force
}

// New returns a limiter of so many bytes per second; 0 is no limit.
func New(bytesPerSecond int64) *Limiter {
	l := new(Limiter)
	l.state.Store(newState(bytesPerSecond))
	return l
}

func newState(bytesPerSecond int64) *state {
	if bytesPerSecond <= 0 {
		return nil
	}
	// Twice a quantum in the bucket hides that timers wake late.
	quantum := int(min(max(bytesPerSecond/50, quantumMin), quantumMax))
	burst := int(max(bytesPerSecond/25, quantumMin))
	return &state{
		turn: semaphore.NewWeighted(1), bucket: rate.NewLimiter(rate.Limit(bytesPerSecond), burst),
		rate: bytesPerSecond, quantum: quantum, changed: make(chan struct{}),
	}
}

// Set changes the rate, in bytes per second, also for those who wait already; 0 is no
// limit. What passed at the old rate gives no credit at the new one.
func (l *Limiter) Set(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.state.Load()
	if l.Rate() == max(0, bytesPerSecond) {
		return
	}
	next := newState(bytesPerSecond)
	if next != nil {
		next.bucket.AllowN(time.Now(), next.bucket.Burst())
	}
	l.state.Store(next)
	if old != nil {
		close(old.changed)
	}
}

func (l *Limiter) load() *state {
	if l == nil {
		return nil
	}
	return l.state.Load()
}

// Rate is the limit in bytes per second, 0 where there is none.
func (l *Limiter) Rate() int64 {
	if s := l.load(); s != nil {
		return s.rate
	}
	return 0
}

// Quantum is how many bytes a flow should pass at once: those of 20 ms, at most 256 KiB, and
// any number where there is no limit.
func (l *Limiter) Quantum() int {
	if s := l.load(); s != nil {
		return s.quantum
	}
	return math.MaxInt
}

// Wait returns when n bytes may pass, or with the cause of the end of ctx; then none of them
// count.
func (l *Limiter) Wait(ctx context.Context, n int) error {
	first, left := l.load(), n
	for left > 0 {
		s := l.load()
		if s == nil {
			return nil
		}
		passed, err := s.pass(ctx, min(left, s.quantum))
		if err != nil {
			l.giveBack(first, n-left)
			return err
		}
		left -= passed
	}
	return nil
}

// pass returns when n bytes, a quantum at most, may pass, or returns 0 when another rate is in
// force.
func (s *state) pass(ctx context.Context, n int) (int, error) {
	if s.turn.Acquire(ctx, 1) != nil {
		return 0, context.Cause(ctx)
	}
	defer s.turn.Release(1)
	select {
	case <-s.changed:
		return 0, nil
	default:
	}
	now := time.Now()
	reserved := s.bucket.ReserveN(now, n)
	pause := reserved.DelayFrom(now)
	if pause <= 0 {
		return n, nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return n, nil
	case <-s.changed:
		return 0, nil
	case <-ctx.Done():
		// As of then, so that it counts as if it had not been made.
		reserved.CancelAt(now)
		return 0, context.Cause(ctx)
	}
}

// giveBack takes it that n bytes that s let pass do not: they may pass again, as far as the bucket
// holds them. What passed at the old rate gives no credit at the new one.
func (l *Limiter) giveBack(s *state, n int) {
	if s != nil && s == l.load() && n > 0 {
		s.bucket.ReserveN(time.Now(), -min(n, s.bucket.Burst()))
	}
}

// Chain is limits that all hold for the same bytes.
type Chain []*Limiter

// Quantum is the smallest quantum of the limits.
func (c Chain) Quantum() int {
	n := math.MaxInt
	for _, l := range c {
		n = min(n, l.Quantum())
	}
	return n
}

// Wait returns when n bytes may pass under every limit, or with the cause of the end of ctx; then
// none of them count under any.
func (c Chain) Wait(ctx context.Context, n int) error {
	if len(c) == 0 {
		return nil
	}
	first := c[0].load()
	if err := c[0].Wait(ctx, n); err != nil {
		return err
	}
	if err := c[1:].Wait(ctx, n); err != nil {
		c[0].giveBack(first, n)
		return err
	}
	return nil
}

// Reader returns a reader of r that is held to the limits; its reads end with ctx.
func (c Chain) Reader(ctx context.Context, r io.Reader) io.Reader {
	return &reader{ctx: ctx, r: r, chain: c}
}

type reader struct {
	ctx   context.Context
	r     io.Reader
	chain Chain
}

// Read takes no more than a quantum at once, and returns it when it may have passed.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), r.chain.Quantum())])
	if waitErr := r.chain.Wait(r.ctx, n); waitErr != nil {
		return 0, waitErr
	}
	return n, err
}
