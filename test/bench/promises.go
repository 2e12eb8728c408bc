package bench

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/darter-io/darter/test/results"
)

// Promise is one promise or figure about swarms, with the scenarios that measure it.
type Promise struct {
	What   string
	Metric string
	// Of are the scenarios, Labels their labels in the table.
	Of, Labels []string
}

// over returns a promise for scenarios that differ in the last part of their names.
func over(what, metric, prefix string, words ...string) Promise {
	p := Promise{What: what, Metric: metric, Labels: words}
	for _, w := range words {
		p.Of = append(p.Of, prefix+w)
	}
	return p
}

// of returns a promise for scenarios with different names: the arguments are pairs of label and scenario.
func of(what, metric string, pairs ...string) Promise {
	p := Promise{What: what, Metric: metric}
	for i := 0; i < len(pairs); i += 2 {
		p.Labels, p.Of = append(p.Labels, pairs[i]), append(p.Of, pairs[i+1])
	}
	return p
}

// Promises lists all promises in the order in which they are printed. The scenarios hold the targets.
func Promises() []Promise {
	nodes := []string{"8", "32", "128", "512"}
	thousands := []string{"200", "1000", "5000", "10000"}
	return []Promise{
		over("time over bound, all at once, seed 4×", "makespan_over_bound", "flash-crowd/seed-4x/", nodes...),
		over("… seed 1×", "makespan_over_bound", "flash-crowd/seed-1x/", nodes...),
		over("… cold", "makespan_over_bound", "flash-crowd/cold/", nodes...),
		over("… started over one second, slowest node", "slowest_over_link", "staggered-1s/", "32", "128"),
		over("… 5 % die half-way", "makespan_over_bound", "5-percent-die/", "32", "128"),
		over("… 10 % have a tenth of the uplink", "makespan_over_bound", "10-percent-slow-uplink/", "32", "128"),
		of("… all have a tenth of the uplink", "makespan_over_bound", "8", "slow-uplinks/8", "64", "slow-uplinks/64",
			"64 cold", "slow-uplinks-cold/64"),
		over("… an in-order reader at twice the link rate", "reader_mean_over_link", "reader-2x/", "32", "128"),
		over("… simulated, seed 4×", "makespan_over_bound", "simulated/seed-4x/", thousands...),
		over("… simulated, seed 1×", "makespan_over_bound", "simulated/seed-1x/", thousands...),
		over("… simulated, cold", "makespan_over_bound", "simulated/cold/", thousands...),
		over("… real links of 100 Mbit/s", "makespan_over_bound", "links/", "8-nodes", "16-nodes"),
		over("part of the machine's CPU that was busy then", "machine_busy", "links/", "8-nodes", "16-nodes"),
		of("… one layer of 5 GB, 40 small layers, 10 images", "makespan_over_bound", "5 GB", "5-GB-layer/32", "40",
			"40-small-layers/32", "10", "10-images/32"),
		of("contents into each of 4 zones", "copies_into_each_zone", "all live", "zones-4/64", "a fifth dies",
			"zones-4-fifth-dies/64"),
		of("contents from the registry", "origin_copies", "cold", "flash-crowd/cold/32", "128", "flash-crowd/cold/128",
			"5 minutes", "rolling-start-5m/64"),
		of("contents from the seed", "seed_copies", "seed 4×", "flash-crowd/seed-4x/128", "1×",
			"flash-crowd/seed-1x/128", "cold", "flash-crowd/cold/128", "5 minutes", "rolling-start-5m/64"),
		over("round trips to the first byte, median, seed 4×", "first_byte", "flash-crowd/seed-4x/", nodes...),
		over("… the last node's", "first_byte_last", "flash-crowd/seed-4x/", nodes...),
		over("… median, cold", "first_byte", "flash-crowd/cold/", nodes...),
		over("contents that a reader is behind its download, seed 4×", "in_order_lag",
			"flash-crowd/seed-4x/", nodes...),
		over("… cold", "in_order_lag", "flash-crowd/cold/", nodes...),
		of("round trips over a direct pull", "over_direct", "1 MB cold", "round-trips/1-MB-cold", "warm",
			"round-trips/1-MB-warm", "64 KiB cold", "round-trips/64-KiB-cold", "warm", "round-trips/64-KiB-warm"),
		of("ms over a direct pull, a cold layer of 1 MB", "swarm_over_direct", "median", "layer/1-MB-cold"),
		of("CPU over a minimal HTTP peer, plain", "cpu_over_http", "8 peers", "cpu/8-peers/engine", "20",
			"cpu/20-peers/engine"),
		of("… TLS", "cpu_over_http", "8 peers", "cpu/8-peers/engine-tls", "20", "cpu/20-peers/engine-tls"),
		of("MB of memory of a dfdaemon, idle", "rss_idle", "median", "memory/dfdaemon"),
		of("… most in a pull of 1 GiB", "rss_pull_most", "median", "memory/dfdaemon"),
		of("announces a second and core, hosts that join", "joins_per_core", "10,000 × 10",
			"scheduler/10000-hosts-10-tasks"),
		of("… that tell their progress", "progress_per_core", "10,000 × 10", "scheduler/10000-hosts-10-tasks"),
		of("bytes of the scheduler for a peer and task", "bytes_per_peer_and_task", "10,000 × 10",
			"scheduler/10000-hosts-10-tasks"),
		of("a warm blob over nginx: time", "time_over_nginx", "mirror", "warm/mirror"),
		of("… CPU", "cpu_over_nginx", "mirror", "warm/mirror"),
	}
}

