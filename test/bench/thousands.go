package bench

import (
	"fmt"
	"time"

	"github.com/darter-io/darter/test/results"
	"github.com/darter-io/darter/test/sim"
)

// Thousand is one crowd of thousands of nodes, simulated with discrete events.
type Thousand struct {
	Name string
	sim.Crowd
	// Target of the makespan over the bound.
	Target float64
	// Quick is true if it takes a few seconds.
	Quick bool
}

// Report converts an outcome to figures.
func (s Thousand) Report(o sim.Outcome) []results.Result {
	one := func(metric string, v float64, unit string) results.Result {
		return results.Median(s.Name, metric, []float64{v}, unit)
	}
	pieces := float64(s.N * s.K)
	return []results.Result{
		one("makespan_over_bound", s.Ratio(o), "ratio").AtMost(s.Target),
		one("median_over_bound", float64(o.Took[len(o.Took)/2])/float64(s.Bound().Makespan()), "ratio"),
		one("seed_copies", o.SeedCopies, "contents").AtMost(2.1),
		one("wasted", float64(o.Wasted)/pieces, "ratio"),
		one("busy_per_piece", float64(o.Busy)/pieces, "ratio"),
	}
}

// Thousands lists all such crowds.
func Thousands() (all []Thousand) {
	for _, n := range []int{200, 1000, 5000, 10000} {
		crowd := sim.Crowd{N: n, K: 512}
		all = append(all, Thousand{Name: fmt.Sprintf("simulated/seed-4x/%d", n), Crowd: crowd, Target: 1.10,
			Quick: n == 200})
		crowd.SeedMultiple = 1
		all = append(all, Thousand{Name: fmt.Sprintf("simulated/seed-1x/%d", n), Crowd: crowd, Target: 1.15,
			Quick: n == 200})
		crowd.SeedMultiple, crowd.OriginPieceTime = 4, 5*time.Millisecond
		all = append(all, Thousand{Name: fmt.Sprintf("simulated/cold/%d", n), Crowd: crowd, Target: 1.15,
			Quick: n == 200})
	}
	return all
}
