package access

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/task"
)

func TestGrantsAreBoundedAndTheOldestGoesFirst(t *testing.T) {
	v := newGrants()
	now := time.Unix(1000, 0)
	id := func(i int) object { return object{task.Blob, task.ID(fmt.Sprint(i))} }
	who := subject{upstream: "r.test", repository: "app"}
	for i := range grantsMax {
		v.put(Grant{subject: who, object: id(i), until: now.Add(time.Minute)})
	}
	_, _, ok := v.get(who, id(0), now) // used, so it is not the oldest any more
	assert.True(t, ok)
	v.put(Grant{subject: who, object: id(grantsMax), until: now.Add(time.Minute)})
	assert.Equal(t, grantsMax, v.recent.Len())
	for i, want := range map[int]bool{0: true, 1: false, 2: true, grantsMax: true} {
		_, _, ok := v.get(who, id(i), now)
		assert.Equal(t, want, ok, i)
	}
	v.dropSubject(who)
	assert.Zero(t, v.recent.Len())
	assert.Empty(t, v.objects)
}

func FuzzLifetime(f *testing.F) {
	for _, s := range []string{"", "Bearer a.b.c", "Bearer a.eyJleHAiOjE3MDAwMDAwMDB9.c", "Basic YTpi",
		"Bearer a.eyJleHAiOjFlMzAwfQ.c", "bearer ..", "Bearer a.eyJleHAiOiJ4In0.c"} {
		f.Add(s, int64(time.Hour))
	}
	now := time.Unix(1_700_000_000, 0)
	f.Fuzz(func(t *testing.T, authorization string, longest int64) {
		if longest <= 0 {
			return
		}
		until, end := lifetime(authorization, now, time.Time{}, time.Duration(longest))
		assert.False(t, until.After(now.Add(time.Duration(longest))), "longer than the operator allows")
		if !end.IsZero() {
			assert.False(t, until.After(end), "longer than the token lives")
		} else {
			assert.False(t, until.After(now.Add(opaqueLife)))
		}
	})
}

// claims makes an unsigned bearer token.
func claims(json string) string {
	return "Bearer e30." + base64.RawURLEncoding.EncodeToString([]byte(json)) + ".c2ln"
}

func TestAWrongClockExtendsNoGrant(t *testing.T) {
	const day = 24 * time.Hour
	registry := time.Unix(1_700_000_000, 0)
	exp := registry.Add(5 * time.Minute).Unix()
	both := claims(fmt.Sprintf(`{"iat":%d,"exp":%d}`, registry.Unix(), exp))
	half := claims(fmt.Sprintf(`{"iat":%d,"exp":%d}`, registry.Add(-5*time.Minute).Unix(), exp))
	notBefore := claims(fmt.Sprintf(`{"nbf":%d,"exp":%d}`, registry.Unix(), exp))
	only := claims(fmt.Sprintf(`{"exp":%d}`, exp))
	odd := claims(fmt.Sprintf(`{"iat":"yesterday","exp":%d}`, exp))
	for _, c := range []struct {
		name, token string
		off         time.Duration // of this node's clock from the registry's
		said        time.Time
		longest     time.Duration
		until, end  time.Duration // from the answer
	}{
		{"right clocks", both, 0, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"three days behind", both, -3 * day, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"three days ahead", both, 3 * day, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"a token that was used before", half, -3 * day, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"a short policy", both, -3 * day, registry, time.Minute, time.Minute, 5 * time.Minute},
		{"behind, and no Date", both, -3 * day, time.Time{}, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"behind, and no Date nor iat", notBefore, -3 * day, time.Time{}, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"behind, and no iat", only, -3 * day, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"behind, and a senseless iat", odd, -3 * day, registry, time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"ahead, and no Date", both, 3 * day, time.Time{}, time.Hour, 0, 0},
		{"a Date of long ago", both, 0, registry.Add(-30 * day), time.Hour, 5 * time.Minute, 5 * time.Minute},
		{"a Date of the future", both, 0, registry.Add(30 * day), time.Hour, 0, 0},
		{"an end before its beginning", claims(fmt.Sprintf(`{"iat":%d,"exp":%d}`, exp+60, exp)), 0, registry,
			time.Hour, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := registry.Add(c.off)
			until, end := lifetime(c.token, now, c.said, c.longest)
			assert.Equal(t, c.until, until.Sub(now))
			assert.Equal(t, c.end, end.Sub(now))
		})
	}
}

func TestAGrantEndsByTheEarlierClock(t *testing.T) {
	began := time.Now() // has a monotonic reading; Round(0) takes it off
	until := began.Add(time.Minute)
	assert.False(t, past(began.Add(time.Minute-1), until))
	assert.True(t, past(began.Add(time.Minute), until))
	assert.True(t, past(began.Round(0).Add(time.Hour), until), "the machine slept: only the wall's clock went on")
	assert.True(t, past(time.Now().Add(time.Hour), until))
	assert.False(t, past(began.Round(0).Add(-72*time.Hour), began.Round(0)),
		"without a monotonic reading the wall's clock is all there is")
}
