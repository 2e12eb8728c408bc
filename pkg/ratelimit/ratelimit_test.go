package ratelimit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/race"
)

const mbit10 = 10_000_000 / 8

// passed holds how many bytes passed a limiter, and when.
type passed struct {
	at time.Duration
	n  int
}

// most is the largest sum in any window of that length.
func most(log []passed, window time.Duration) (sum int) {
	first, now := 0, 0
	for _, p := range log {
		now += p.n
		for log[first].at <= p.at-window {
			now -= log[first].n
			first++
		}
		sum = max(sum, now)
	}
	return sum
}

// flows runs count flows at full speed for a span of time, and returns each one's bytes.
func flows(t *testing.T, c Chain, count int, span time.Duration) (log []passed, each []int) {
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	begun := time.Now()
	each = make([]int, count)
	events := make(chan passed)
	var g errgroup.Group
	for i := range count {
		g.Go(func() error {
			for {
				n := min(c.Quantum(), 4<<20)
				if c.Wait(ctx, n) != nil {
					return nil
				}
				each[i] += n
				events <- passed{time.Since(begun), n}
			}
		})
	}
	go func() {
		_ = g.Wait()
		close(events)
	}()
	for p := range events {
		log = append(log, p)
	}
	return log, each
}

// No window of time holds more than the rate and one burst, and none holds much less.
func TestNoWindowExceedsRateAndBurst(t *testing.T) {
	for _, rate := range []int64{Min, mbit10, 100 << 20, 3 << 30} {
		for _, count := range []int{1, 5, 40} {
			synctest.Test(t, func(t *testing.T) {
				const span = 10 * time.Second / race.Divisor
				log, each := flows(t, Chain{New(rate)}, count, span)
				burst := float64(rate)/25 + 1
				for _, window := range []time.Duration{time.Millisecond, 100 * time.Millisecond, 3 * time.Second} {
					assert.LessOrEqual(t, float64(most(log, window)), float64(rate)*window.Seconds()+burst,
						"%d flows at %d in %s", count, rate, window)
				}
				sum := 0
				for _, n := range each {
					sum += n
				}
				assert.GreaterOrEqual(t, float64(sum), 0.95*float64(rate)*span.Seconds(), "%d flows at %d", count, rate)
				for _, n := range each {
					assert.InDelta(t, float64(sum)/float64(count), float64(n), 3*float64(New(rate).Quantum())+burst,
						"a flow's share of %d at %d", count, rate)
				}
			})
		}
	}
}

func TestTheTighterOfTwoLimitsHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wide, narrow := New(10*mbit10), New(mbit10)
		_, each := flows(t, Chain{wide, narrow}, 1, 10*time.Second)
		assert.InEpsilon(t, 10*mbit10, each[0], 0.05)
		_, each = flows(t, Chain{New(mbit10), New(mbit10)}, 1, 10*time.Second)
		assert.InEpsilon(t, 10*mbit10, each[0], 0.05, "two equal ones cost no more than one")
	})
}

func TestAChangedRateHoldsAtOnceForThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(Min)
		begun := time.Now()
		done := make(chan time.Duration)
		go func() {
			_ = l.Wait(context.Background(), 10*Min) // 10 s at this rate
			done <- time.Since(begun)
		}()
		time.Sleep(time.Second)
		l.Set(9 * Min)
		assert.InDelta(t, 2*time.Second, <-done, float64(100*time.Millisecond))
		go func() {
			_ = l.Wait(context.Background(), 100*Min)
			done <- time.Since(begun)
		}()
		synctest.Wait()
		before := time.Since(begun)
		l.Set(0)
		assert.Equal(t, before, <-done, "no limit is no wait")
		assert.Zero(t, l.Rate())
		assert.Equal(t, math.MaxInt, l.Quantum())
	})
}

func TestChangingTheRateBackAndForthLetsNothingSlip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const part = 1 << 10
		l := New(mbit10)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var g errgroup.Group
		// There is no limit for a moment, in which the flow may go round as often as the scheduler
		// lets it: changing is held over that moment, so that it counts one part.
		var changing sync.Mutex
		g.Go(func() error {
			for i := int64(1); ctx.Err() == nil; i++ {
				time.Sleep(100 * time.Millisecond)
				changing.Lock()
				l.Set(mbit10 * (i % 2))
				l.Set(mbit10 + i%2)
				changing.Unlock()
			}
			return nil
		})
		sum := 0
		for l.Wait(ctx, part) == nil {
			changing.Lock()
			sum += part
			changing.Unlock()
		}
		assert.LessOrEqual(t, float64(sum), 5*mbit10*1.01)
		assert.GreaterOrEqual(t, float64(sum), 5*mbit10*0.5)
		_ = g.Wait()
	})
}

