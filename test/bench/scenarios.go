// Package bench measures how close swarms come to what links allow, and what they cost.
//
// A figure is printed with its target, and a scenario keeps its name from release to release. Daily tests measure
// nothing here: `make bench` runs everything, `make bench-quick` the part that takes a minute or two. Start at
// [Scenarios].
package bench

import (
	"fmt"
	"math"
	"time"

	"github.com/darter-io/darter/test/results"
	"github.com/darter-io/darter/test/simnet"
)

// Scenario is one crowd on a simulated network, with its targets.
type Scenario struct {
	Name string
	simnet.Crowd
	// Quick is true if it takes a few seconds.
	Quick bool
	// Runs is the number of runs, each with another random seed, in a full benchmark.
	Runs int
	// Report converts outcomes to figures.
	Report func(s Scenario, o []simnet.Outcome) []results.Result
}

// pieceRate is how many pieces a second a node's link carries.
const (
	pieceSize = 64 << 10
	rate      = 200 * pieceSize
)

func ptr(f float64) *float64 { return &f }

// each returns one figure of every outcome.
func (s Scenario) each(metric, unit string, target *float64, o []simnet.Outcome,
	f func(simnet.Outcome) float64) results.Result {
	var values []float64
	for _, one := range o {
		values = append(values, f(one))
	}
	r := results.Median(s.Name, metric, values, unit)
	if target != nil {
		r = r.AtMost(*target)
	}
	return r
}

// makespan reports the time until the last node has everything, over the bound.
func makespan(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		copies := s.each("seed_copies", "contents", ptr(2.1), o, func(o simnet.Outcome) float64 { return o.SeedCopies })
		if s.N <= 8 && s.Stagger == 0 {
			copies.Target = nil // with few nodes, the seed does most of the work
		}
		if s.Slow == 1 {
			copies.Target = nil // nodes with slow uplinks leave the work to the seed
		}
		return append([]results.Result{
			s.each("makespan_over_bound", "ratio", &target, o, s.Ratio),
			s.each("median_over_bound", "ratio", nil, o, func(o simnet.Outcome) float64 {
				return float64(o.Took[len(o.Took)/2]) / float64(s.Bound().Makespan())
			}),
			copies,
			s.each("origin_copies", "contents", ptr(1.001), o, func(o simnet.Outcome) float64 {
				return o.OriginCopies
			}),
		}, s.cost(o)...)
	}
}

// cost reports the overhead.
func (s Scenario) cost(o []simnet.Outcome) []results.Result {
	pieces := float64(s.N * s.Bound().K)
	return []results.Result{
		s.each("overhead", "ratio", nil, o, func(o simnet.Outcome) float64 { return o.Overhead - 1 }),
		s.each("wasted", "ratio", nil, o, func(o simnet.Outcome) float64 {
			return float64(o.Duplicate) / pieces / pieceSize
		}),
		s.each("busy_per_piece", "ratio", nil, o, func(o simnet.Outcome) float64 { return float64(o.Busy) / pieces }),
		s.each("first_byte", "round trips", nil, o, func(o simnet.Outcome) float64 {
			return float64(o.FirstByte[len(o.FirstByte)/2]) / float64(500*time.Microsecond)
		}),
		s.each("first_byte_last", "round trips", nil, o, func(o simnet.Outcome) float64 {
			return float64(o.FirstByte[len(o.FirstByte)-1]) / float64(500*time.Microsecond)
		}),
		// 0.5 means that the reader gets bytes at a steady rate, 1 that it waits for the end.
		s.each("half_read_at", "of its time", nil, o, func(o simnet.Outcome) float64 {
			return o.HalfRead[len(o.HalfRead)/2]
		}),
		s.each("in_order_lag", "contents", nil, o, func(o simnet.Outcome) float64 { return o.Lag[len(o.Lag)/2] }),
		s.each("in_order_lag_last", "contents", nil, o, func(o simnet.Outcome) float64 { return o.Lag[len(o.Lag)-1] }),
	}
}

