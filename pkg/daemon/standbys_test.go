package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

func TestStandbysFile(t *testing.T) {
	t.Run("what was written is read", func(t *testing.T) {
		dir, list := t.TempDir(), []string{"10.0.0.1:65002", "[::1]:65002"}
		require.NoError(t, writeStandbys(dir, list))
		assert.Equal(t, list, readStandbys(dir))
	})
	for name, text := range map[string]string{
		"torn": `["10.0.0.1:65002"`, "another type": `{"a":1}`, "a number in it": `["a:1",2]`, "empty": "",
		"too many":   `["a:1","a:2","a:3","a:4","a:5","a:6","a:7","a:8","a:9"]`,
		"a long one": `["` + string(bytes.Repeat([]byte("a"), 600)) + `:1"]`,
		"endless":    `[` + string(bytes.Repeat([]byte(" "), standbysSize)) + `]`,
	} {
		t.Run("a file that is "+name+" counts as none", func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, standbysFile), []byte(text), 0o600))
			assert.Empty(t, readStandbys(dir))
		})
	}
}

func FuzzParseStandbys(f *testing.F) {
	for _, s := range []string{`["10.0.0.1:65002"]`, `[]`, `null`, `["a","b"] x`, `["a"`, `[["a"]]`, `{"0":"a"}`,
		`["\ud800"]`, "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list := parseStandbys(b)
		require.LessOrEqual(t, len(list), api.StandbysMax)
		for _, addr := range list {
			require.LessOrEqual(t, len(addr), 3*512) // an invalid byte becomes three
		}
	})
}
