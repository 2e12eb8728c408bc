package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Only the process that holds the data directory sweeps spools.
func TestSweepSpools(t *testing.T) {
	cfg := settings(t)
	left := filepath.Join(cfg.Node.DataDir, "darter-spool-123")
	inCache := filepath.Join(cfg.Node.DataDir, "cache", "tmp", "7")
	leave := func() {
		require.NoError(t, os.MkdirAll(filepath.Dir(inCache), 0o700))
		for _, path := range []string{left, inCache} {
			require.NoError(t, os.WriteFile(path, []byte("half a body"), 0o600))
		}
	}
	leave()
	n := build(t, cfg)
	assert.NoFileExists(t, left)
	assert.NoFileExists(t, inCache)

	leave()
	_, err := New(cfg)
	require.ErrorContains(t, err, "stop it, or give this process a directory of its own")
	assert.FileExists(t, left, "the process that has the directory may be using it")
	assert.FileExists(t, inCache)
	require.NoError(t, n.Close())
}
