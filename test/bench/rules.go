package bench

import (
	"time"

	"github.com/darter-io/darter/test/results"
	"github.com/darter-io/darter/test/sim"
)

// Rule is the default policy with one change. Its figures show the effect of one rule or constant.
type Rule struct {
	Name   string
	Change func(*sim.Crowd)
}

// RuleCrowds are the crowds in which each rule is measured, by the name of their metric.
func RuleCrowds() map[string]sim.Crowd {
	crowd := sim.Crowd{N: 200, K: 512}
	slowSeed, cold, slowHosts := crowd, crowd, crowd
	slowSeed.SeedMultiple = 1
	cold.OriginPieceTime = 5 * time.Millisecond
	slowHosts.Slow = 0.1
	allSlow, allQuarter := sim.Crowd{N: 64, K: 128, Slow: 1}, sim.Crowd{N: 32, K: 256, Slow: 1, SlowBy: 4}
	return map[string]sim.Crowd{"seed-4x": crowd, "seed-1x": slowSeed, "cold": cold, "slow-hosts": slowHosts,
		"all-slow": allSlow, "all-quarter": allQuarter}
}

// Rules lists all changes; the first is the unchanged policy.
func Rules() []Rule {
	return []Rule{
		{"as it is", func(*sim.Crowd) {}},
		{"nobody loses its place", func(c *sim.Crowd) { c.HeadStart = -1 }},
		{"HeadStart 1", func(c *sim.Crowd) { c.HeadStart = 1 }},
		{"HeadStart 8", func(c *sim.Crowd) { c.HeadStart = 8 }},
		{"Slots 2", func(c *sim.Crowd) { c.Slots = 2 }},
		{"Slots 4", func(c *sim.Crowd) { c.Slots = 4 }},
		{"Slots 6", func(c *sim.Crowd) { c.Slots = 6 }},
		{"Slots 6, RequestsMax 10, nobody loses its place", func(c *sim.Crowd) {
			c.Slots, c.Picker.RequestsMax, c.HeadStart = 6, 10, -1
		}},
		{"RequestsMax 4", func(c *sim.Crowd) { c.Picker.RequestsMax = 4 }},
		{"RequestsMax 6", func(c *sim.Crowd) { c.Picker.RequestsMax = 6 }},
		{"RequestsMax 12", func(c *sim.Crowd) { c.Picker.RequestsMax = 12 }},
		{"Lines 1", func(c *sim.Crowd) { c.Lines = 1 }},
		{"Lines 3", func(c *sim.Crowd) { c.Lines = 3 }},
		{"first come, first served", func(c *sim.Crowd) { c.Turns = sim.FirstCome }},
		{"rarest piece served first", func(c *sim.Crowd) { c.Turns = sim.Rarest }},
		{"BackOff half", func(c *sim.Crowd) { c.BackOff = 0.125 }},
		{"BackOff twice", func(c *sim.Crowd) { c.BackOff = 0.5 }},
		{"InOrder 0.01", func(c *sim.Crowd) { c.Picker.InOrder = 0.01 }},
		{"InOrder 0.5", func(c *sim.Crowd) { c.Picker.InOrder = 0.5 }},
		{"InOrder 0.95", func(c *sim.Crowd) { c.Picker.InOrder = 0.95 }},
		{"InOrderYoung 0.01", func(c *sim.Crowd) { c.Picker.InOrderYoung = 0.01 }},
		{"InOrderYoung 0.5", func(c *sim.Crowd) { c.Picker.InOrderYoung = 0.5 }},
		{"8 neighbours", func(c *sim.Crowd) { c.Neighbours = 8 }},
		{"12 neighbours", func(c *sim.Crowd) { c.Neighbours = 12 }},
		{"24 neighbours", func(c *sim.Crowd) { c.Neighbours = 24 }},
		{"Crawl never", func(c *sim.Crowd) { c.Picker.Crawl = -1 }},
		{"Crawl 2", func(c *sim.Crowd) { c.Picker.Crawl = 2 }},
		{"Crawl 6", func(c *sim.Crowd) { c.Picker.Crawl = 6 }},
		{"each piece leaves the seed once", func(c *sim.Crowd) { c.Copies = 1 }},
		{"each piece leaves the seed up to four times", func(c *sim.Crowd) { c.Copies = 4 }},
	}
}

// Report converts the outcomes of a rule, by crowd, to figures.
func (r Rule) Report(crowds map[string]sim.Crowd, outcomes map[string]sim.Outcome) (list []results.Result) {
	for _, name := range []string{"seed-4x", "seed-1x", "cold", "slow-hosts", "all-slow", "all-quarter"} {
		list = append(list, results.Median("rule/"+r.Name, name+"_makespan_over_bound",
			[]float64{crowds[name].Ratio(outcomes[name])}, "ratio"))
	}
	o := outcomes["seed-4x"]
	half := float64(o.Half[len(o.Half)/2]) / float64(o.Makespan)
	return append(list, results.Median("rule/"+r.Name, "seed-4x_half_readable_at", []float64{half}, "of its time"),
		results.Median("rule/"+r.Name, "seed-4x_seed_copies", []float64{o.SeedCopies}, "contents"))
}
