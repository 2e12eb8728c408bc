// Package lag measures for how long a process does not run: it was stopped, or others took its CPU time. A host that
// did not run must not read its own absence as the silence of others.
//
// The running time of a [Meter] stands still while the process does not run, so a time-out that is measured in it
// never ends because of this host alone. It is right at once when the process goes on, in whatever order its timers
// and goroutines do. Start at [Meter.Now] and [Meter.WithTimeout].
package lag

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// beatEvery is the time between two beats. Shorter finds shorter stalls, and wakes an idle machine more often.
	beatEvery = 25 * time.Millisecond
	// tolerance is by how much a beat may be late on a healthy machine.
	tolerance = 10 * time.Millisecond
	// lateFrom and lateFor say when a host is late: it lost lateFrom within the last lateFor.
	lateFrom = 500 * time.Millisecond
	lateFor  = 10 * time.Second
	// logPause is the least time between two log lines.
	logPause = 10 * time.Second
)

// Config holds the parts of a Meter. The zero value is good.
type Config struct {
	// Wait sleeps for d, or until ctx ends. A simulation passes a function that is late when its host is. Default: a
	// timer.
	Wait func(ctx context.Context, d time.Duration)
	// Logger receives a line when the host becomes late, and one when it is late no longer; nil discards them.
	Logger *slog.Logger
}

// Meter measures one process. A nil Meter is of a process that always runs. Safe for concurrent use.
type Meter struct {
	cfg Config
	// mu is held to read or change the fields below, never while anything waits.
	mu sync.Mutex
	// due is when the next beat is due, zero before Run and after it.
	due time.Time
	// lost is the sum of all stalls that ended.
	lost time.Duration
	// slots hold what was lost in each tenth of lateFor; slot is the number of the newest.
	slots [10]time.Duration
	slot  int64
	begun time.Time
	// woke is when the last stall of lateFrom or more ended.
	woke time.Time
	// late is what the log said last, at logged; logs has the line that is on its way, and logging says that one is.
	late    bool
	logged  time.Time
	logs    sync.WaitGroup
	logging bool
}

// New returns a Meter; it measures while Run runs.
func New(cfg Config) *Meter {
	if cfg.Wait == nil {
		cfg.Wait = wait
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Meter{cfg: cfg, begun: time.Now()}
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Run measures until ctx ends; it returns nil.
func (m *Meter) Run(ctx context.Context) error {
	m.mu.Lock()
	m.due = time.Now().Add(beatEvery)
	m.mu.Unlock()
	for ctx.Err() == nil {
		m.cfg.Wait(ctx, beatEvery)
		m.beat(time.Now())
	}
	m.mu.Lock()
	m.due = time.Time{}
	m.mu.Unlock()
	m.logs.Wait()
	return nil
}

// beat ends the wait for one beat.
func (m *Meter) beat(now time.Time) {
	m.mu.Lock()
	stall := m.stall(now)
	m.lost += stall
	m.advance(now)
	m.slots[m.slot%int64(len(m.slots))] += stall
	m.due = now.Add(beatEvery)
	if stall >= lateFrom {
		m.woke = now
	}
	late, lost := m.recent(now) >= lateFrom, m.lost
	tells := late != m.late && !m.logging && now.Sub(m.logged) >= logPause
	if tells {
		m.late, m.logged, m.logging = late, now, true
	}
	m.mu.Unlock()
	if tells {
		m.logs.Go(func() { // a log that blocks must not look like a stall
			m.log(late, stall, lost)
			m.mu.Lock()
			defer m.mu.Unlock()
			m.logging = false
		})
	}
}

func (m *Meter) log(late bool, stall, lost time.Duration) {
	if late {
		m.cfg.Logger.Warn("this host's own timers come late, so it waits longer for other hosts and takes no lead: "+
			"the process was stopped, or lacks CPU time", "late", stall.Round(time.Millisecond), "total",
			lost.Round(time.Millisecond))
		return
	}
	m.cfg.Logger.Info("this host's own timers come in time again", "total", lost.Round(time.Millisecond))
}

// stall is by how much the beat that is due is late. mu is held.
func (m *Meter) stall(now time.Time) time.Duration {
	if m.due.IsZero() {
		return 0
	}
	return max(0, now.Sub(m.due)-tolerance)
}

// advance clears the slots that are over. mu is held.
func (m *Meter) advance(now time.Time) {
	n := int64(len(m.slots))
	slot := int64(now.Sub(m.begun) / (lateFor / time.Duration(n)))
	for s := max(m.slot+1, slot-n+1); s <= slot; s++ {
		m.slots[s%n] = 0
	}
	m.slot = max(m.slot, slot)
}

// recent is what was lost within lateFor. mu is held.
func (m *Meter) recent(now time.Time) (sum time.Duration) {
	m.advance(now)
	for _, s := range m.slots {
		sum += s
	}
	return sum + m.stall(now)
}

// Lost returns for how long the process did not run since Run began.
func (m *Meter) Lost() time.Duration {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost + m.stall(time.Now())
}

// Now returns the running time: the time without what the process lost. Compare it only with other results of the same
// Meter.
func (m *Meter) Now() time.Time {
	if m == nil {
		return time.Now()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	return now.Add(-m.lost - m.stall(now))
}

// Late reports whether the process lost half a second or more within the last ten: its view of other hosts is worth
// less than theirs of each other.
func (m *Meter) Late() bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.recent(time.Now()) >= lateFrom
}

// wokeFor is how long requests can be old that a process finds when it goes on.
const wokeFor = time.Second

// Woke reports whether the process goes on after a stall of half a second or more since a moment: requests that it
// finds now may be old.
func (m *Meter) Woke() bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	return m.stall(now) >= lateFrom || !m.woke.IsZero() && now.Sub(m.woke) < wokeFor
}

// After calls f in a goroutine of its own once d of running time has passed. stop prevents it; true: it did.
func (m *Meter) After(d time.Duration, f func()) (stop func() bool) {
	if m == nil {
		return time.AfterFunc(d, f).Stop
	}
	t := &timer{m: m, at: m.Now().Add(d), f: f}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t = time.AfterFunc(d, t.fire)
	return t.stop
}

// timer is a timer of running time.
type timer struct {
	m  *Meter
	at time.Time
	f  func()
	// mu is held to set t or ended.
	mu    sync.Mutex
	t     *time.Timer
	ended bool
}

func (t *timer) fire() {
	t.mu.Lock()
	if t.ended {
		t.mu.Unlock()
		return
	}
	if rest := t.at.Sub(t.m.Now()); rest > 0 {
		t.t = time.AfterFunc(max(rest, beatEvery), t.fire)
		t.mu.Unlock()
		return
	}
	t.ended = true
	t.mu.Unlock()
	t.f()
}

func (t *timer) stop() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.ended = true
	t.t.Stop()
	return true
}

// WithTimeout is [context.WithTimeoutCause] in running time. The context's own error is then [context.Canceled], its
// cause is cause, or [context.DeadlineExceeded] for nil.
func (m *Meter) WithTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if cause == nil {
		cause = context.DeadlineExceeded
	}
	if m == nil {
		return context.WithTimeoutCause(ctx, d, cause)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := m.After(d, func() { cancel(cause) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
