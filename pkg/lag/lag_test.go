package lag

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine stops and goes on.
type machine struct {
	// mu is held to set or read until.
	mu    sync.Mutex
	until time.Time
}

// stop stops the process for d: its beats come late.
func (s *machine) stop(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until = time.Now().Add(d)
}

// rest is for how long the process is still stopped.
func (s *machine) rest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Until(s.until)
}

func (s *machine) wait(ctx context.Context, d time.Duration) {
	wait(ctx, d)
	for rest := s.rest(); rest > 0 && ctx.Err() == nil; rest = s.rest() {
		wait(ctx, rest)
	}
}

// on runs a test with a Meter on a machine that can stop.
func on(t *testing.T, test func(t *testing.T, m *Meter, s *machine)) (log string) {
	var lines bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		s := &machine{}
		m := New(Config{Wait: s.wait, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = m.Run(ctx); close(done) }()
		time.Sleep(time.Second)
		test(t, m, s)
		end()
		<-done
	})
	return lines.String()
}

func TestRunningTimeStandsStillInAStall(t *testing.T) {
	log := on(t, func(t *testing.T, m *Meter, s *machine) {
		assert.Zero(t, m.Lost())
		assert.False(t, m.Late())
		before := m.Now()
		s.stop(5 * time.Second)
		time.Sleep(4 * time.Second)
		assert.Less(t, m.Now().Sub(before), 50*time.Millisecond, "also before the next beat")
		assert.True(t, m.Late())
		assert.True(t, m.Woke())
		time.Sleep(1500 * time.Millisecond)
		assert.True(t, m.Woke())
		time.Sleep(500 * time.Millisecond)
		assert.InDelta(t, 5, m.Lost().Seconds(), 0.05)
		assert.InDelta(t, 1, m.Now().Sub(before).Seconds(), 0.05)
		time.Sleep(time.Second)
		assert.True(t, m.Late())
		assert.False(t, m.Woke())
		time.Sleep(lateFor)
		assert.False(t, m.Late())
		assert.InDelta(t, 5, m.Lost().Seconds(), 0.05)
	})
	assert.Equal(t, 1, strings.Count(log, "timers come late"), log)
	assert.Equal(t, 1, strings.Count(log, "in time again"), log)
}

func TestManyShortStallsCountAsOneLongOne(t *testing.T) {
	on(t, func(t *testing.T, m *Meter, s *machine) {
		before := m.Now()
		for range 50 { // it runs for 5 ms of 100
			s.stop(95 * time.Millisecond)
			time.Sleep(100 * time.Millisecond)
		}
		assert.Less(t, m.Now().Sub(before), 2500*time.Millisecond, "of 5 s")
		assert.True(t, m.Late())
		assert.False(t, m.Woke())
	})
}

func TestATimeoutWaitsForTheStallToEnd(t *testing.T) {
	on(t, func(t *testing.T, m *Meter, s *machine) {
		began := time.Now()
		ctx, cancel := m.WithTimeout(t.Context(), time.Second, nil)
		defer cancel()
		s.stop(5 * time.Second)
		<-ctx.Done()
		assert.InDelta(t, 6, time.Since(began).Seconds(), 0.1)
		assert.Equal(t, context.DeadlineExceeded, context.Cause(ctx))

		fired := false
		stop := m.After(time.Second, func() { fired = true })
		assert.True(t, stop())
		assert.False(t, stop())
		time.Sleep(2 * time.Second)
		assert.False(t, fired)
	})
}

func TestAHealthyMachineLosesNothing(t *testing.T) {
	on(t, func(t *testing.T, m *Meter, _ *machine) {
		before, began := m.Now(), time.Now()
		time.Sleep(time.Minute)
		assert.Equal(t, time.Since(began), m.Now().Sub(before))
	})
	var none *Meter
	assert.Zero(t, none.Lost())
	assert.False(t, none.Late())
	assert.WithinDuration(t, time.Now(), none.Now(), time.Minute)
}

// A log that blocks, such as a pipe without a reader, is no stall of this host: its time-outs must go on.
func TestALogThatBlocksStopsNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &machine{}
		unblock := make(chan struct{})
		m := New(Config{Wait: s.wait, Logger: slog.New(slog.NewTextHandler(blocked(unblock), nil))})
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = m.Run(ctx); close(done) }()
		time.Sleep(time.Second)
		s.stop(time.Second)
		time.Sleep(2 * time.Second)
		before := m.Now()
		time.Sleep(time.Minute)
		assert.InDelta(t, 60, m.Now().Sub(before).Seconds(), 0.1)
		assert.InDelta(t, 1, m.Lost().Seconds(), 0.05)
		close(unblock)
		end()
		<-done
	})
}

// blocked is a writer that blocks until the channel is closed.
type blocked chan struct{}

func (b blocked) Write(p []byte) (int, error) { <-b; return len(p), nil }
