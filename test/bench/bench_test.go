package bench_test

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/bench"
	"github.com/darter-io/darter/test/results"
	"github.com/darter-io/darter/test/sim"
	"github.com/darter-io/darter/test/simnet"
)

var (
	size = flag.String("size", "", "quick or full; without it nothing is measured")
	only = flag.String("only", "", "a pattern of scenarios; empty for all")
	seed = flag.Uint64("seed", 1, "the first random seed; each run is printed with its own, which repeats its choices")
	out  = flag.String("out", "", "where the figures are written as JSON")
)

// TestSwarmsComeCloseToTheBound measures swarms, and fails if a node does not get its task. It prints a missed target
// and does not fail, because figures are for people to read.
func TestSwarmsComeCloseToTheBound(t *testing.T) {
	if *size == "" {
		t.Skip("a measurement; make bench-quick or make bench runs it")
	}
	match := regexp.MustCompile(*only)
	file := results.New()
	for _, s := range bench.Scenarios() {
		if *size == "quick" && !s.Quick || !match.MatchString(s.Name) {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			var outcomes []simnet.Outcome
			if *size == "quick" {
				s.Runs = 1
			}
			for i := range s.Runs {
				c := s.Crowd
				c.Seed = *seed + uint64(i)
				begun := time.Now()
				synctest.Test(t, func(t *testing.T) {
					o, err := c.Run(t.Context())
					require.NoError(t, err)
					require.Empty(t, o.Failed)
					outcomes = append(outcomes, o)
				})
				t.Logf("random seed %d: makespan over bound %.3f, in %s on this machine", c.Seed, c.Ratio(outcomes[i]),
					time.Since(begun).Round(time.Millisecond))
			}
			file.Add(s.Report(s, outcomes)...)
		})
	}
	for _, s := range bench.Thousands() {
		if *size == "quick" && !s.Quick || !match.MatchString(s.Name) {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			begun := time.Now()
			s.Seed = *seed
			o := s.Run()
			require.Zero(t, o.Unfinished, "nodes that did not get everything")
			t.Logf("random seed %d: makespan over bound %.3f, %d events in %s on this machine", s.Seed,
				s.Ratio(o), o.Events, time.Since(begun).Round(time.Millisecond))
			file.Add(s.Report(o)...)
		})
	}
	for _, r := range bench.Rules() {
		if *size == "quick" || !match.MatchString("rule/"+r.Name) {
			continue
		}
		t.Run("rule/"+r.Name, func(t *testing.T) {
			crowds, outcomes := bench.RuleCrowds(), make(map[string]sim.Outcome)
			for name, c := range crowds {
				r.Change(&c)
				outcomes[name] = c.Run()
				require.Zero(t, outcomes[name].Unfinished, "nodes that did not get everything")
			}
			file.Add(r.Report(crowds, outcomes)...)
		})
	}
	var table strings.Builder
	require.NoError(t, file.Print(&table))
	os.Stdout.WriteString(table.String())
	if *out != "" {
		require.NoError(t, file.Merge(*out))
		require.NoError(t, file.Write(*out))
	}
}

func TestScenariosKeepTheirNamesApart(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range bench.Thousands() {
		require.False(t, seen[s.Name], s.Name)
		seen[s.Name] = true
	}
	for _, s := range bench.Scenarios() {
		require.False(t, seen[s.Name], s.Name)
		seen[s.Name] = true
		require.Positive(t, s.Bound().Makespan())
	}
}
