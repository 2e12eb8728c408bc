package doctor_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/doctor"
)

// procs is a /proc of a machine that has been up for an hour.
type procs struct {
	t    *testing.T
	dir  string
	next int
}

func newProcs(t *testing.T) *procs {
	p := &procs{t: t, dir: t.TempDir(), next: 100}
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "uptime"), []byte("3600.00 7000.00\n"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(p.dir, "self"), 0o755))
	return p
}

// run adds a process that sees the files below root and runs for so long.
func (p *procs) run(name, root string, runs time.Duration, args ...string) {
	p.next++
	dir := filepath.Join(p.dir, fmt.Sprint(p.next))
	require.NoError(p.t, os.Mkdir(dir, 0o755))
	line := ""
	for _, a := range append([]string{"/usr/bin/" + name}, args...) {
		line += a + "\x00"
	}
	stat := fmt.Sprintf("%d (%s) S 1 %[1]d %[1]d 0 -1 0 0 0 0 0 1 2 0 0 20 0 9 0 %[3]d 0 0\n", p.next, ") odd (",
		int64((time.Hour-runs).Seconds()*100))
	for file, text := range map[string]string{"comm": name + "\n", "cmdline": line, "stat": stat} {
		require.NoError(p.t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	require.NoError(p.t, os.Symlink(root, filepath.Join(dir, "root")))
}

func TestClientWithOldFiles(t *testing.T) {
	cfg := settings(t)
	cfg.Mirror.Listen = "127.0.0.1:65001"
	files := clientconf.Files{Root: t.TempDir()}
	m := clientconf.Mirror{Addr: "127.0.0.1:65001", Upstreams: []clientconf.Upstream{{Host: "quay.io"}}}
	for _, c := range []clientconf.Client{clientconf.Containerd, clientconf.BuildKit} {
		plan, err := clientconf.Configure(c, files, m, clientconf.Options{})
		require.NoError(t, err)
		require.NoError(t, plan.Apply(files))
	}
	elsewhere := clientconf.Files{Root: t.TempDir()}
	plan, err := clientconf.Configure(clientconf.Containerd, elsewhere, m, clientconf.Options{})
	require.NoError(t, err)
	require.NoError(t, plan.Apply(elsewhere))
	look := func(p *procs, check string) doctor.Finding {
		t.Helper()
		return of(t, examine(t, cfg, func(x *doctor.Config) {
			x.Files, x.Installed, x.Proc = files, func(string) bool { return true }, p.dir
		}), check)
	}

	p := newProcs(t)
	assert.Equal(t, doctor.OK, look(p, "client containerd").Level, "it does not run")
	p.run("containerd-shim", files.Root, time.Minute)
	p.run("containerd", files.Root, time.Minute, "--config", "/run/docker/containerd/containerd.toml")
	p.run("containerd", elsewhere.Root, time.Minute)
	p.run("buildkitd", files.Root, -time.Minute)
	assert.Equal(t, doctor.OK, look(p, "client containerd").Level, "those are others")
	assert.Equal(t, doctor.OK, look(p, "client buildkit").Level, "it began after the change")
	p.run("containerd", files.Root, time.Minute)
	f := look(p, "client containerd")
	assert.Equal(t, doctor.Warn, f.Level)
	assert.Contains(t, f.Found, fmt.Sprintf("process %d started before /etc/containerd/config.toml was changed",
		p.next))
	assert.Equal(t, "run: systemctl restart containerd", f.Do)
}

func TestDockerWithOldFiles(t *testing.T) {
	cfg := settings(t)
	cfg.Mirror.Listen = "127.0.0.1:65001"
	files := clientconf.Files{Root: t.TempDir()}
	m := clientconf.Mirror{Addr: "127.0.0.1:65001", Upstreams: []clientconf.Upstream{{Host: "docker.io"}}}
	plan, err := clientconf.Configure(clientconf.Docker, files, m, clientconf.Options{})
	require.NoError(t, err)
	require.NoError(t, plan.Apply(files))

	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	asks := []string{"https://other.test/"}
	s := &httptest.Server{Listener: l,
		Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assert.Equal(t, "/info", r.URL.Path)
			assert.NoError(t, json.NewEncoder(w).Encode(map[string]any{
				"RegistryConfig": map[string]any{"Mirrors": asks}}))
		})}}
	s.Start()
	defer s.Close()
	look := func(socket string) doctor.Finding {
		t.Helper()
		return of(t, examine(t, cfg, func(x *doctor.Config) {
			x.Mirror, x.Files, x.Installed, x.Proc, x.DockerSocket = m, files, func(string) bool { return true },
				t.TempDir(), socket
		}), "client docker")
	}
	f := look(socket)
	assert.Equal(t, doctor.Warn, f.Level)
	assert.Equal(t, "run: systemctl reload docker", f.Do)
	asks = append(asks, "http://127.0.0.1:65001/")
	assert.Equal(t, doctor.OK, look(socket).Level)
	assert.Equal(t, doctor.OK, look(socket+".none").Level, "it does not run")
}
