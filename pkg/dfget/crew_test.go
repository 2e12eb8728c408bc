package dfget

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
)

// Small files run more and more at once, and large ones only a few.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrew()
		entered := 0
		more := func() {
			go func() {
				c.enter()
				entered++
			}()
			synctest.Wait()
		}
		for range 50 {
			more()
		}
		assert.Equal(t, parallelMin, entered)
		for left := range 20 {
			c.leave(true)
			synctest.Wait()
			assert.Equal(t, min(parallelMin+left+1, parallelMax)+left+1, entered)
		}
		c.large()
		for range parallelMax - parallelMin {
			c.leave(false)
			synctest.Wait()
		}
		assert.Equal(t, parallelMax+20, entered, "they end before another one begins")
		c.leave(false)
		synctest.Wait()
		assert.Equal(t, parallelMax+21, entered)
		for range 50 - 21 - parallelMax + 3 {
			c.leave(false)
			synctest.Wait()
		}
		assert.Equal(t, 50, entered)
	})
}
