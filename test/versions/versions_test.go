// Package versions runs the last commit's programs together with this tree's: no cluster is upgraded in one moment, so
// wire, control API and journal must work with the version before.
//
// Start at [TestNeighbouringVersions].
package versions

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
)

// against returns the revision to compare with: VERSIONS_AGAINST, else HEAD~1, or HEAD if the tree has changes.
func against(t *testing.T, root string) string {
	if rev := os.Getenv("VERSIONS_AGAINST"); rev != "" {
		return rev
	}
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	dirty, err := git("status", "--porcelain", "--untracked-files=no")
	need(t, err, "needs a git checkout (or VERSIONS_AGAINST)")
	rev := "HEAD~1"
	if dirty != "" {
		rev = "HEAD"
	}
	commit, err := git("rev-parse", "--verify", rev)
	need(t, err, "needs an earlier commit; fetch the history with git fetch --unshallow")
	return commit
}

// need skips the test if a requirement is not met; if CI=true it fails the test instead.
func need(t *testing.T, err error, what string) {
	if err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// buildOld builds the programs of an earlier revision.
func buildOld(t *testing.T, root, rev, bin string) {
	source := t.TempDir()
	archive := exec.Command("git", "-C", root, "archive", rev)
	extract := exec.Command("tar", "-x", "-C", source)
	pipe, err := archive.StdoutPipe()
	require.NoError(t, err)
	extract.Stdin = pipe
	require.NoError(t, extract.Start())
	require.NoError(t, archive.Run())
	require.NoError(t, extract.Wait())
	build := exec.Command("go", "build", "-trimpath", "-tags", "nomsgpack", "-ldflags", "-s -w",
		"-o", bin+string(filepath.Separator), "./cmd/...")
	build.Dir = source
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "building %s: %s", rev, out)
}

// program is a running supernode or dfdaemon.
type program struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func start(t *testing.T, binary, admin string, args []string) *program {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	p := &program{cmd: exec.Command(binary, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	require.NoError(t, p.cmd.Start())
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.stop()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s wrote:\n%s", binary, text)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, programs.WaitReady(ctx, http.DefaultClient, admin, p.ended))
	return p
}

// stop sends SIGTERM and waits for the end of the program.
func (p *program) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// pull reads a blob through a mirror and compares its digest.
func pull(t *testing.T, mirror, registry, repository, digest string) {
	url := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", mirror, repository, digest, registry)
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	h := sha256.New()
	_, err = io.Copy(h, resp.Body)
	require.NoError(t, err)
	require.Equal(t, digest, fmt.Sprintf("sha256:%x", h.Sum(nil)))
}

// Programs of the last commit and of this tree work in one cluster, and read each other's data directories.
func TestNeighbouringVersions(t *testing.T) {
	race.Skip(t, "the programs run without the detector")
	root, err := programs.Root()
	require.NoError(t, err)
	rev := against(t, root)
	if err := exec.Command("git", "-C", root, "cat-file", "-e", rev+":cmd/dfdaemon/main.go").Run(); err != nil {
		t.Skipf("commit %s has no dfdaemon; name a later one with VERSIONS_AGAINST", rev)
	}
	old, now := t.TempDir(), t.TempDir()
	buildOld(t, root, rev, old)
	programs.NoRaces(t)
	require.NoError(t, programs.Build(t.Context(), now, "./cmd/..."))

	for name, bins := range map[string]struct{ super, first, second string }{
		"new supernode, old and new nodes": {now, old, now},
		"old supernode, new and old nodes": {old, now, old},
	} {
		for _, secret := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, secret %t", name, secret), func(t *testing.T) {
				registry := registrytest.Start(t, registrytest.Config{})
				content := pattern(5<<20 + 77)
				digest, err := registry.PushBlob(t.Context(), "lib/app", content)
				require.NoError(t, err)
				sent := func() int64 { return registry.Counts().Objects["lib/app/blobs/"+digest].Bytes }
				addrs, err := programs.FreeAddrs(9)
				require.NoError(t, err)
				dir, word := t.TempDir(), ""
				if secret {
					word = secretFile(t)
				}
				super := programs.Supernode{
					Name: "supernode", DataDir: filepath.Join(dir, "supernode"), API: addrs[0], Peer: addrs[1],
					Admin:      addrs[2],
					SecretFile: word, Registry: registry.Host(), RegistryBase: registry.URL(),
				}
				leader := start(t, filepath.Join(bins.super, "supernode"), super.Admin, super.Args())
				nodes := [2]programs.Dfdaemon{}
				daemons := [2]*program{}
				for i, bin := range []string{bins.first, bins.second} {
					nodes[i] = programs.Dfdaemon{
						Name: fmt.Sprintf("node%d", i), DataDir: filepath.Join(dir, fmt.Sprint("node", i)),
						Mirror: addrs[3+3*i], API: addrs[4+3*i], Peer: addrs[5+3*i], Supernode: super.API,
						SecretFile: word, Registry: registry.Host(), RegistryBase: registry.URL(),
					}
					daemons[i] = start(t, filepath.Join(bin, "dfdaemon"), nodes[i].API, nodes[i].Args())
					pull(t, nodes[i].Mirror, registry.Host(), "lib/app", digest)
				}
				assert.EqualValues(t, len(content), sent(), "the registry sends one copy, for every mix of versions")

				// The supernode ends, and each node restarts in the other version on its old directory: it finds and
				// serves its stored pieces without the registry.
				leader.stop()
				for i, bin := range []string{bins.second, bins.first} {
					daemons[i].stop()
					start(t, filepath.Join(bin, "dfdaemon"), nodes[i].API, nodes[i].Args())
					pull(t, nodes[i].Mirror, registry.Host(), "lib/app", digest)
				}
				assert.EqualValues(t, len(content), sent(), "the neighbouring version reads the journal")
			})
		}
	}
	t.Run("supernodes that gossip, and dfget", func(t *testing.T) { gossipAndFiles(t, old, now) })
}

