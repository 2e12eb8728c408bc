package results

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	f := New()
	f.Lower("demo/5-nodes", "time", 1.5, "seconds")
	f.Higher("demo/5-nodes", "rate", 3, "bytes per second")
	f.Promised("demo/5-nodes", "registry_egress_ratio", 1.003, "ratio", 1.02)
	path := filepath.Join(t.TempDir(), "out", "demo.json")
	require.NoError(t, f.Write(path))
	require.NoError(t, f.Write(path), "a second write replaces the file")

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(b, &got))
	assert.Equal(t, runtime.Version(), got["go"])
	assert.NotEmpty(t, got["cpu"])
	assert.Equal(t, []any{
		map[string]any{"scenario": "demo/5-nodes", "metric": "time", "value": 1.5, "unit": "seconds",
			"better": "lower"},
		map[string]any{"scenario": "demo/5-nodes", "metric": "rate", "value": 3.0, "unit": "bytes per second",
			"better": "higher"},
		map[string]any{
			"scenario": "demo/5-nodes", "metric": "registry_egress_ratio", "value": 1.003, "unit": "ratio",
			"target": 1.02,
			"better": "lower",
		},
	}, got["results"])
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "no partial file is left")
}

func TestMedian(t *testing.T) {
	r := Median("cpu/8", "per_gib", []float64{3, 1, 2, 9}, "ratio")
	assert.Equal(t, 2.5, r.Value)
	assert.Equal(t, []float64{1, 9}, []float64{*r.Min, *r.Max})
	assert.Equal(t, 4, r.Runs)
	assert.False(t, r.Missed(), "no target, so none is missed")
	assert.False(t, r.AtMost(2.5).Missed())
	assert.True(t, r.AtMost(2.4).Missed())
	assert.False(t, r.AtLeast(2.5).Missed())
	assert.True(t, r.AtLeast(2.6).Missed())
}

func TestMerge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	first, again, other := New(), New(), New()
	first.Lower("a", "x", 1, "ratio")
	first.Lower("b", "x", 2, "ratio")
	require.NoError(t, first.Merge(path), "a missing file")
	require.NoError(t, first.Write(path))

	again.Lower("b", "x", 3, "ratio")
	require.NoError(t, again.Merge(path))
	values := map[string]float64{}
	for _, r := range again.Results {
		values[r.Scenario] = r.Value
	}
	assert.Equal(t, map[string]float64{"a": 1, "b": 3}, values, "own scenarios replace, others stay")

	other.Commit += "x"
	other.Lower("b", "x", 4, "ratio")
	require.NoError(t, other.Merge(path))
	assert.Len(t, other.Results, 1, "figures of another commit are ignored")
}

func TestPrint(t *testing.T) {
	f := New()
	f.Add(Median("a", "good", []float64{1}, "ratio").AtMost(1), Median("a", "bad", []float64{1.5}, "ratio").AtMost(1))
	f.Lower("b", "free", 123456, "bytes")
	var b strings.Builder
	require.NoError(t, f.Print(&b))
	lines := strings.Split(b.String(), "\n")
	assert.Regexp(t, `^a +good +1\.000 +ratio +1\.000 – 1\.000 \(1 runs\) +≤ 1\.000 +ok$`, lines[1])
	assert.Regexp(t, `^a +bad +1\.500 .*missed$`, lines[2])
	assert.Regexp(t, `^b +free +123456 +bytes *$`, lines[3])
}
