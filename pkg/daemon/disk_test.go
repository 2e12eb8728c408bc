package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/test/registrytest"
)

// smallDisk mounts a file system of its own with the given size. Without the permission to mount,
// the test is skipped; the tests of pkg/piece/diskstore and pkg/peer inject faults of disks on
// every machine.
func smallDisk(t *testing.T, size int) (dir string) {
	dir = filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Skipf("mounting a small disk needs root; run the tests as root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// readOnly makes a disk of smallDisk read-only, or writable again.
func readOnly(t *testing.T, dir string, yes bool) {
	flags := uintptr(unix.MS_REMOUNT)
	if yes {
		flags |= unix.MS_RDONLY
	}
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", flags, ""))
}

// fill writes a file until the disk is full.
func fill(t *testing.T, dir string) (file string) {
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	require.NoError(t, err)
	defer f.Close()
	_, err = io.Copy(f, zeros{})
	require.ErrorIs(t, err, unix.ENOSPC)
	return file
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func TestUnusableDataDirectory(t *testing.T) {
	refused := func(t *testing.T, dir string, want ...string) {
		t.Helper()
		cfg := settings(t, nil, "refused")
		cfg.Node.DataDir = dir
		for _, quota := range []config.Size{cfg.Cache.Quota, 0} { // 0 reads the free space first
			cfg.Cache.Quota = quota
			_, err := daemon.New(cfg, nil)
			for _, words := range append(want, "node.dataDir: ", dir, "name another directory") {
				assert.ErrorContains(t, err, words)
			}
		}
	}
	t.Run("read-only", func(t *testing.T) {
		disk := smallDisk(t, 1<<20)
		readOnly(t, disk, true)
		refused(t, filepath.Join(disk, "data"), "read-only file system", "mount it writable")
		readOnly(t, disk, false)
		require.NoError(t, os.Mkdir(filepath.Join(disk, "there"), 0o700))
		readOnly(t, disk, true)
		refused(t, filepath.Join(disk, "there"), "read-only file system", "mount it writable")
	})
	t.Run("full", func(t *testing.T) {
		disk := smallDisk(t, 1<<20)
		fill(t, disk)
		refused(t, filepath.Join(disk, "data"), "no space left on device", "free some space")
	})
	t.Run("of another user", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		require.NoError(t, os.Mkdir(dir, 0o500))
		cfg := settings(t, nil, "stranger")
		cfg.Node.DataDir = dir
		failed := make(chan error)
		go func() {
			if os.Geteuid() == 0 {
				// Root may do everything; for files, this thread acts as another user from here
				// on. It ends with its goroutine.
				goruntime.LockOSThread()
				_, _ = unix.SetfsuidRetUid(65534)
			}
			_, err := daemon.New(cfg, nil)
			failed <- err
		}()
		err := <-failed
		for _, words := range []string{"node.dataDir: ", "permission denied", "chown -R", dir} {
			assert.ErrorContains(t, err, words)
		}
	})
}

func TestReadyReportsAFullDisk(t *testing.T) {
	disk := smallDisk(t, 4<<20)
	cfg := settings(t, nil, "unwritable")
	cfg.Node.DataDir = filepath.Join(disk, "data")
	d, _ := start(t, cfg)
	ready := func() (int, string) {
		res, err := http.Get("http://" + d.Addrs()["api"] + "/readyz")
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(b)
	}
	code, text := ready()
	require.Equal(t, http.StatusOK, code, text)
	filler := fill(t, disk)
	code, text = ready()
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Contains(t, text, "missing data directory: ")
	assert.Contains(t, text, "free some space or inodes on the file system of "+disk)
	assert.Contains(t, strings.Join(status(t, d.Addrs()["api"]).Missing, "\n"), "free some space")
	require.NoError(t, os.Remove(filler))
	code, text = ready()
	assert.Equal(t, http.StatusOK, code, text)
}

// ask gets a blob through a mirror.
func ask(t *testing.T, d *daemon.Daemon, r *registrytest.Registry, p registrytest.Pushed,
	o registrytest.Object) (code int, body []byte) {
	return getURL(t, fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository,
		o.Digest, r.Host()))
}

// askByPath gets it as a client that knows no other server for the blob.
func askByPath(t *testing.T, d *daemon.Daemon, r *registrytest.Registry, p registrytest.Pushed,
	o registrytest.Object) (code int, body []byte) {
	return getURL(t, fmt.Sprintf("http://%s/v2/%s/%s/blobs/%s", d.Addrs()["mirror"], r.Host(), p.Repository, o.Digest))
}

func getURL(t *testing.T, url string) (code int, body []byte) {
	res, err := http.Get(url)
	require.NoError(t, err)
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, body
}

func TestFullDiskServesTheRest(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 3e6, 1.2e6, 1.2e6)
	layers := p.Layers()
	disk := smallDisk(t, 2<<20)
	cfg := settings(t, r, "full")
	cfg.Node.DataDir = filepath.Join(disk, "data")
	d, _ := start(t, cfg)
	code, body := ask(t, d, r, p, layers[0])
	assert.Equal(t, http.StatusInsufficientStorage, code)
	assert.Contains(t, string(body), "no space left on device")
	assert.Contains(t, string(body), "free some space or inodes on the file system of "+disk)
	// A client that knows no other server gets it without the disk.
	code, body = askByPath(t, d, r, p, layers[0])
	assert.Equal(t, http.StatusOK, code)
	assert.Equal(t, layers[0].Digest, string(oci.DigestOf(body)))
	soon(t, d.Addrs()["api"], func(c *assert.CollectT, s api.Status) { // the client may finish before the mirror
		assert.Equal(c, layers[0].Size, s.Served)
		assert.GreaterOrEqual(c, s.Received.Origin, layers[0].Size, "it is counted")
	})
	// Of two files that fit one at a time, the second one replaces the first at once.
	for _, l := range layers[1:] {
		code, body = ask(t, d, r, p, l)
		require.Equal(t, http.StatusOK, code, "%.500s", body)
		assert.Equal(t, l.Size, int64(len(body)))
	}
	assert.Equal(t, 1, status(t, d.Addrs()["api"]).Cache.Tasks)
}

