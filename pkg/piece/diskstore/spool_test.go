package diskstore_test

import (
	"bytes"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// names returns the files under dir.
func names(t *testing.T, dir string) (list []string) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" {
			list = append(list, path)
		}
		return err
	}))
	return list
}

func TestSpool(t *testing.T) {
	s, err := diskstore.Open(diskstore.Config{Dir: t.TempDir()})
	require.NoError(t, err)
	defer s.Close()
	spool, err := s.Spool()
	require.NoError(t, err)
	content := storetest.Content("spool", 9<<20)
	for rest := content; len(rest) > 0; {
		n, err := spool.Write(rest[:min(len(rest), 1<<20-7)])
		require.NoError(t, err)
		rest = rest[n:]
	}
	assert.Empty(t, names(t, s.Dir()), "it has no name, so a killed process leaves no file")
	for range 2 {
		got, err := io.ReadAll(spool.Reader())
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
	}
	assert.EqualValues(t, len(content), spool.Len())
	assert.GreaterOrEqual(t, s.Usage().Used, spool.Len())
	require.NoError(t, spool.Close())
	require.NoError(t, spool.Close())
	assert.Zero(t, s.Usage().Used)
	_, err = spool.Write(content)
	assert.ErrorIs(t, err, fs.ErrClosed)
}

// Spools count in the quota.
func TestSpoolQuota(t *testing.T) {
	const quota = 64 << 20
	s, err := diskstore.Open(diskstore.Config{Dir: t.TempDir(), Quota: quota})
	require.NoError(t, err)
	defer s.Close()
	block := make([]byte, 1<<20)
	put := func(name string, n int64) piece.Replica {
		r, err := s.Create(storetest.ID(name), piece.MetadataFor(n, ""))
		require.NoError(t, err)
		return r
	}
	old, used := put("old", 30<<20), put("used", 25<<20)
	require.NoError(t, old.Close())
	spool, err := s.Spool()
	require.NoError(t, err)
	fill := func(p piece.Spool) (err error) {
		for err == nil {
			_, err = p.Write(block)
		}
		return err
	}
	err = fill(spool)
	require.ErrorIs(t, err, piece.ErrSpoolFull)
	assert.ErrorContains(t, err, "raise the quota")
	assert.EqualValues(t, quota/2, spool.Len(), "the task that it becomes needs the same space again")
	assert.LessOrEqual(t, s.Usage().Used, int64(quota))
	_, err = s.Open(storetest.ID("old"))
	assert.ErrorIs(t, err, piece.ErrNotFound, "an unused task was evicted")
	assert.Equal(t, storetest.ID("used"), used.ID())

	second, err := s.Spool()
	require.NoError(t, err)
	_, err = second.Write(block)
	assert.ErrorIs(t, err, piece.ErrSpoolFull, "all spools together may take half")
	require.NoError(t, spool.Close())
	_, err = second.Write(block)
	assert.NoError(t, err)

	more := put("more", 30<<20)
	err = fill(second)
	require.ErrorIs(t, err, piece.ErrNoSpace, "open tasks stay")
	kept := second.Len()
	require.NoError(t, more.Close())
	_, err = second.Write(block)
	require.NoError(t, err, "the same write succeeds when there is space")
	assert.Equal(t, kept+1<<20, second.Len())
	require.NoError(t, used.Close())
	require.NoError(t, second.Close())
}

// A closed store or spool takes no bytes.
func TestSpoolAfterClose(t *testing.T) {
	s, err := diskstore.Open(diskstore.Config{Dir: t.TempDir(), Quota: 1 << 30})
	require.NoError(t, err)
	spool, err := s.Spool()
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = spool.Write([]byte("x"))
	assert.ErrorIs(t, err, piece.ErrClosed)
	_, err = s.Spool()
	assert.ErrorIs(t, err, piece.ErrClosed)
	require.NoError(t, spool.Close())
}
