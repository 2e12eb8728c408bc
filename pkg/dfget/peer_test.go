package dfget_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/supernode"
)

func TestWithoutADaemonDfgetIsAPeerAsLongAsItRuns(t *testing.T) {
	content := bytes.Repeat([]byte("for all "), 500_000)
	var mu sync.Mutex
	gets := 0
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		if r.Method == http.MethodGet {
			gets++
		}
		mu.Unlock()
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()

	s, end := startSupernode(t)
	defer end()

	nobody := httptest.NewServer(nil)
	nobody.Close()
	for range 2 {
		dir := t.TempDir()
		var told bytes.Buffer
		err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Stderr: &told, Settings: settings(t, nil, func(c *config.Dfget) {
			c.Daemon, c.Supernodes = config.Address(nobody.Listener.Addr().String()), []config.Address{config.Address(s.Addrs()["api"])}
			c.Cluster.Secret, c.Output = word, filepath.Join(dir, "f")
		})}).Run(t.Context())
		require.NoError(t, err)
		holds(t, dir, map[string][]byte{"f": content})
		assert.Contains(t, told.String(), "100% from peers")
	}
	assert.Equal(t, 1, gets, "the supernode asked the origin once for both")

	// With another secret, or none, it is no member; its own word is enough for the file all the same.
	for word, hint := range map[secret.String]bool{"another secret that is long enough, too": false, "": true} {
		dir, before := t.TempDir(), gets
		var told bytes.Buffer
		err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Stderr: &told, Settings: settings(t, nil, func(c *config.Dfget) {
			c.Daemon, c.Supernodes = config.Address(nobody.Listener.Addr().String()), []config.Address{config.Address(s.Addrs()["api"])}
			c.Cluster.Secret, c.Output = word, filepath.Join(dir, "f")
		})}).Run(t.Context())
		require.NoError(t, err)
		assert.Equal(t, before+1, gets)
		assert.Contains(t, told.String(), "f: no supernode took part, the origin was asked directly ("+s.Addrs()["api"]+": ")
		assert.Equal(t, hint, strings.Contains(told.String(), "needs --cluster-secret-file"))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, entries, 1, "the cache is gone")
	}
}

const word secret.String = "a secret that is long enough for a cluster"

func startSupernode(t *testing.T) (s *supernode.Supernode, end func()) {
	var top config.Supernode
	require.NoError(t, config.NewForm("supernode", &top).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB", "DARTER_API_LISTEN=127.0.0.1:0",
		"DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0", "DARTER_CLUSTER_SECRET=" + word.Reveal(),
	}))
	top.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	s, err := supernode.New(top, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return s, sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
}

// TestAPeerGoesOnWithoutItsSupernode has a supernode that ends in the middle of a download.
func TestAPeerGoesOnWithoutItsSupernode(t *testing.T) {
	content := bytes.Repeat([]byte("for all "), 500_000)
	half := len(content) / 2
	s, end := startSupernode(t)
	defer end()
	var first sync.Once
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		stops := false
		if r.Method == http.MethodGet {
			first.Do(func() { stops = true })
		}
		if !stops {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:half])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done() // the supernode's end
	}))
	defer origin.Close()
	nobody := httptest.NewServer(nil)
	nobody.Close()
	dir := t.TempDir()
	go func() {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if info, err := os.Stat(filepath.Join(dir, "f.part")); err == nil && info.Size() > 0 {
				break
			}
		}
		end()
	}()
	var told bytes.Buffer
	err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Stderr: &told, Settings: settings(t, nil, func(c *config.Dfget) {
		c.Daemon, c.Supernodes = config.Address(nobody.Listener.Addr().String()), []config.Address{config.Address(s.Addrs()["api"])}
		c.Cluster.Secret, c.Output = word, filepath.Join(dir, "f")
	})}).Run(t.Context())
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"f": content})
	assert.Contains(t, told.String(), "f: no supernode answers any more, what was missing came from the origin ("+s.Addrs()["api"]+": ")
}
