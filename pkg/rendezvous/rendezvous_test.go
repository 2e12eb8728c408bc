package rendezvous_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/rendezvous"
)

func members(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("10.0.0.%d:65000", i))
	}
	return list
}

// The order does not depend on the order of the members.
func TestOrderIgnoresInputOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for k := range 100 {
		told := members(1 + r.IntN(20))
		want := rendezvous.Order(fmt.Sprint(k), told)
		r.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
		before := slices.Clone(told)
		assert.Equal(t, want, rendezvous.Order(fmt.Sprint(k), told))
		assert.Equal(t, before, told, "what was told is left as it was")
		assert.ElementsMatch(t, told, want, "every host is in it, once")
	}
	assert.Empty(t, rendezvous.Order("k", nil))
	assert.Equal(t, []string{"a", "a"}, rendezvous.Order("k", []string{"a", "a"}), "duplicates stay")
}

// Releases of one protocol must agree, too: other orders mean two owners for each task.
func TestOrderIsStable(t *testing.T) {
	three := []string{"a:65000", "b:65000", "c:65000"}
	assert.Equal(t, []string{"a:65000", "b:65000", "c:65000"}, rendezvous.Order("sha256:aa", three))
	assert.Equal(t, []string{"a:65000", "c:65000", "b:65000"}, rendezvous.Order("sha256:bb", three))
}

// A member that leaves moves only its own keys.
func TestOrderAfterLeave(t *testing.T) {
	all := members(8)
	for k := range 500 {
		key := fmt.Sprint("task ", k)
		order := rendezvous.Order(key, all)
		for i, gone := range order {
			rest := slices.DeleteFunc(slices.Clone(all), func(m string) bool { return m == gone })
			// The hosts behind it move up one place: its keys go to their second hosts.
			assert.Equal(t, slices.Concat(order[:i], order[i+1:]), rendezvous.Order(key, rest), key)
		}
	}
}

// Each member leads its share and is second for its share.
func TestOrderIsEven(t *testing.T) {
	const keys, n = 20_000, 10
	leads, seconds := map[string]int{}, map[string]int{}
	for k := range keys {
		order := rendezvous.Order(fmt.Sprintf("sha256:%064x", k), members(n))
		leads[order[0]]++
		if order[0] == members(n)[0] {
			seconds[order[1]]++
		}
	}
	// Six standard deviations of a fair draw: a right order never fails, a lopsided one does.
	within := func(got int, draws, chance float64, what string) {
		assert.InDelta(t, draws*chance, float64(got), 6*math.Sqrt(draws*chance*(1-chance)), what)
	}
	for _, m := range members(n) {
		within(leads[m], keys, 1.0/n, m+" leads")
	}
	for _, m := range members(n)[1:] {
		within(seconds[m], float64(leads[members(n)[0]]), 1.0/(n-1), m+" takes over from the first")
	}
}

// A member's name and a key are not confused with another pair.
func TestOrderSeparator(t *testing.T) {
	// Without something between them, "a"+"bc" and "ab"+"c" would weigh the same.
	differ := 0
	for k := range 64 {
		key := fmt.Sprint(k)
		x, y := rendezvous.Order("c"+key, []string{"ab", "zz"}), rendezvous.Order("bc"+key, []string{"a", "zz"})
		if (x[0] == "zz") != (y[0] == "zz") {
			differ++
		}
	}
	assert.Positive(t, differ)
}
