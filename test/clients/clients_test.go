package clients_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/test/clients"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/silence"
)

// pullLimit bounds a pull on a busy machine; a longer one counts as stuck.
const pullLimit = 2 * time.Minute

// silenceLimit bounds the wait of any client for a byte, also on a busy machine: three times the time in which a mirror
// refuses, and far less than pullLimit. out/clients.json has the figures of an idle machine, with their targets.
const silenceLimit = 30 * time.Second

// site is a registry and one dfdaemon that mirrors it.
type site struct {
	*registrytest.Registry
	t       *testing.T
	mirror  string // host:port
	server  string // host:port of the server that clients ask if the mirror refuses; empty: none
	silence *silence.Relay
	log     *lines
}

// lines holds the log of a dfdaemon, which a failed test prints.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newSite starts a registry and its dfdaemon until the test ends.
func newSite(t *testing.T, cfg registrytest.Config) *site {
	t.Helper()
	return newSiteOf(t, registrytest.Start(t, cfg))
}

// newSiteOf starts a dfdaemon for a running registry. upstream holds further settings as lines of YAML.
func newSiteOf(t *testing.T, r *registrytest.Registry, upstream ...string) *site {
	t.Helper()
	return newSiteWithQuota(t, r, 1<<30, upstream...)
}

// newSiteWithQuota starts it with a cache of that quota, in bytes.
func newSiteWithQuota(t *testing.T, r *registrytest.Registry, quota int64, upstream ...string) *site {
	t.Helper()
	s := &site{Registry: r, t: t, log: &lines{}}
	d := startNode(t, s.log, nodeSettings{url: r.URL(), upstream: upstream, quota: quota})
	s.silence = &silence.Relay{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", d.Addrs()["mirror"])
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go s.silence.Serve(l)
	s.mirror = l.Addr().String()
	return s
}

// nodeSettings is what the dfdaemons of the tests differ in.
type nodeSettings struct {
	// url is that of the registry, and upstream holds further settings of it as lines of YAML.
	url      string
	upstream []string
	// env holds further settings as KEY=VALUE.
	env []string
	// quota of the cache in bytes; 0 is 1 GiB.
	quota int64
}

// config writes the configuration file and returns the variables that every program reads.
func (n nodeSettings) config(t *testing.T) []string {
	t.Helper()
	// Use a name: go-containerregistry refuses a token service at a private address other than the registry's own.
	url := strings.Replace(n.url, "127.0.0.1", "localhost", 1)
	file := filepath.Join(t.TempDir(), "darter.yaml")
	text := fmt.Sprintf("upstreams:\n- host: %s\n  urls: [%s]\n", clients.Registry, url)
	for _, line := range n.upstream {
		text += "  " + line + "\n"
	}
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return append([]string{
		"DARTER_CONFIG=" + file, "DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "node"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_API_LISTEN=127.0.0.1:0", "DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_DRAIN_TIMEOUT=5s",
	}, n.env...)
}

// dfdaemon loads the settings of a dfdaemon.
func (n nodeSettings) dfdaemon(t *testing.T) config.Dfdaemon {
	t.Helper()
	var settings config.Dfdaemon
	require.NoError(t, config.NewForm("dfdaemon", &settings).Load(append([]string{
		"DARTER_NODE_NAME=node", "DARTER_MIRROR_LISTEN=127.0.0.1:0",
		"DARTER_FILES_ALLOW_ADDRESSES=127.0.0.0/8", // for redirects
		"DARTER_MIRROR_DEFAULT_UPSTREAM=" + clients.Registry,
	}, n.config(t)...)))
	if n.quota > 0 {
		settings.Cache.Quota = config.Size(n.quota) // perhaps less than what makes sense
	}
	return settings
}

// startNode runs a dfdaemon until the test ends.
func startNode(t *testing.T, log io.Writer, n nodeSettings) *daemon.Daemon {
	t.Helper()
	return startWith(t, log, n.dfdaemon(t))
}

// startWith is startNode with settings that a test changed.
func startWith(t *testing.T, log io.Writer, settings config.Dfdaemon) *daemon.Daemon {
	t.Helper()
	d, err := daemon.New(settings, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	runProgram(t, "dfdaemon", d, log)
	return d
}

// runProgram runs a program until the test ends, and prints the log of a failed test.
func runProgram(t *testing.T, name string, program interface{ Run(context.Context) error }, log io.Writer) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- program.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
		if t.Failed() {
			t.Logf("the %s logged:\n%s", name, log)
		}
	})
}

// sizes of the layers, compressed, in bytes.
var sizes = []int64{3e6, 1e6, 50e3}

