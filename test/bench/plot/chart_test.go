package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/results"
)

func measured(scenario string, value float64) results.Result {
	return results.Median(scenario, "makespan_over_bound", []float64{value}, "ratio")
}

// The SVG is well-formed XML.
func TestTheChartHasALineForEachKindOfCrowd(t *testing.T) {
	all := []results.Result{
		measured("flash-crowd/seed-4x/32", 1.03), measured("flash-crowd/seed-4x/8", 1.01),
		measured("flash-crowd/cold/8", 1.04),
		measured("simulated/seed-4x/1000", 1.07), measured("zones-4/64", 1.2),
		results.Median("flash-crowd/seed-4x/8", "seed_copies", []float64{1.8}, "contents"),
	}
	var first, again bytes.Buffer
	require.NoError(t, Makespan(&first, all))
	require.NoError(t, Makespan(&again, all))
	assert.Equal(t, first.String(), again.String(), "the same figures give the same bytes")

	circles, texts := 0, ""
	d := xml.NewDecoder(&first)
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		switch e := token.(type) {
		case xml.StartElement:
			if e.Name.Local == "circle" {
				circles++
			}
		case xml.CharData:
			texts += string(e)
		}
	}
	assert.Equal(t, 4, circles, "a point for each makespan of a flash crowd")
	for _, name := range []string{"real engines, seed 4×", "real engines, cold", "simulated, seed 4×", "1000"} {
		assert.Contains(t, texts, name)
	}
	assert.NotContains(t, texts, "seed 1×", "what was not measured")
}

func TestPointsAreInTheOrderOfTheNodes(t *testing.T) {
	got := lines([]results.Result{measured("simulated/cold/1000", 1.1), measured("simulated/cold/200", 1.05)})
	require.Len(t, got, 1)
	assert.Equal(t, []point{{200, 1.05}, {1000, 1.1}}, got[0].points)
}

func TestWithoutFiguresThereIsNoChart(t *testing.T) {
	assert.ErrorContains(t, Makespan(io.Discard, nil), "make bench")
}

func TestABarIsTheWorstFigureInUnitsOfItsTarget(t *testing.T) {
	all := []results.Result{
		measured("flash-crowd/seed-4x/32", 1.03).AtMost(1.08), measured("flash-crowd/seed-4x/8", 1.134).AtMost(1.08),
		measured("flash-crowd/cold/8", 1.04), // no target
		results.Median("scheduler/10000-hosts-10-tasks", "joins_per_core", []float64{40_000}, "announces/CPU-s").
			AtLeast(20_000),
	}
	got := bars(all)
	require.Len(t, got, 2)
	assert.InDelta(t, 1.05, got[0].part, 1e-9)
	assert.InDelta(t, 0.5, got[1].part, 1e-9)

	var b bytes.Buffer
	require.NoError(t, Targets(&b, all))
	assert.NoError(t, xml.Unmarshal(b.Bytes(), new(struct{})))
	assert.Contains(t, b.String(), got[0].name)
	assert.ErrorContains(t, Targets(io.Discard, nil), "make bench")
}