// State is the state of a promise.
type State string

// The states; a promise without a target is only printed.
const (
	Kept        State = "kept"
	Missed      State = "MISSED"
	NotMeasured State = "not measured"
	Told        State = ""
)

// Stands finds the figures of a promise among the results, in order; a nil figure was not measured.
func (p Promise) Stands(all []results.Result) (figures []*results.Result, s State) {
	measured, promised := 0, false
	for _, scenario := range p.Of {
		var found *results.Result
		for i := range all {
			if all[i].Scenario == scenario && all[i].Metric == p.Metric {
				found = &all[i]
			}
		}
		figures = append(figures, found)
		if found == nil {
			continue
		}
		measured++
		promised = promised || found.Target != nil
		if found.Missed() {
			s = Missed
		}
	}
	switch {
	case s == Missed:
	case measured == 0:
		s = NotMeasured
	case promised:
		s = Kept
	}
	return figures, s
}

// PrintPromises writes a line for each promise: figures, target and state.
func PrintPromises(w io.Writer, f *results.File) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	count := map[State]int{}
	fmt.Fprintln(t, "what\tmeasured\ttarget\t")
	for _, p := range Promises() {
		figures, s := p.Stands(f.Results)
		count[s]++
		var words, targets []string
		for i, r := range figures {
			if r == nil {
				words = append(words, p.Labels[i]+": –")
				continue
			}
			words = append(words, p.Labels[i]+": "+short(r.Value))
			if r.Target == nil {
				continue
			}
			sign := "≤ "
			if r.Better == "higher" {
				sign = "≥ "
			}
			if at := sign + short(*r.Target); len(targets) == 0 || targets[len(targets)-1] != at {
				targets = append(targets, at)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.What, strings.Join(words, "  "), strings.Join(targets, ", "), s)
	}
	fmt.Fprintf(t, "\n%d kept, %d missed, %d not measured; commit %s, %s, %s\n", count[Kept], count[Missed],
		count[NotMeasured], f.Commit, f.Go, f.CPU)
	return t.Flush()
}

// short formats a figure with at most three decimal places.
func short(v float64) string {
	digits := 3
	if v >= 100 {
		digits = 0
	} else if v >= 10 {
		digits = 1
	}
	text := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}