// image pushes an image and resets the counts. Each seed makes another image.
func (s *site) image(repository string, seed uint64) registrytest.Pushed {
	s.t.Helper()
	img, err := registrytest.NewImage(seed, sizes)
	require.NoError(s.t, err)
	p, err := s.Push(s.t.Context(), repository, "v1", img)
	require.NoError(s.t, err)
	s.Reset()
	return p
}

// login holds the credentials of a pull; the zero value means none.
type login struct{ user, password string }

// pulledDir is a directory for what a library pulls. TempDir would name it after the test, and
// regclient refuses a comma in it.
func pulledDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "darter-clients-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// pull pulls an image, only through the mirror, to a directory of its own.
func (s *site) pull(l clients.Library, repository, reference string, who login) (dir string, err error) {
	s.t.Helper()
	dir = pulledDir(s.t)
	ctx, cancel := context.WithTimeoutCause(s.t.Context(), pullLimit, errStuck)
	defer cancel()
	err = l.Pull(ctx, clients.Request{
		Mirror: s.mirror, Server: s.server, Repository: repository, Reference: reference, User: who.user,
		Password: who.password, Dir: dir,
	})
	if err != nil && context.Cause(ctx) != nil {
		require.FailNow(s.t, "the pull is stuck", "no end after %v: %v", pullLimit, err)
	}
	return dir, err
}

type stuck struct{}

func (stuck) Error() string { return "the pull is stuck" }

var errStuck error = stuck{}

// requireRight requires that every object is in dir, with the right bytes.
func requireRight(t *testing.T, dir string, objects []registrytest.Object) {
	t.Helper()
	for _, o := range objects {
		b, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(o.Digest, "sha256:")))
		require.NoError(t, err, "%s %s", o.Kind, o.Digest)
		sum := sha256.Sum256(b)
		require.Equal(t, o.Digest, "sha256:"+hex.EncodeToString(sum[:]), "%s of %d bytes", o.Kind, len(b))
	}
}

// requireNothingWrong requires that every blob in dir matches its digest.
func requireNothingWrong(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	require.NoError(t, err)
	for _, name := range files {
		if len(filepath.Base(name)) != hex.EncodedLen(sha256.Size) {
			continue // a library's own, of a download that it gave up
		}
		f, err := os.Open(name)
		require.NoError(t, err)
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		f.Close()
		require.NoError(t, err)
		require.Equal(t, filepath.Base(name), hex.EncodeToString(sum.Sum(nil)), "a complete blob with wrong bytes")
	}
}

// raced are the libraries that most tests take under the race detector, which looks for races in the dfdaemon: one that
// first asks without credentials, one that never sends the mirror any, and one that resumes nothing.
var raced = []string{"containerd-2", "containers-image", "oras"}

// each runs a test for every library, and under the race detector for those of raced.
func each(t *testing.T, f func(t *testing.T, l clients.Library)) {
	libraries := clients.All()
	if race.Enabled {
		libraries = slices.DeleteFunc(libraries, func(l clients.Library) bool {
			return !slices.Contains(raced, l.Name)
		})
	}
	with(t, libraries, f)
}

// with runs a test for some libraries.
func with(t *testing.T, libraries []clients.Library, f func(t *testing.T, l clients.Library)) {
	for _, l := range libraries {
		t.Run(l.Name, func(t *testing.T) {
			if l.Name == "regclient" {
				race.Skip(t, "regclient 0.11.7 itself has a race, between the backoff of a host and the sorting of "+
					"hosts")
			}
			t.Parallel()
			f(t, l)
		})
	}
}

// Every library pulls, and the registry sends one copy.
func TestPull(t *testing.T) {
	with(t, clients.All(), func(t *testing.T, l clients.Library) {
		s := newSite(t, registrytest.Config{})
		p := s.image("lib/app", 1)
		for _, reference := range []string{"v1", p.Digest, "v1"} {
			dir, err := s.pull(l, p.Repository, reference, login{})
			require.NoError(t, err, "by %s", reference)
			requireRight(t, dir, p.Objects)
		}
		counts := s.Counts()
		assert.LessOrEqual(t, float64(counts.Egress), 1.02*float64(p.Bytes()),
			"bytes of three pulls over bytes of the image")
		for _, o := range p.Objects {
			assert.Equal(t, 1, counts.Object(o.Digest).GETs, "GETs of %s %s", o.Kind, o.Digest)
		}
	})
}

