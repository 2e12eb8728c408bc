package registryproxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/task"
)

func TestWhatIsRememberedIsBoundedAndTheOldestGoesFirst(t *testing.T) {
	var v verdicts
	now := time.Unix(1000, 0)
	id := func(i int) object { return object{endpointBlob, task.ID(fmt.Sprint(i))} }
	who := holder{upstream: "r.test", repository: "app"}
	for i := range verdictsMax {
		v.put(right{holder: who, object: id(i), until: now.Add(time.Minute)})
	}
	_, _, ok := v.get(who, id(0), now) // used, so it is not the oldest any more
	assert.True(t, ok)
	v.put(right{holder: who, object: id(verdictsMax), until: now.Add(time.Minute)})
	assert.Equal(t, verdictsMax, v.recent.Len())
	for i, want := range map[int]bool{0: true, 1: false, 2: true, verdictsMax: true} {
		_, _, ok := v.get(who, id(i), now)
		assert.Equal(t, want, ok, i)
	}
	v.dropHolder(who)
	assert.Zero(t, v.recent.Len())
	assert.Empty(t, v.holders)
}

func FuzzLifeOf(f *testing.F) {
	for _, s := range []string{"", "Bearer a.b.c", "Bearer a.eyJleHAiOjE3MDAwMDAwMDB9.c", "Basic YTpi", "Bearer a.eyJleHAiOjFlMzAwfQ.c", "bearer ..", "Bearer a.eyJleHAiOiJ4In0.c"} {
		f.Add(s, int64(time.Hour))
	}
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, authorization string, longest int64) {
		if longest <= 0 {
			return
		}
		until, end := lifeOf(authorization, now, time.Duration(longest))
		assert.False(t, until.After(now.Add(time.Duration(longest))), "longer than the operator allows")
		if !end.IsZero() {
			assert.False(t, until.After(end), "longer than the token says")
		} else {
			assert.False(t, until.After(now.Add(opaqueLife)))
		}
	})
}
