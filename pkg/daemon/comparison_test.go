package daemon

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A later comparison of the same request replaces the former, and none counts longer than its life.
func TestComparisonsRemember(t *testing.T) {
	var c comparisons
	now := time.Unix(1_800_000_000, 0)
	result := func(note string, at time.Time) [2]bool {
		equal, known := c.result(note, at)
		return [2]bool{equal, known}
	}
	assert.Equal(t, [2]bool{false, false}, result("a", now))
	c.add("a", false, now)
	assert.Equal(t, [2]bool{false, true}, result("a", now))
	c.add("a", true, now)
	assert.Equal(t, [2]bool{true, true}, result("a", now.Add(comparisonLife-1)))
	assert.Equal(t, [2]bool{false, false}, result("a", now.Add(comparisonLife)))
	assert.Equal(t, [2]bool{false, false}, result("b", now))
	for i := range 3 * comparisonsMax {
		c.add(strconv.Itoa(i), true, now)
	}
	assert.LessOrEqual(t, len(c.made), comparisonsMax)
}
