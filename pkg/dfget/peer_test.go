package dfget_test

import (
	"bytes"
	"context"
	"net"
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

// Without a dfdaemon, dfget is a peer while it runs.
func TestOwnPeer(t *testing.T) {
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

	for range 2 {
		dir := t.TempDir()
		stderr, err := getAsPeer(t, origin.URL+"/f", s, word, filepath.Join(dir, "f"))
		require.NoError(t, err)
		holds(t, dir, map[string][]byte{"f": content})
		assert.Contains(t, stderr, "100% from seeds")
	}
	assert.Equal(t, 1, gets, "the supernode sent one GET to the origin for both")

	// With another secret, or none, it is no member, but it can still download from the origin.
	for word, hint := range map[secret.String]bool{"another secret that is long enough, too": false, "": true} {
		dir, before := t.TempDir(), gets
		stderr, err := getAsPeer(t, origin.URL+"/f", s, word, filepath.Join(dir, "f"))
		require.NoError(t, err)
		assert.Equal(t, before+1, gets)
		note := "f: no supernode took part, the file came directly from the origin (" + s.Addrs()["api"] + ": "
		assert.Contains(t, stderr, note)
		assert.Equal(t, hint, strings.Contains(stderr, "needs --cluster-secret-file"))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		assert.Len(t, entries, 1, "the cache is gone")
	}
}

// getAsPeer downloads a URL without a dfdaemon, with the supernode s.
func getAsPeer(
	t *testing.T, url string, s *supernode.Supernode, word secret.String, file string,
) (stderr string, err error) {
	closed := httptest.NewServer(nil)
	closed.Close()
	var out bytes.Buffer
	set := settings(t, nil, func(c *config.Dfget) {
		c.Daemon = config.Address(closed.Listener.Addr().String())
		c.Supernodes = []config.Address{config.Address(s.Addrs()["api"])}
		c.Cluster.Secret, c.Output = word, file
	})
	err = dfget.New(dfget.Config{URLs: []string{url}, Stderr: &out, Settings: set}).Run(t.Context())
	return out.String(), err
}

const word secret.String = "a secret that is long enough for a cluster"

func startSupernode(t *testing.T) (s *supernode.Supernode, end func()) {
	var top config.Supernode
	require.NoError(t, config.NewForm("supernode", &top).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_API_LISTEN=127.0.0.1:0",
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

// A peer finishes a download after its supernode ends.
func TestOwnPeerSupernodeEnds(t *testing.T) {
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
	dir := t.TempDir()
	go func() {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if info, err := os.Stat(filepath.Join(dir, "f.part")); err == nil && info.Size() > 0 {
				break
			}
		}
		end()
	}()
	stderr, err := getAsPeer(t, origin.URL+"/f", s, word, filepath.Join(dir, "f"))
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"f": content})
	note := "f: no supernode answers any more, the rest came from the origin (" + s.Addrs()["api"] + ": "
	assert.Contains(t, stderr, note)
}

// Ctrl-C ends dfget at once while its own peer waits for a name server.
func TestInterruptDuringTheStart(t *testing.T) {
	asked := make(chan struct{}, 100)
	was := net.DefaultResolver
	defer func() { net.DefaultResolver = was }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	closed := httptest.NewServer(nil)
	closed.Close()
	dir := t.TempDir()
	set := settings(t, nil, func(c *config.Dfget) {
		c.Daemon = config.Address(closed.Listener.Addr().String())
		c.Supernodes = []config.Address{"supernode-0.test:65000"}
		c.Cluster.Secret, c.Output = word, filepath.Join(dir, "f")
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- dfget.New(dfget.Config{URLs: []string{"http://127.0.0.1:9/f"}, Settings: set}).Run(ctx)
	}()
	<-asked
	cancel()
	assert.Equal(t, dfget.Interrupted, dfget.ExitCode(<-ended))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries, "the cache is gone")
}
