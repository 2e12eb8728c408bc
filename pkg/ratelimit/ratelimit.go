// Package ratelimit limits flows of bytes to a rate that they share.
//
// In any span of time, a [Limiter] never passes more bytes than its rate allows in that span plus 40 ms, for any number
// of flows, and all flows get equal parts. The rate may change while flows wait. Only bytes that passed count: a flow
// that ends while it waits does not delay the others. A nil or zero Limiter limits nothing. Start at [Limiter.Wait].
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
	// Min is the lowest sensible rate, in bytes per second. Below it, one of forty flows would be idle for so long that
	// its receiver closes the connection.
	Min = 64 << 10
	// quantumMin and quantumMax bound the bytes that pass at once.
	quantumMin = 1 << 10
	quantumMax = 256 << 10
)

// Limiter is a rate that any number of flows share. Each flow passes a quantum, and then waits behind the others. The
// zero value, or nil, is no limit. Safe for concurrent use.
type Limiter struct {
	state atomic.Pointer[state]
	// mu is held to replace state, never while a flow waits.
	mu sync.Mutex
}

// state is a limiter at one rate.
type state struct {
	// turn is held by the one flow that takes from the bucket; the others wait for it in their order. So the bucket has
	// one reservation at most, which can be canceled in full: a bucket cannot cancel a reservation after a later one.
	turn    *semaphore.Weighted
	bucket  *rate.Limiter
	rate    int64
	quantum int
	changed chan struct{} // closed when the rate changes
}

// New returns a limiter with a rate in bytes per second; 0 is no limit.
func New(bytesPerSecond int64) *Limiter {
	l := new(Limiter)
	l.state.Store(newState(bytesPerSecond))
	return l
}

func newState(bytesPerSecond int64) *state {
	if bytesPerSecond <= 0 {
		return nil
	}
	// A burst of two quanta compensates for timers that fire late.
	quantum := int(min(max(bytesPerSecond/50, quantumMin), quantumMax))
	burst := int(max(bytesPerSecond/25, quantumMin))
	return &state{
		turn: semaphore.NewWeighted(1), bucket: rate.NewLimiter(rate.Limit(bytesPerSecond), burst),
		rate: bytesPerSecond, quantum: quantum, changed: make(chan struct{}),
	}
}

// Set changes the rate, in bytes per second, also for waiting flows; 0 is no limit. Unused bytes of the old rate give
// no credit at the new one.
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

// Rate returns the limit in bytes per second, 0 if there is none.
func (l *Limiter) Rate() int64 {
	if s := l.load(); s != nil {
		return s.rate
	}
	return 0
}

// Quantum returns how many bytes a flow should pass at once: the bytes of 20 ms, at most 256 KiB; without a limit,
// [math.MaxInt].
func (l *Limiter) Quantum() int {
	if s := l.load(); s != nil {
		return s.quantum
	}
	return math.MaxInt
}

// Wait returns nil when n bytes may pass. If ctx ends first, it returns the cause, and none of the bytes count.
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

// pass waits until n bytes, a quantum at most, may pass. It returns 0 if the rate changes.
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
		// With the time of the reservation, the bucket gets all its bytes back.
		reserved.CancelAt(now)
		return 0, context.Cause(ctx)
	}
}

// giveBack returns n bytes that passed s to its bucket, up to the burst. It does nothing if the rate has changed.
func (l *Limiter) giveBack(s *state, n int) {
	if s != nil && s == l.load() && n > 0 {
		s.bucket.ReserveN(time.Now(), -min(n, s.bucket.Burst()))
	}
}

// Chain is a list of limits that all apply to the same bytes.
type Chain []*Limiter

// Quantum returns the smallest quantum of the limits.
func (c Chain) Quantum() int {
	n := math.MaxInt
	for _, l := range c {
		n = min(n, l.Quantum())
	}
	return n
}

// Wait returns nil when n bytes may pass every limit. If ctx ends first, it returns the cause, and the bytes count for
// no limit.
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

// Reader returns a reader of r that obeys the limits; its reads end with ctx.
func (c Chain) Reader(ctx context.Context, r io.Reader) io.Reader {
	return &reader{ctx: ctx, r: r, chain: c}
}

type reader struct {
	ctx   context.Context
	r     io.Reader
	chain Chain
}

// Read reads a quantum at most, and returns when the limits let its bytes pass.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), r.chain.Quantum())])
	if waitErr := r.chain.Wait(r.ctx, n); waitErr != nil {
		return 0, waitErr
	}
	return n, err
}
