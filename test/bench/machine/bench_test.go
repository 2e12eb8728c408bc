package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEverySystemGivesEveryPeerTheWholeContent(t *testing.T) {
	const size = 5<<20 + 17 // the last piece is short
	content := filepath.Join(t.TempDir(), "content")
	require.NoError(t, writeRandom(content, 1, size))
	want, err := os.ReadFile(content)
	require.NoError(t, err)
	for _, system := range []string{systemHTTP, systemEngine, systemTLS} {
		t.Run(system, func(t *testing.T) {
			a := assignment{System: system, Peers: 3, Content: content, Dir: t.TempDir(), PieceSize: 256 << 10}
			arg, err := json.Marshal(a)
			require.NoError(t, err)
			var out bytes.Buffer
			require.NoError(t, child(string(arg), &out))
			var u usage
			require.NoError(t, json.Unmarshal(out.Bytes(), &u))
			assert.EqualValues(t, 3*size, u.Delivered)
			assert.GreaterOrEqual(t, u.SeedCopies, 1.0, "what peers have came from the seed once at least")
			assert.Positive(t, u.User+u.Sys)
			assert.Positive(t, u.Mallocs)

			files, err := filepath.Glob(filepath.Join(a.Dir, "peer*"))
			require.NoError(t, err)
			if system != systemHTTP {
				files = dataFiles(t, a.Dir)
			}
			require.NotEmpty(t, files)
			whole := 0
			for _, f := range files {
				got, err := os.ReadFile(f)
				require.NoError(t, err)
				if bytes.Equal(want, got) {
					whole++
				}
			}
			if system == systemHTTP {
				assert.Equal(t, 3, whole)
			} else {
				assert.Equal(t, 4, whole, "the seed's own copy, too")
			}
		})
	}
}

// dataFiles lists the files of a crowd's stores that are as long as tasks.
func dataFiles(t *testing.T, dir string) (files []string) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() == "data" {
			files = append(files, path)
		}
		return err
	}))
	return files
}

func TestAWrongPieceEndsTheYardstick(t *testing.T) {
	content := filepath.Join(t.TempDir(), "content")
	require.NoError(t, writeRandom(content, 1, 1<<20))
	m, err := newMesh(assignment{Peers: 2, Content: content, Dir: t.TempDir(), PieceSize: 128 << 10})
	require.NoError(t, err)
	m.digests[3][0] ^= 1
	assert.ErrorContains(t, m.pull(context.Background()), fmt.Sprintf("piece %d", 3))
	require.NoError(t, m.close())
}

// The limit gives a lower bound of the time, on a slow machine too.
func TestAnUploadLimitHoldsOnRealSockets(t *testing.T) {
	const size, rate = 8 << 20, 8 << 20
	content := filepath.Join(t.TempDir(), "content")
	require.NoError(t, writeRandom(content, 1, size))
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			c, err := newCrowd(t.Context(), crowdConfig{peers: 1, content: content, dir: t.TempDir(),
				pieceSize: 1 << 20,
				secure:    secure})
			require.NoError(t, err)
			c.seed.SetLimits(peer.Limits{Upload: rate})
			begun := time.Now()
			require.NoError(t, c.pull(t.Context()))
			took := time.Since(begun)
			assert.GreaterOrEqual(t, took.Seconds(), (size-float64(rate)/25)/rate)
			t.Logf("%d bytes in %s: %.3f of the limit", c.seedSent(), took, float64(c.seedSent())/took.Seconds()/rate)
			require.NoError(t, c.close())
		})
	}
}