// own reports each node's time from its own start, in units of the bound of its link.
func own(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		alone := float64(s.Bound().K) * float64(s.Bound().PieceTime)
		out := []results.Result{
			s.each("slowest_over_link", "ratio", &target, o, func(o simnet.Outcome) float64 {
				return float64(o.Took[len(o.Took)-1]) / alone
			}),
			s.each("median_over_link", "ratio", nil, o, func(o simnet.Outcome) float64 {
				return float64(o.Took[len(o.Took)/2]) / alone
			}),
		}
		return append(out, makespan(target)(s, o)...)
	}
}

// reader reports when in-order readers at twice the link's rate finish.
func reader(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		alone := float64(s.Bound().K) * float64(s.Bound().PieceTime)
		return append([]results.Result{
			s.each("reader_mean_over_link", "ratio", &target, o, func(o simnet.Outcome) float64 {
				sum := 0.0
				for _, t := range o.Took {
					sum += float64(t)
				}
				return sum / float64(len(o.Took)) / alone
			}),
			s.each("reader_last_over_link", "ratio", nil, o, func(o simnet.Outcome) float64 {
				return float64(o.Took[len(o.Took)-1]) / alone
			}),
		}, s.cost(o)...)
	}
}

// zones reports the bytes between zones.
func zones(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		return append([]results.Result{
			s.each("copies_into_each_zone", "contents", &target, o, func(o simnet.Outcome) float64 {
				sum := 0.0 // zone 0 is the seed's own
				for _, z := range o.CrossZone[1:] {
					sum += z
				}
				return sum / float64(len(o.CrossZone)-1)
			}),
			s.each("copies_into_the_seeds_zone", "contents", nil, o, func(o simnet.Outcome) float64 {
				return o.CrossZone[0]
			}),
			s.each("makespan_over_bound", "ratio", nil, o, s.Ratio),
		}, s.cost(o)...)
	}
}

// layers reports the makespan, and when each layer is complete.
func layers(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		whole := float64(s.Bound().Makespan())
		return append(makespan(target)(s, o), s.each("layer_median_over_bound", "ratio", nil, o,
			func(o simnet.Outcome) float64 {
				return float64(o.Layers[len(o.Layers)/2]) / whole
			}))
	}
}

// trip is a round trip in scenarios where only latency takes time.
const trip = time.Millisecond

// trips reports the round trips of one node's pull. A direct pull takes two: connection and request. A pull whose bytes
// are in the owner's answer takes one.
func trips(target float64) func(Scenario, []simnet.Outcome) []results.Result {
	return func(s Scenario, o []simnet.Outcome) []results.Result {
		const direct = 2
		// Without the time of the links, which is some nanoseconds.
		count := func(d time.Duration) float64 { return math.Round(100*float64(d)/float64(trip)) / 100 }
		return []results.Result{
			s.each("over_direct", "round trips", &target, o, func(o simnet.Outcome) float64 {
				return count(o.Makespan) - direct
			}),
			s.each("whole", "round trips", nil, o, func(o simnet.Outcome) float64 { return count(o.Makespan) }),
			s.each("first_byte", "round trips", nil, o, func(o simnet.Outcome) float64 {
				return count(o.FirstByte[0])
			}),
		}
	}
}

// recruited reports the effect of further supernodes: the makespan in units of the bound with all supernodes, and in
// units of the bound with the first one alone.
func recruited(s Scenario, o []simnet.Outcome) []results.Result {
	alone := s.Crowd
	alone.Helpers = 0
	return append([]results.Result{
		s.each("makespan_over_bound_of_one", "ratio", nil, o, alone.Ratio),
		s.each("makespan_over_bound", "ratio", nil, o, s.Ratio),
		s.each("seed_copies", "contents", nil, o, func(o simnet.Outcome) float64 { return o.SeedCopies }),
		s.each("helper_copies", "contents", nil, o, func(o simnet.Outcome) float64 { return o.HelperCopies }),
		s.each("origin_copies", "contents", ptr(1.001), o, func(o simnet.Outcome) float64 { return o.OriginCopies }),
	}, s.cost(o)...)
}

