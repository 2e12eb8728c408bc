package diskstore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
)

// copyOf copies the files of a directory, as cp -a does.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// A copied data directory is another host.
func TestCopiedDirectory(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenHostKey(dir)
	require.NoError(t, err)
	assert.True(t, first.ID().Keyed())
	assert.Empty(t, first.Was)

	t.Run("a restart keeps the ID", func(t *testing.T) {
		again, err := OpenHostKey(dir)
		require.NoError(t, err)
		assert.Equal(t, first.ID(), again.ID())
		assert.False(t, again.Moved)
	})
	t.Run("a copy on the same machine gets another ID, once", func(t *testing.T) {
		clone := copyOf(t, dir)
		other, err := OpenHostKey(clone)
		require.NoError(t, err)
		assert.NotEqual(t, first.ID(), other.ID())
		assert.Equal(t, first.ID(), other.Was)
		assert.True(t, other.Moved)
		again, err := OpenHostKey(clone)
		require.NoError(t, err)
		assert.Equal(t, other.ID(), again.ID())
		assert.False(t, again.Moved)
		noted, err := os.ReadFile(filepath.Join(clone, idFile))
		require.NoError(t, err)
		assert.Equal(t, string(other.ID()), strings.TrimSpace(string(noted)))
	})
	t.Run("so does a disk that is moved to another machine", func(t *testing.T) {
		here, there := filepath.Join(t.TempDir(), "id"), filepath.Join(t.TempDir(), "id")
		require.NoError(t, os.WriteFile(here, []byte("a\n"), 0o600))
		require.NoError(t, os.WriteFile(there, []byte("b\n"), 0o600))
		image := t.TempDir()
		was, err := openHostKey(image, []string{here})
		require.NoError(t, err)
		is, err := openHostKey(image, []string{there})
		require.NoError(t, err)
		assert.NotEqual(t, was.ID(), is.ID())
		assert.True(t, is.Moved)
	})
	t.Run("an ID of a program without keys stays in its file", func(t *testing.T) {
		old, drawn := t.TempDir(), host.NewID()
		require.NoError(t, os.WriteFile(filepath.Join(old, idFile), []byte(string(drawn)+"\n"), 0o600))
		k, err := OpenHostKey(old)
		require.NoError(t, err)
		assert.Equal(t, drawn, k.Was)
		assert.False(t, k.Moved)
		assert.True(t, k.ID().Keyed())
		for range 2 {
			noted, err := os.ReadFile(filepath.Join(old, idFile))
			require.NoError(t, err)
			assert.Equal(t, string(drawn), strings.TrimSpace(string(noted)),
				"that program may run again, without a key")
			again, err := OpenHostKey(old)
			require.NoError(t, err)
			assert.Equal(t, k.ID(), again.ID())
			assert.Empty(t, again.Was)
		}
	})
	t.Run("a damaged key says what to do", func(t *testing.T) {
		for _, damaged := range []string{"", "?", strings.Repeat("0", 63)} {
			journalErr := copyOf(t, dir)
			require.NoError(t, os.WriteFile(filepath.Join(journalErr, keyFile), []byte(damaged), 0o600))
			_, err := OpenHostKey(journalErr)
			assert.ErrorContains(t, err, "delete that file", "%q", damaged)
		}
	})
	t.Run("no other user can read the key", func(t *testing.T) {
		st, err := os.Stat(filepath.Join(dir, keyFile))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	})
	t.Run("a host gets another ID if another host has the same one", func(t *testing.T) {
		k, err := ReplaceHostKey(dir)
		require.NoError(t, err)
		assert.NotEqual(t, first.ID(), k.ID())
		again, err := OpenHostKey(dir)
		require.NoError(t, err)
		assert.Equal(t, k.ID(), again.ID())
	})
}