// await starts flows that each wait to pass n bytes, and returns a function that ends them all.
func await(t *testing.T, c Chain, count, n int) (leave func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var gone errgroup.Group
	passed := errors.New("it passed")
	for range count {
		gone.Go(func() error {
			if c.Wait(ctx, n) == nil {
				return passed
			}
			return nil
		})
	}
	synctest.Wait()
	return func() {
		cancel()
		require.NoError(t, gone.Wait(), "flows that are to leave")
	}
}

func TestAFlowThatLeavesTakesNothingAlong(t *testing.T) {
	const rate, part = 100 << 10, 2 << 10
	t.Run("of 200 that leave the next one notices nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(rate)
			require.NoError(t, l.Wait(t.Context(), 2*part)) // the burst
			await(t, Chain{l}, 200, part)()
			_, each := flows(t, Chain{l}, 1, time.Second)
			assert.InEpsilon(t, rate, each[0], 0.05)
		})
	})
	t.Run("those who stay get what the others leave", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(rate)
			require.NoError(t, l.Wait(t.Context(), 2*part))
			leave := await(t, Chain{l}, 20, rate)
			done := make(chan []int)
			go func() {
				_, each := flows(t, Chain{l}, 4, 2*time.Second)
				done <- each
			}()
			time.Sleep(time.Second)
			leave()
			for _, n := range <-done {
				// A twenty-fourth while the twenty wait, too, then a quarter.
				assert.InDelta(t, rate/24+rate/4, n, 3*part)
			}
		})
	})
	t.Run("the one in front leaves like the others", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(rate)
			require.NoError(t, l.Wait(t.Context(), 2*part))
			for range 100 {
				await(t, Chain{l}, 1, part)()
			}
			_, each := flows(t, Chain{l}, 1, time.Second)
			assert.InEpsilon(t, rate, each[0], 0.05)
		})
	})
	t.Run("what it had passed of another limit comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			shared, own := New(rate), New(Min)
			require.NoError(t, own.Wait(t.Context(), int(Min)))
			await(t, Chain{shared, own}, 4, 1<<10)()
			begun := time.Now()
			require.NoError(t, shared.Wait(t.Context(), 2*part), "all of the burst")
			assert.Zero(t, time.Since(begun))
		})
	})
	t.Run("what had passed of a wait that fails comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(rate)
			leave := await(t, Chain{l}, 1, 10*rate)
			time.Sleep(time.Second)
			leave()
			begun := time.Now()
			require.NoError(t, l.Wait(t.Context(), 2*part))
			assert.Zero(t, time.Since(begun))
		})
	})
	t.Run("at another rate it is no credit", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(rate)
			leave := await(t, Chain{l}, 1, 10*rate)
			time.Sleep(time.Second)
			l.Set(rate + 1)
			leave()
			begun := time.Now()
			require.NoError(t, l.Wait(t.Context(), 2*part))
			assert.InEpsilon(t, 40*time.Millisecond, time.Since(begun), 0.05)
		})
	})
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		begun := time.Now()
		require.ErrorIs(t, New(Min).Wait(ctx, 100*Min), why)
		assert.Equal(t, time.Second, time.Since(begun))
	})
}

func TestNoLimiterLimitsNothing(t *testing.T) {
	var none *Limiter
	for _, l := range []*Limiter{none, new(Limiter), New(0), New(-1)} {
		require.NoError(t, l.Wait(t.Context(), math.MaxInt))
		assert.Zero(t, l.Rate())
	}
	assert.Equal(t, math.MaxInt, Chain{none}.Quantum())
}

// They arrive in the time that the rate allows.
func TestALimitedReaderGivesTheSameBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := bytes.Repeat([]byte("darter"), mbit10/3) // 2 s
		begun := time.Now()
		got, err := io.ReadAll(Chain{New(mbit10)}.Reader(t.Context(), bytes.NewReader(content)))
		require.NoError(t, err)
		assert.Equal(t, content, got)
		assert.InEpsilon(t, 2*time.Second, time.Since(begun), 0.05)
	})
}

func TestWaitingCostsNoMemoryWhereThereIsNoLimit(t *testing.T) {
	c := Chain{new(Limiter), nil}
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if c.Wait(context.Background(), c.Quantum()) != nil {
			t.Fail()
		}
	}))
}
