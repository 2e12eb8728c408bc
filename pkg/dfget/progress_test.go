package dfget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestTheTimeLeftIsToldOnlyWhereItMeansSomething(t *testing.T) {
	for name, c := range map[string]struct {
		length, done int64
		rate         float64
		left         time.Duration
	}{
		"half is there":           {2000, 1000, 100, 10 * time.Second},
		"all is there":            {2000, 2000, 100, 0},
		"nobody knows the length": {-1, 1000, 100, -1},
		"nothing has come":        {2000, 0, 0, -1},
		"it has stood still":      {20e9, 1e9, 1000, -1},
		"it is slow, but it ends": {86400, 0, 1, 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.left, state{length: c.length, done: c.done, rate: c.rate}.eta())
		})
	}
}
