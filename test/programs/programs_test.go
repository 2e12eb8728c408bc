package programs

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

func load(t *testing.T, program string, target any, args []string) {
	t.Helper()
	form := config.NewForm(program, target)
	fs := pflag.NewFlagSet(program, pflag.ContinueOnError)
	form.Bind(fs)
	require.NoError(t, fs.Parse(args))
	require.NoError(t, form.Load(nil))
}

func TestCommandLines(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("s", 40)), 0o600))
	upstream := []config.Upstream{{Host: "r.test:5000", URLs: []string{"http://127.0.0.1:5000"}, PlainHTTP: true}}

	var d config.Dfdaemon
	load(t, "dfdaemon", &d, Dfdaemon{
		Name: "n1", DataDir: "/d", Mirror: "127.0.0.1:1", API: "127.0.0.1:2", Peer: "10.0.0.1:3",
		Supernode: "10.0.0.2:4", SecretFile: secret, Registry: "r.test:5000", RegistryBase: "http://127.0.0.1:5000",
	}.Args())
	assert.Equal(t, "n1", d.Node.Name)
	assert.Equal(t, "/d", d.Node.DataDir)
	assert.EqualValues(t, "127.0.0.1:1", d.Mirror.Listen)
	assert.EqualValues(t, "127.0.0.1:2", d.API.Listen)
	assert.EqualValues(t, "10.0.0.1:3", d.Peer.Listen)
	assert.Equal(t, []config.Address{"10.0.0.2:4"}, d.Supernodes)
	assert.Equal(t, secret, d.Cluster.SecretFile)
	assert.Equal(t, upstream, d.Upstreams)

	var s config.Supernode
	load(t, "supernode", &s, Supernode{
		Name: "s1", DataDir: "/d", API: "127.0.0.1:1", Peer: "127.0.0.1:2", Admin: "127.0.0.1:3",
		Registry: "r.test:5000", RegistryBase: "http://127.0.0.1:5000",
	}.Args())
	assert.EqualValues(t, "127.0.0.1:1", s.API.Listen)
	assert.EqualValues(t, "127.0.0.1:2", s.Peer.Listen)
	assert.EqualValues(t, "127.0.0.1:3", s.Admin.Listen)
	assert.Equal(t, upstream, s.Upstreams)
	assert.Empty(t, s.Cluster.SecretFile)
}

func TestFreeAddressesAreFreeAndDiffer(t *testing.T) {
	addrs, err := FreeAddrs(5)
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, a := range addrs {
		assert.False(t, seen[a])
		seen[a] = true
		l, err := net.Listen("tcp", a)
		require.NoError(t, err)
		l.Close()
	}
	assert.Len(t, seen, 5)
}

func TestWaitEnds(t *testing.T) {
	answers, late := []string{`{"ready":false,"missing":["its disk"]}`, `{"ready":true}`}, func() {}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, api.PathStatus, r.URL.Path)
		if len(answers) == 1 {
			late() // the client has read the answer before
		}
		w.Write([]byte(answers[0]))
		if len(answers) > 1 {
			answers = answers[1:]
		}
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	require.NoError(t, WaitReady(t.Context(), http.DefaultClient, addr, nil))

	answers = []string{`{"ready":false,"missing":["its disk"]}`, `{"ready":false}`}
	ctx, cancel := context.WithCancelCause(t.Context())
	late = func() { cancel(errors.New("too late")) }
	err := WaitReady(ctx, http.DefaultClient, addr, nil)
	assert.ErrorContains(t, err, "too late")
	assert.ErrorContains(t, err, "it lacks its disk")

	ended := make(chan struct{})
	close(ended)
	assert.ErrorContains(t, WaitReady(t.Context(), http.DefaultClient, addr, ended), "ended before it was ready")
}
