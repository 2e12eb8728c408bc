// Package main draws the figures that `make bench` left in out/bench.json as SVG charts for
// the documents.
//
// The same figures give the same bytes, and nothing of the machine that drew them is inside.
// Start at [Makespan] and [Targets].
package main

import (
	"cmp"
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/darter-io/darter/test/bench"
	"github.com/darter-io/darter/test/results"
)

// line is one kind of crowd, measured with several numbers of nodes.
type line struct {
	name, color string
	dashed      bool
	points      []point
}

type point struct{ nodes, ratio float64 }

// kinds are the crowds of the chart and their colours, readable also by who sees few of them.
var kinds = []struct{ name, title, color string }{
	{"seed-4x", "seed 4×", "#0072b2"},
	{"seed-1x", "seed 1×", "#d55e00"},
	{"cold", "cold", "#009e73"},
}

// lines takes the makespans of all crowds that start together out of what was measured.
func lines(all []results.Result) (out []line) {
	for _, where := range []struct{ prefix, title string }{{"flash-crowd/", "real engines"},
		{"simulated/", "simulated"}} {
		for _, k := range kinds {
			l := line{name: where.title + ", " + k.title, color: k.color, dashed: where.title == "simulated"}
			for _, r := range all {
				count, ok := strings.CutPrefix(r.Scenario, where.prefix+k.name+"/")
				nodes, err := strconv.Atoi(count)
				if ok && err == nil && r.Metric == "makespan_over_bound" {
					l.points = append(l.points, point{float64(nodes), r.Value})
				}
			}
			if len(l.points) > 0 {
				slices.SortFunc(l.points, func(a, b point) int { return cmp.Compare(a.nodes, b.nodes) })
				out = append(out, l)
			}
		}
	}
	return out
}

const (
	width, height            = 720, 400
	left, right, top, bottom = 60, 190, 40, 50
)

// Makespan writes a chart of the makespan over the bound by the number of nodes. It fails
// when nothing of that was measured.
func Makespan(w io.Writer, all []results.Result) error {
	drawn := lines(all)
	if len(drawn) == 0 {
		return fmt.Errorf("drawing makespans: no figure of a flash crowd among %d; run make bench first", len(all))
	}
	most, fewest, highest := 2.0, math.Inf(1), 1.1
	for _, l := range drawn {
		for _, p := range l.points {
			most, fewest, highest = max(most, p.nodes), min(fewest, p.nodes), max(highest, p.ratio)
		}
	}
	highest = math.Ceil(highest*20) / 20
	x := func(nodes float64) float64 {
		return left + (width-left-right)*math.Log(nodes/fewest)/math.Log(max(2, most/fewest))
	}
	y := func(ratio float64) float64 { return top + (height-top-bottom)*(highest-ratio)/(highest-1) }

	var b strings.Builder
	put := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	text := func(at, down float64, anchor, s string) {
		put(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, at, down, anchor, s)
	}
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#333">`,
		width, height)
	put(`<rect width="%d" height="%d" fill="#fff"/>`, width, height)
	text(left, 22, "start", "Time until the last node has everything, in units of the least that links allow")
	for ratio := 100; ratio <= int(math.Round(highest*100)); ratio += 5 {
		at := y(float64(ratio) / 100)
		put(`<path d="M%d %.1fH%d" stroke="#ddd"/>`, left, at, width-right)
		text(left-8, at+4, "end", fmt.Sprintf("%.2f", float64(ratio)/100))
	}
	var ticks []float64
	for _, l := range drawn {
		for _, p := range l.points {
			if !slices.Contains(ticks, p.nodes) {
				ticks = append(ticks, p.nodes)
			}
		}
	}
	slices.Sort(ticks)
	last := math.Inf(-1)
	for _, n := range ticks {
		if at := x(n); at-last > 34 {
			text(at, height-bottom+18, "middle", strconv.Itoa(int(n)))
			last = at
		}
	}
	text((left+width-right)/2, height-12, "middle", "nodes")
	for i, l := range drawn {
		dash := ""
		if l.dashed {
			dash = ` stroke-dasharray="5 4"`
		}
		var path strings.Builder
		for j, p := range l.points {
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(j, 1)], x(p.nodes), y(p.ratio))
			put(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.nodes), y(p.ratio), l.color)
		}
		put(`<path d="%s" fill="none" stroke="%s" stroke-width="2"%s/>`, path.String(), l.color, dash)
		at := float64(top + 10 + 22*i)
		put(`<path d="M%d %.1fh26" stroke="%s" stroke-width="2"%s/>`, width-right+14, at, l.color, dash)
		text(width-right+46, at+4, "start", l.name)
	}
	put("</svg>")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the chart: %w", err)
	}
	return nil
}

// bar is one promise: how much of its target is used up.
type bar struct {
	name string
	part float64
}

// bars takes out of what was measured how near each promise comes to its target: 1 is just
// kept. Where several scenarios show it, the worst counts.
func bars(all []results.Result) (out []bar) {
	whole := ""
	for _, p := range bench.Promises() {
		name := p.What
		if rest, ok := strings.CutPrefix(name, "… "); ok {
			name = whole + ": " + rest
		} else {
			whole, _, _ = strings.Cut(name, ",")
		}
		b := bar{name: name}
		figures, _ := p.Stands(all)
		for _, r := range figures {
			switch {
			case r == nil || r.Target == nil || *r.Target <= 0 || r.Value <= 0:
			case r.Better == "higher":
				b.part = max(b.part, *r.Target/r.Value)
			default:
				b.part = max(b.part, r.Value / *r.Target)
			}
		}
		if b.part > 0 {
			out = append(out, b)
		}
	}
	return out
}

// Targets writes a chart of all promises that have a target and were measured, by how near
// they come to it.
func Targets(w io.Writer, all []results.Result) error {
	drawn := bars(all)
	if len(drawn) == 0 {
		return fmt.Errorf("drawing targets: none was measured among %d figures; run make bench first", len(all))
	}
	const row, from, head = 22, 400, 44
	most := 1.2
	for _, b := range drawn {
		most = max(most, b.part)
	}
	x := func(part float64) float64 { return from + (width-from-50)*part/most }
	down := head + row*len(drawn)

	var b strings.Builder
	put := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="#333">`,
		width, down+16)
	put(`<rect width="%d" height="%d" fill="#fff"/>`, width, down+16)
	put(`<text x="12" y="22">What was measured, in units of its target: left of the line is kept</text>`)
	for i, one := range drawn {
		color := "#0072b2"
		if one.part > 1 {
			color = "#d55e00"
		}
		at := head + row*i
		put(`<text x="%d" y="%d" text-anchor="end">%s</text>`, from-8, at+14, html.EscapeString(one.name))
		put(`<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, from, at+3, x(one.part)-from, row-6, color)
		put(`<text x="%.1f" y="%d">%.2f</text>`, x(one.part)+5, at+14, one.part)
	}
	put(`<path d="M%.1f %dV%d" stroke="#333" stroke-width="1.5"/>`, x(1), head-6, down+4)
	put("</svg>")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the chart: %w", err)
	}
	return nil
}
