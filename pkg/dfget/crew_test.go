package dfget

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
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