func repeat(n, k int) (l []int) {
	for range n {
		l = append(l, k)
	}
	return l
}

// Scenarios lists all scenarios in the order in which they run.
func Scenarios() (all []Scenario) {
	add := func(s Scenario) {
		if s.PieceSize == 0 {
			s.PieceSize, s.Rate = pieceSize, rate
		}
		if s.Runs == 0 {
			s.Runs = 3
		}
		all = append(all, s)
	}
	// The links are so fast that only latency takes time.
	const endless = 1e12
	near := simnet.Crowd{N: 1, K: 8, PieceSize: 128 << 10, Rate: endless, Latency: trip / 2, Window: 4 << 20}
	add(Scenario{Name: "round-trips/1-MB-warm", Crowd: near, Quick: true, Runs: 1, Report: trips(4)})
	near.OriginRate = endless
	add(Scenario{Name: "round-trips/1-MB-cold", Crowd: near, Quick: true, Runs: 1, Report: trips(4)})
	near.K, near.PieceSize = 1, 64<<10
	add(Scenario{Name: "round-trips/64-KiB-cold", Crowd: near, Quick: true, Runs: 1, Report: trips(4)})
	near.OriginRate = 0
	add(Scenario{Name: "round-trips/64-KiB-warm", Crowd: near, Quick: true, Runs: 1, Report: trips(-1)})
	half := 512 * pieceSize / rate * time.Second / 2
	for _, n := range []int{8, 32, 128, 512} {
		runs := 1
		if n <= 32 {
			runs = 3
		}
		name := func(kind string) string { return fmt.Sprintf("flash-crowd/%s/%d", kind, n) }
		crowd := simnet.Crowd{N: n, K: 512}
		add(Scenario{Name: name("seed-4x"), Crowd: crowd, Quick: n <= 32, Runs: runs, Report: makespan(1.08)})
		crowd.SeedMultiple = 1
		add(Scenario{Name: name("seed-1x"), Crowd: crowd, Quick: n <= 32, Runs: runs, Report: makespan(1.12)})
		crowd.SeedMultiple, crowd.OriginRate = 4, rate
		add(Scenario{Name: name("cold"), Crowd: crowd, Quick: n <= 32, Runs: runs, Report: makespan(1.12)})
	}
	add(Scenario{Name: "cold-slow-registry/32", Crowd: simnet.Crowd{N: 32, K: 256, OriginRate: rate / 2}, Quick: true,
		Report: makespan(1.12)})
	for _, n := range []int{32, 128} {
		runs := 3
		if n > 32 {
			runs = 1
		}
		name := func(kind string) string { return fmt.Sprintf("%s/%d", kind, n) }
		add(Scenario{Name: name("staggered-1s"), Crowd: simnet.Crowd{N: n, K: 512, Stagger: time.Second},
			Quick: n == 32,
			Runs:  runs, Report: own(1.25)})
		add(Scenario{Name: name("5-percent-die"), Crowd: simnet.Crowd{N: n, K: 512, Dead: 0.05, DeadAfter: half},
			Quick: n == 32, Runs: runs, Report: makespan(1.25)})
		add(Scenario{Name: name("10-percent-slow-uplink"), Crowd: simnet.Crowd{N: n, K: 512, Slow: 0.1}, Quick: n == 32,
			Runs: runs, Report: makespan(1.25)})
		add(Scenario{Name: name("reader-2x"), Crowd: simnet.Crowd{N: n, K: 512, Reader: 2 * rate},
			Quick: n == 32, Runs: runs,
			Report: reader(1.15)})
	}
	allSlow := simnet.Crowd{N: 64, K: 128, Slow: 1}
	add(Scenario{Name: "slow-uplinks/64", Crowd: allSlow, Quick: true, Report: makespan(1.2)})
	allSlow.OriginRate = rate
	add(Scenario{Name: "slow-uplinks-cold/64", Crowd: allSlow, Report: makespan(1.2)})
	add(Scenario{Name: "quarter-uplinks/32", Crowd: simnet.Crowd{N: 32, K: 256, Slow: 1, SlowBy: 4},
		Report: makespan(1.2)})
	add(Scenario{Name: "slow-uplinks/8", Crowd: simnet.Crowd{N: 8, K: 256, Slow: 1}, Report: makespan(1.5)})
	add(Scenario{Name: "rolling-start/64", Crowd: simnet.Crowd{N: 64, K: 256, Stagger: 20 * time.Second}, Runs: 1,
		Report: own(1.25)})
	add(Scenario{Name: "rolling-start-5m/64", Crowd: simnet.Crowd{N: 64, K: 256, Stagger: 5 * time.Minute}, Runs: 1,
		Report: own(1.25)})
	add(Scenario{Name: "zones-4/64", Crowd: simnet.Crowd{N: 64, K: 256, Zones: 4, ZoneRate: 16 * rate / 10},
		Quick: true,
		Runs:  1, Report: zones(1.3)})
	add(Scenario{Name: "zones-4-fifth-dies/64", Crowd: simnet.Crowd{N: 64, K: 256, Zones: 4, ZoneRate: 16 * rate / 10,
		Dead: 0.2, DeadAfter: half / 2}, Runs: 1, Report: zones(1.3)})
	for _, kind := range []struct {
		name string
		simnet.Crowd
	}{
		{"seed-1x/64", simnet.Crowd{N: 64, K: 256, SeedMultiple: 1}},
		{"seed-1x/128", simnet.Crowd{N: 128, K: 256, SeedMultiple: 1}},
		{"seed-1x-cold/64", simnet.Crowd{N: 64, K: 256, SeedMultiple: 1, OriginRate: rate}},
		{"seed-1x-held-by-all/64", simnet.Crowd{N: 64, K: 256, SeedMultiple: 1, HelpersHold: true}},
		{"seed-4x/64", simnet.Crowd{N: 64, K: 256}},
		{"slow-uplinks/64", simnet.Crowd{N: 64, K: 128, Slow: 1}},
		{"slow-uplinks-any-copies/64", simnet.Crowd{N: 64, K: 128, Slow: 1, Copies: 1 << 15}},
	} {
		for helpers := range 3 {
			kind.Helpers = helpers
			add(Scenario{Name: fmt.Sprintf("recruited/%s/%d", kind.name, helpers), Crowd: kind.Crowd, Runs: 2,
				Report: recruited})
		}
	}
	add(Scenario{Name: "40-small-layers/32",
		Crowd: simnet.Crowd{N: 32, Layers: repeat(40, 8), AtOnce: 3, OriginRate: rate}, Runs: 1, Report: layers(1.25)})
	add(Scenario{Name: "10-images/32", Crowd: simnet.Crowd{N: 32, Layers: repeat(10, 52)}, Runs: 1,
		Report: layers(1.25)})
	// The latency of a wide network, one way, in piece-times. The seed's link is like a node's.
	for _, l := range []float64{0.05, 0.5, 1, 4} {
		c := simnet.Crowd{N: 8, K: 200, SeedMultiple: 1, Window: 64 * pieceSize,
			Latency: time.Duration(l * float64(time.Second) * pieceSize / rate)}
		latency := func(kind string, c simnet.Crowd) {
			target := map[float64]float64{0.05: 1.10, 0.5: 1.12, 1: 1.15, 4: 1.25}[l]
			add(Scenario{Name: fmt.Sprintf("latency/%s/%g", kind, l), Crowd: c, Runs: 1, Report: makespan(target)})
		}
		one := c
		one.N = 1
		latency("1-node-warm", one)
		latency("8-warm", c)
		c.OriginRate = rate
		latency("8-cold", c)
		c.K, c.Layers, c.AtOnce = 0, repeat(8, 100), 3
		latency("8-cold-8-layers", c)
	}
	// 4 MiB a piece
	add(Scenario{Name: "5-GB-layer/32", Crowd: simnet.Crowd{N: 32, K: 1250, OriginRate: rate}, Runs: 1,
		Report: makespan(1.12)})
	return all
}
