package bench_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/bench"
	"github.com/darter-io/darter/test/results"
)

func TestAPromiseStandsAsItsWorstScenario(t *testing.T) {
	p := bench.Promise{Metric: "time", Of: []string{"a", "b", "c"}, Labels: []string{"a", "b", "c"}}
	figure := func(scenario string, v float64) results.Result {
		return results.Median(scenario, "time", []float64{v}, "seconds").AtMost(1)
	}
	told := results.Median("b", "time", []float64{5}, "seconds")
	for _, c := range []struct {
		measured []results.Result
		want     bench.State
		figures  int
	}{
		{nil, bench.NotMeasured, 0},
		{[]results.Result{figure("x", 2)}, bench.NotMeasured, 0},
		{[]results.Result{figure("a", 1)}, bench.Kept, 1},
		{[]results.Result{figure("a", 1), figure("c", 1.1), figure("b", 0.5)}, bench.Missed, 3},
		{[]results.Result{told}, bench.Told, 1},
	} {
		figures, s := p.Stands(c.measured)
		assert.Equal(t, c.want, s)
		require.Len(t, figures, 3)
		n := 0
		for _, f := range figures {
			if f != nil {
				n++
			}
		}
		assert.Equal(t, c.figures, n)
	}
}

// This test checks the names of the scenarios in virtual time and with discrete events; test/bench/machine checks its
// own.
func TestPromisesNameScenariosThatThereAre(t *testing.T) {
	names := map[string]bool{}
	for _, s := range bench.Scenarios() {
		names[s.Name] = true
	}
	for _, s := range bench.Thousands() {
		names[s.Name] = true
	}
	elsewhere := []string{"links/", "layer/", "cpu/", "memory/", "scheduler/", "warm/"}
	for _, p := range bench.Promises() {
		assert.Equal(t, len(p.Of), len(p.Labels), p.What)
		for _, s := range p.Of {
			ours := true
			for _, prefix := range elsewhere {
				ours = ours && !strings.HasPrefix(s, prefix)
			}
			assert.True(t, !ours || names[s], s)
		}
	}
}

func TestAPromiseIsPrintedWithItsTargetAndState(t *testing.T) {
	f := results.New()
	f.Add(
		results.Median("flash-crowd/seed-4x/8", "makespan_over_bound", []float64{1.0149}, "ratio").AtMost(1.08),
		results.Median("flash-crowd/seed-4x/32", "makespan_over_bound", []float64{1.1}, "ratio").AtMost(1.08),
	)
	var b strings.Builder
	require.NoError(t, bench.PrintPromises(&b, f))
	lines := strings.Split(b.String(), "\n")
	assert.Regexp(t,
		`^time over bound, all at once, seed 4× +8: 1\.015  32: 1\.1  128: –  512: – +≤ 1\.08 +MISSED$`, lines[1])
	assert.Regexp(t, `^… seed 1× .* not measured$`, lines[2])
	assert.Contains(t, b.String(), "0 kept, 1 missed")
}