// gossipAndFiles runs two supernodes of different versions that gossip, one node of each version with one of them
// configured, and dfgets that download a file from the node of the other version, or as peers.
func gossipAndFiles(t *testing.T, old, now string) {
	content := pattern(3<<20 + 5)
	var gets atomic.Int32
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			gets.Add(1)
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	addrs, err := programs.FreeAddrs(8 + 2*3)
	require.NoError(t, err)
	take := func() (addr string) { addr, addrs = addrs[0], addrs[1:]; return addr }
	dir, word := t.TempDir(), secretFile(t)
	allow := "--files-allow-addresses=127.0.0.0/8"
	var supers []programs.Supernode
	gossip := ""
	for i, bin := range []string{old, now} {
		name := fmt.Sprint("supernode", i)
		s := programs.Supernode{
			Name: name, DataDir: filepath.Join(dir, name), API: take(), Peer: take(), Admin: take(),
			SecretFile: word, Registry: "registry.test", RegistryBase: "http://registry.test",
		}
		args := append(s.Args(), allow)
		own := take()
		args = append(args, "--gossip-listen="+own)
		if gossip != "" {
			args = append(args, "--gossip-join="+gossip)
		}
		gossip = own
		start(t, filepath.Join(bin, "supernode"), s.Admin, args)
		supers = append(supers, s)
	}
	var nodes []programs.Dfdaemon
	for i, bin := range []string{old, now} {
		name := fmt.Sprint("node", i)
		d := programs.Dfdaemon{
			Name: name, DataDir: filepath.Join(dir, name), Mirror: take(), API: take(), Peer: take(),
			Supernode: supers[1-i].API, SecretFile: word, Registry: "registry.test",
			RegistryBase: "http://registry.test",
		}
		start(t, filepath.Join(bin, "dfdaemon"), d.API, append(d.Args(), allow))
		nodes = append(nodes, d)
	}
	for i, d := range nodes {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			s, err := programs.Status(t.Context(), http.DefaultClient, d.API)
			if assert.NoError(c, err) {
				var alive []string
				for _, o := range s.Owners {
					if o.Alive {
						alive = append(alive, o.Addr)
					}
				}
				assert.ElementsMatch(c, []string{supers[0].API, supers[1].API}, alive, "node %d knows both", i)
			}
		}, time.Minute, 50*time.Millisecond)
	}
	fetch := func(bin string, args ...string) {
		file := filepath.Join(t.TempDir(), "f")
		args = append(args, "--netrc=none", "--progress=json", "-o", file, origin.URL+"/f")
		out, err := exec.Command(filepath.Join(bin, "dfget"), args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(content, got))
		assert.Contains(t, string(out), `"event":"done"`)
	}
	fetch(now, "--daemon="+nodes[0].API)
	fetch(old, "--daemon="+nodes[1].API)
	for i, bin := range []string{now, old} { // with the supernode of the other version
		fetch(bin, "--daemon=127.0.0.1:1", "--supernodes="+supers[i].API, "--cluster-secret-file="+word)
	}
	assert.EqualValues(t, 1, gets.Load(), "the origin sends the file once")
}

// pattern returns n bytes.
func pattern(n int) []byte {
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	return content
}

func secretFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte("a secret that is long enough for a cluster\n"), 0o600))
	return path
}