// Every library finds its platform in an index.
func TestIndex(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		s := newSite(t, registrytest.Config{})
		idx, err := registrytest.NewIndex(2, []int64{500e3})
		require.NoError(t, err)
		p, err := s.PushIndex(t.Context(), "lib/multi", "v1", idx)
		require.NoError(t, err)
		s.Reset()
		amd64, err := registrytest.Describe(idx.Images["linux/amd64"])
		require.NoError(t, err)
		for _, reference := range []string{"v1", p.Digest} {
			dir, err := s.pull(l, p.Repository, reference, login{})
			require.NoError(t, err, "by %s", reference)
			requireRight(t, dir, amd64.Objects)
		}
		for _, o := range p.Objects {
			assert.LessOrEqual(t, s.Counts().Object(o.Digest).GETs, 1, "GETs of %s %s", o.Kind, o.Digest)
		}
	})
}

// A private image needs valid credentials, also when it is cached.
func TestPrivateImage(t *testing.T) {
	alice, wrong, bob, nobody := login{"alice", "wonder"}, login{"alice", "wrong"}, login{"bob", "builder"}, login{}
	users := map[string]registrytest.User{
		"alice": {Password: alice.password, Pull: []string{"team/*"}},
		"bob":   {Password: bob.password, Pull: []string{"other/*"}},
		"":      {Pull: []string{"public/*"}},
	}
	for name, cfg := range map[string]registrytest.Config{
		"token service": {Auth: registrytest.Bearer, Users: users},
		"passwords":     {Auth: registrytest.Basic, Users: users},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, l clients.Library) {
				s := newSite(t, cfg)
				p := s.image("team/app", 3)
				strangers := []login{nobody, wrong, bob}
				refused := func(when string) {
					t.Helper()
					for _, who := range strangers {
						dir, err := s.pull(l, p.Repository, "v1", who)
						require.Error(t, err, "%s, %q", when, who)
						dirs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
						if err == nil {
							require.Empty(t, dirs, "%s, %q", when, who)
						}
					}
				}
				refused("before anybody pulled")
				assert.Zero(t, s.Counts().Object(p.Layers()[0].Digest).Bytes)
				if !l.OwnLogin {
					strangers = []login{alice}
					refused("by a client that does not answer a mirror")
					return
				}
				dir, err := s.pull(l, p.Repository, "v1", alice)
				require.NoError(t, err)
				requireRight(t, dir, p.Objects)
				refused("from the cache")
				dir, err = s.pull(l, p.Repository, p.Digest, alice)
				require.NoError(t, err)
				requireRight(t, dir, p.Objects)
				for _, o := range p.Layers() {
					assert.Equal(t, 1, s.Counts().Object(o.Digest).GETs, "GETs of %s %s", o.Kind, o.Digest)
				}

				if cfg.Auth == registrytest.Bearer {
					open := s.image("public/app", 4)
					dir, err = s.pull(l, open.Repository, "v1", nobody)
					require.NoError(t, err, "a public image at a registry with private ones")
					requireRight(t, dir, open.Objects)
				}
				for _, secret := range []string{alice.password, wrong.password, bob.password} {
					assert.NotContains(t, s.log.String(), secret)
				}
			})
		})
	}
}

// A client that answers no mirror's challenge pulls private images from the registry, or with the node's login.
func TestPrivateImageWithoutOwnLogin(t *testing.T) {
	alice := login{"alice", "wonder"}
	cfg := registrytest.Config{Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{alice.user: {Password: alice.password, Pull: []string{"team/*"}}}}
	each(t, func(t *testing.T, l clients.Library) {
		if l.OwnLogin {
			t.Skip("this library answers a mirror's challenge; TestPrivateImage covers it")
		}
		s := newSite(t, cfg)
		p := s.image("team/app", 6)
		s.server = s.Host()
		dir, err := s.pull(l, p.Repository, "v1", alice)
		require.NoError(t, err, "after the mirror's refusal the client tries the registry")
		requireRight(t, dir, p.Objects)

		file := filepath.Join(t.TempDir(), "password")
		require.NoError(t, os.WriteFile(file, []byte(alice.password), 0o600))
		s = newSiteOf(t, s.Registry, "username: "+alice.user, "passwordFile: "+file)
		s.Reset()
		for range 2 {
			dir, err = s.pull(l, p.Repository, "v1", login{})
			require.NoError(t, err, "with the node's login")
			requireRight(t, dir, p.Objects)
		}
		for _, o := range p.Layers() {
			assert.Equal(t, 1, s.Counts().Object(o.Digest).GETs, "GETs of %s %s", o.Kind, o.Digest)
		}
	})
}

// A missing image is reported at once.
func TestNotFound(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		s := newSite(t, registrytest.Config{})
		p := s.image("lib/app", 5)
		_, err := s.pull(l, p.Repository, "v2", login{})
		require.Error(t, err)
		_, err = s.pull(l, "lib/unknown", "v1", login{})
		require.Error(t, err)
		assert.Less(t, s.silence.Longest(), silenceLimit)
	})
}
