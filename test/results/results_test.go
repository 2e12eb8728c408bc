package results

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAFileReadsBackAsWhatWasMeasured(t *testing.T) {
	f := New()
	f.Lower("demo/5-nodes", "time", 1.5, "seconds")
	f.Higher("demo/5-nodes", "rate", 3, "bytes per second")
	f.Promised("demo/5-nodes", "registry_egress_ratio", 1.003, "ratio", 1.02)
	path := filepath.Join(t.TempDir(), "out", "demo.json")
	require.NoError(t, f.Write(path))
	require.NoError(t, f.Write(path), "writing anew replaces")

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(b, &got))
	assert.Equal(t, runtime.Version(), got["go"])
	assert.NotEmpty(t, got["cpu"])
	assert.Equal(t, []any{
		map[string]any{"scenario": "demo/5-nodes", "metric": "time", "value": 1.5, "unit": "seconds", "better": "lower"},
		map[string]any{"scenario": "demo/5-nodes", "metric": "rate", "value": 3.0, "unit": "bytes per second", "better": "higher"},
		map[string]any{"scenario": "demo/5-nodes", "metric": "registry_egress_ratio", "value": 1.003, "unit": "ratio", "target": 1.02, "better": "lower"},
	}, got["results"])
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing half written is left")
}