func TestFileThatFillsTheDisk(t *testing.T) {
	content := bytes.Repeat([]byte("unknown length "), 1_000_000)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		_ = http.NewResponseController(w).Flush() // its length is unknown
		if r.Method == http.MethodGet {
			_, _ = w.Write(content)
		}
	}))
	defer origin.Close()
	disk := smallDisk(t, 8<<20)
	cfg := settings(t, nil, "filling")
	cfg.Node.DataDir = filepath.Join(disk, "data")
	d, _ := start(t, cfg)
	require.NoError(t, fetch(t, d, origin.URL+"/f"), "it comes from its origin, past the disk")
	left, err := os.ReadDir(cfg.Node.DataDir)
	require.NoError(t, err)
	for _, e := range left {
		assert.NotContains(t, e.Name(), "spool")
	}
	content = content[:1<<20]
	require.NoError(t, fetch(t, d, origin.URL+"/f"))
}

// fetch runs dfget through a daemon.
func fetch(t *testing.T, d *daemon.Daemon, url string) error {
	var s config.Dfget
	require.NoError(t, config.NewForm("dfget", &s).Load(nil))
	s.Daemon, s.Output, s.Netrc, s.Retries = config.Address(d.Addrs()["api"]), filepath.Join(t.TempDir(), "f"),
		"none", 0
	return dfget.New(dfget.Config{URLs: []string{url}, Settings: s}).Run(t.Context())
}

// A cache with space for one of two files serves both, one right after the other.
func TestSmallCacheServesManyFiles(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("much "), 1_000_000)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	cfg := settings(t, nil, "small")
	cfg.Cache.Quota = 8 << 20
	d, _ := start(t, cfg)
	for i := range 2 {
		require.NoError(t, fetch(t, d, fmt.Sprintf("%s/%d", origin.URL, i)))
	}
	assert.Equal(t, 1, status(t, d.Addrs()["api"]).Cache.Tasks)
}

// The supernode's disk is full: the node, which has room, fetches the layer in its place, and keeps it.
func TestAFullSupernodeCostsNoPull(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 2e6)
	s, _ := lead(t, r, "", "DARTER_NODE_DATA_DIR="+filepath.Join(smallDisk(t, 1<<20), "s"), "DARTER_NODE_NAME=full-one")
	cfg := settings(t, r, "roomy")
	cfg.Supernodes = []config.Address{config.Address(s.Addrs()["api"])}
	d, _ := start(t, cfg)
	layer := p.Layers()[0]
	for _, get := range []func(*testing.T, *daemon.Daemon, *registrytest.Registry, registrytest.Pushed,
		registrytest.Object) (int, []byte){ask, askByPath} {
		code, body := get(t, d, r, p, layer)
		require.Equal(t, http.StatusOK, code, "%.300s", body)
		assert.Equal(t, layer.Digest, string(oci.DigestOf(body)))
	}
	assert.LessOrEqual(t, r.Counts().Object(layer.Digest).GETs, 2, "the supernode's attempt, and the node's")
}
