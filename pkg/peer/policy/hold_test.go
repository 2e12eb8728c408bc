package policy

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// TestHold looks every second, as a mirror does, and compares when the client is refused.
func TestHold(t *testing.T) {
	upTo := func(end int, s func(second int) Signs) func(int) Signs {
		return func(second int) Signs { return s(min(second, end)) }
	}
	moving := func(second int) Signs { return Signs{Moved: int64(second)} }
	for name, c := range map[string]struct {
		signs func(second int) Signs
		want  int
	}{
		"nothing happens":              {func(int) Signs { return Signs{} }, 10},
		"bytes move for 25 s":          {upTo(25, moving), 35},
		"bytes move for ever":          {moving, 300},
		"the origin is slow":           {func(int) Signs { return Signs{Asking: true} }, 109},
		"the origin refuses after 5 s": {func(second int) Signs { return Signs{Asking: second < 5} }, 14},
		"the origin sends after 60 s": {func(second int) Signs {
			return Signs{Asking: true, Moved: int64(min(max(0, second-60), 100))}
		}, 170},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := HoldConfig{Silence: 10 * time.Second, Origin: 100 * time.Second, Most: 300 * time.Second}
			h := NewHold(cfg, begin, c.signs(0))
			for second := 1; ; second++ {
				now := begin.Add(time.Duration(second) * time.Second)
				if !now.Before(h.Until(now, c.signs(second))) {
					assert.Equal(t, c.want, second)
					return
				}
			}
		})
	}
}
