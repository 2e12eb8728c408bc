// Package cve holds one test for each class of fault in the security advisories of Dragonfly, so that a reader finds
// what Darter does instead.
//
// Each test has the name of its advisory, attacks assembled programs like a stranger, and judges only their answers.
// Start at [start], the cluster under attack.
package cve

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/ratelimit"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/programs"
)

const (
	clusterSecret = "b3f1c0a94e7d5826f1e0d9c8b7a69584736251403f2e1d0c"
	otherSecret   = "0c1d2e3f405162738495a6b7c8d9e0f16285d7e4a90c1f3b"
	taskDigest    = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
)

// cluster is a supernode and a dfdaemon with one secret, on loopback.
type cluster struct {
	supernode *supernode.Supernode
	daemon    *daemon.Daemon
	dirs      []string
}

// env returns the settings of a program.
func env(pairs ...string) []string {
	return append(
		[]string{
			"DARTER_CLUSTER_SECRET=" + clusterSecret,
			"DARTER_PEER_LISTEN=127.0.0.1:0",
			"DARTER_API_LISTEN=127.0.0.1:0",
			"DARTER_DRAIN_TIMEOUT=5s",
			"DARTER_CACHE_QUOTA=100MiB",
		},
		pairs...)
}

func start(t *testing.T) *cluster {
	// A careless installation creates the data directories beforehand, open to all users.
	old := syscall.Umask(0)
	t.Cleanup(func() { syscall.Umask(old) })
	c := &cluster{dirs: []string{filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "d")}}
	var top config.Supernode
	require.NoError(
		t,
		config.NewForm("supernode", &top).
			Load(env("DARTER_NODE_DATA_DIR="+c.dirs[0], "DARTER_ADMIN_LISTEN=127.0.0.1:0")),
	)
	var err error
	c.supernode, err = supernode.New(top, nil)
	require.NoError(t, err)
	run(t, c.supernode)
	var cfg config.Dfdaemon
	require.NoError(
		t,
		config.NewForm("dfdaemon", &cfg).
			Load(env("DARTER_NODE_DATA_DIR="+c.dirs[1], "DARTER_MIRROR_LISTEN=127.0.0.1:0",
				"DARTER_SUPERNODES="+c.supernode.Addrs()["api"])),
	)
	c.daemon, err = daemon.New(cfg, nil)
	require.NoError(t, err)
	run(t, c.daemon)
	return c
}

func run(t *testing.T, program interface{ Run(context.Context) error }) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- program.Run(ctx) }()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-ended) })
}

// member returns a client with the certificate that a secret gives.
func member(t *testing.T, of string) *http.Client {
	id, err := identity.New(identity.Config{Secret: secret.String(of), HostID: host.ID(strings.Repeat("ab", 16))})
	require.NoError(t, err)
	d := net.Dialer{Timeout: time.Minute}
	tr := &http.Transport{DialTLSContext: id.WrapDialer(d.DialContext, "http/1.1")}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// answer sends a request and returns the status and the body, or 0 without an answer.
func answer(t *testing.T, c *http.Client, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(b)
}

// memberPaths are the requests between members, with a valid body.
var memberPaths = []struct{ method, path, body string }{
	{"POST", api.PathAnnounce, `{"version":1}`},
	{"POST", api.PathLookups, `{}`},
	{"GET", api.PathPurgeOrders, ``},
	{"POST", api.PathPurgeOrders, `{}`},
	{"GET", api.PathStatus, ``},
	{"GET", api.PathTasks, ``},
	{"GET", api.PathHosts, ``},
}

// TestCVE_2023_27584_HardCodedKey: every installation has the same key.
func TestCVE_2023_27584_HardCodedKey(t *testing.T) {
	c := start(t)
	at := "https://" + c.supernode.Addrs()["api"]
	code, _ := answer(t, member(t, clusterSecret), "GET", at+api.PathStatus, "")
	require.Equal(t, 200, code, "a member is accepted")
	code, text := answer(t, member(t, otherSecret), "GET", at+api.PathStatus, "")
	assert.Equal(t, 0, code, "the secret of another installation opens this one: %s", text)
	t.Run("without a secret all listeners are on loopback", func(t *testing.T) {
		for _, listen := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:0"} {
			var s config.Supernode
			err := config.NewForm("supernode", &s).
				Load([]string{"DARTER_API_LISTEN=" + listen, "DARTER_NODE_DATA_DIR=" + t.TempDir()})
			assert.ErrorContains(t, err, "cluster.secret", listen)
		}
	})
	t.Run("a guessable secret is refused", func(t *testing.T) {
		for _, weak := range []string{"dragonfly", "darter", strings.Repeat("a", 40), "changeme"} {
			_, err := identity.New(
				identity.Config{Secret: secret.String(weak), HostID: host.ID(strings.Repeat("ab", 16))},
			)
			assert.ErrorIs(t, err, identity.ErrWeakSecret, weak)
		}
	})
}

// TestCVE_2025_59345_NoAuthentication: endpoints do not authenticate their callers.
func TestCVE_2025_59345_NoAuthentication(t *testing.T) {
	c := start(t)
	naked := &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	defer naked.CloseIdleConnections()
	for _, at := range []string{c.supernode.Addrs()["api"], c.supernode.Addrs()["peer"], c.daemon.Addrs()["peer"]} {
		for _, p := range memberPaths {
			for _, scheme := range []string{"http", "https"} {
				code, text := answer(t, naked, p.method, scheme+"://"+at+p.path, p.body)
				assert.True(
					t,
					code == 0 || code >= 400,
					"%s %s://%s%s without a certificate: %d %s",
					p.method,
					scheme,
					at,
					p.path,
					code,
					text,
				)
				assert.NotContains(t, text, "assignments")
			}
		}
	}
	t.Run("a listener without TLS is on loopback", func(t *testing.T) {
		var s config.Supernode
		assert.Error(
			t,
			config.NewForm("supernode", &s).
				Load(env("DARTER_ADMIN_LISTEN=0.0.0.0:0", "DARTER_NODE_DATA_DIR="+t.TempDir())),
		)
		var d config.Dfdaemon
		assert.Error(
			t,
			config.NewForm("dfdaemon", &d).
				Load(env("DARTER_API_LISTEN=0.0.0.0:0", "DARTER_NODE_DATA_DIR="+t.TempDir())),
		)
	})
}

// TestCVE_2025_59346_SSRF: a request makes the server connect to an address of its own network.
func TestCVE_2025_59346_SSRF(t *testing.T) {
	c := start(t)
	var asked atomic.Int64
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer inner.Close()
	_, port, err := net.SplitHostPort(inner.Listener.Addr().String())
	require.NoError(t, err)
	for _, target := range []string{inner.URL, "http://localhost:" + port, "http://[::1]:" + port,
		"http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port,
		"http://0x7f000001:" + port, "http://2130706433:" + port, "ftp://127.0.0.1:" + port, "file:///etc/passwd",
		"gopher://127.0.0.1:" + port} {
		code, text := answer(
			t,
			http.DefaultClient,
			"GET",
			"http://"+c.daemon.Addrs()["api"]+api.PathFiles+"?"+url.Values{api.FileURL: {target + "/x"}}.Encode(),
			"",
		)
		assert.GreaterOrEqual(t, code, 400, "%s: %s", target, text)
		assert.NotContains(t, text, "root:")
	}
	for _, registry := range []string{inner.Listener.Addr().String(), "localhost:" + port, "evil.test"} {
		code, text := answer(
			t,
			http.DefaultClient,
			"GET",
			"http://"+c.daemon.Addrs()["mirror"]+"/v2/a/blobs/"+taskDigest+"?ns="+registry,
			"",
		)
		assert.GreaterOrEqual(t, code, 400, "%s: %s", registry, text)
	}
	assert.Zero(t, asked.Load(), "no request to an address of this machine")
}

// TestCVE_2025_59347_TLSNotVerified: certificates are not verified.
func TestCVE_2025_59347_TLSNotVerified(t *testing.T) {
	root, err := programs.Root()
	require.NoError(t, err)
	// names reports whether a piece of code sets a field.
	names := func(in ast.Node, field string) (found bool) {
		ast.Inspect(in, func(n ast.Node) bool {
			id, ok := n.(*ast.Ident)
			found = found || ok && id.Name == field
			return !found
		})
		return found
	}
	for name, file := range sources(t, root) {
		for _, decl := range file.Decls {
			// An operator's pin replaces the verification by authority: one function does both.
			pins := name == "pkg/source/httporigin/pin.go" && names(decl, "VerifyConnection")
			if names(decl, "InsecureSkipVerify") && !pins {
				t.Errorf("%s turns the verification of certificates off", name)
			}
		}
	}
	t.Run("a file from an untrusted server is refused", func(t *testing.T) {
		web := httptest.NewTLSServer(
			http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "evil") }),
		)
		defer web.Close()
		web.Config.ErrorLog = nil
		var cfg config.Dfdaemon
		require.NoError(
			t,
			config.NewForm("dfdaemon", &cfg).
				Load(env("DARTER_NODE_DATA_DIR="+t.TempDir(), "DARTER_MIRROR_LISTEN=127.0.0.1:0",
					"DARTER_FILES_ALLOW_ADDRESSES=127.0.0.0/8")),
		)
		d, err := daemon.New(cfg, nil)
		require.NoError(t, err)
		run(t, d)
		code, text := answer(
			t,
			http.DefaultClient,
			"GET",
			"http://"+d.Addrs()["api"]+api.PathFiles+"?"+url.Values{api.FileURL: {web.URL + "/x"}}.Encode(),
			"",
		)
		assert.GreaterOrEqual(t, code, 400)
		assert.Contains(t, text, "certificate")
	})
}

// TestCVE_2025_59348_RateLimitBypass: some traffic does not count in the rate limit.
func TestCVE_2025_59348_RateLimitBypass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, flows, seconds = 1 << 20, 40, 20
		l := ratelimit.New(rate)
		ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
		defer cancel()
		var passed atomic.Int64
		done := make(chan struct{})
		for i := range flows {
			go func() {
				defer func() { done <- struct{}{} }()
				for n := 1; ; n = n*7%l.Quantum() + 1 { // odd sizes, from one byte up
					if i%4 == 0 { // some flows come and go
						step, quit := context.WithTimeout(ctx, 300*time.Millisecond)
						err := l.Wait(step, n)
						quit()
						if ctx.Err() != nil {
							return
						}
						if err == nil {
							passed.Add(int64(n))
						}
						continue
					}
					if l.Wait(ctx, n) != nil {
						return
					}
					passed.Add(int64(n))
				}
			}()
		}
		for range flows {
			<-done
		}
		assert.LessOrEqual(t, passed.Load(), int64(rate*seconds+2*rate), "no more than the limit passes")
		assert.GreaterOrEqual(t, passed.Load(), int64(rate*seconds/2), "the limit is used")
	})
}

// TestCVE_2025_59349_DirectoryPermissions: other users of the machine can read or change the data.
func TestCVE_2025_59349_DirectoryPermissions(t *testing.T) {
	c := start(t)
	for _, dir := range c.dirs {
		seen := 0
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Type() != fs.ModeSymlink {
				seen++
				assert.Zero(
					t,
					info.Mode().Perm()&0o077,
					"%s is open to others: %s",
					strings.TrimPrefix(path, dir),
					info.Mode(),
				)
			}
			return err
		}))
		assert.Greater(t, seen, 2)
	}
}

// TestCVE_2025_59350_TimingAttack: a secret is compared byte by byte. Members prove by TLS that they have one. Only the
// preheat API for Harbor compares credentials, in constant time.
func TestCVE_2025_59350_TimingAttack(t *testing.T) {
	root, err := programs.Root()
	require.NoError(t, err)
	isReveal := func(e ast.Expr) bool {
		call, ok := e.(*ast.CallExpr)
		if !ok {
			return false
		}
		s, ok := call.Fun.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Reveal"
	}
	isText := func(e ast.Expr) bool {
		lit, ok := e.(*ast.BasicLit)
		return ok && lit.Value == `""`
	}
	const judges = "pkg/preheat/doors/auth.go"
	constant := false
	for name, file := range sources(t, root) {
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && name == judges && s.Sel.Name == "ConstantTimeCompare" {
				constant = true
			}
			if b, ok := n.(*ast.BinaryExpr); ok && (b.Op == token.EQL || b.Op == token.NEQ) &&
				(isReveal(b.X) && !isText(b.Y) || isReveal(b.Y) && !isText(b.X)) {
				t.Errorf("%s compares a secret with ==: take hmac.Equal", name)
			}
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "BasicAuth" {
				if x, ok := s.X.(*ast.Ident); ok && (x.Name == "r" || x.Name == "req" || x.Name == "c") &&
					!strings.HasPrefix(name, "pkg/source/") && name != judges {
					t.Errorf("%s judges passwords: only %s may", name, judges)
				}
			}
			return true
		})
	}
	assert.True(t, constant, "%s compares credentials in constant time", judges)
}

// TestCVE_2025_59351_NilPointer: a body lacks a field that the handler dereferences.
func TestCVE_2025_59351_NilPointer(t *testing.T) {
	c := start(t)
	inside := member(t, clusterSecret)
	bodies := []string{
		"",
		"null",
		"{}",
		"[]",
		"0",
		`""`,
		`{"version":1,"host":null,"entries":null}`,
		`{"version":1,"entries":[null]}`,
		`{"version":1,"entries":[{}]}`,
		`{"version":1,"entries":[{"task":"` + taskDigest + `","event":"started","spec":null}]}`,
		`{"version":1,"entries":[{"task":"` + taskDigest + `","event":"started","spec":{}}]}`,
		`{"question":null}`,
		`[null]`,
		`{"withdrawals":[null]}`,
		`{"a":` + strings.Repeat("[", 10000),
	}
	for _, at := range []string{c.supernode.Addrs()["api"], c.daemon.Addrs()["peer"]} {
		for _, p := range memberPaths {
			for _, body := range bodies {
				code, text := answer(t, inside, p.method, "https://"+at+p.path, body)
				assert.NotEqual(t, 500, code, "%s %s %.60q: %s", p.method, p.path, body, text)
				assert.NotZero(t, code, "%s %s %.60q: %s", p.method, p.path, body, text)
			}
		}
	}
	local := []string{
		"http://" + c.daemon.Addrs()["api"] + api.PathFiles,
		"http://" + c.daemon.Addrs()["api"] + api.PathFiles + "?url=",
		"http://" + c.daemon.Addrs()["api"] + api.PathFiles + "?url=http://",
		"http://" + c.daemon.Addrs()["api"] + api.PathTasks + "/x",
		"http://" + c.supernode.Addrs()["admin"] + api.PathTasks + "/" + taskDigest,
		"http://" + c.daemon.Addrs()["mirror"] + "/v2/",
		"http://" + c.daemon.Addrs()["mirror"] + "/v2//blobs/",
		"http://" + c.daemon.Addrs()["mirror"] + "/v2/a/manifests/?ns=",
	}
	for _, at := range local {
		code, text := answer(t, http.DefaultClient, "GET", at, "")
		assert.NotZero(t, code, "%s: %s", at, text)
		assert.NotEqual(t, 500, code, "%s: %s", at, text)
	}
	code, _ := answer(t, inside, "GET", "https://"+c.supernode.Addrs()["api"]+api.PathStatus, "")
	assert.Equal(t, 200, code, "the program still answers")
}

// TestCVE_2025_59352_ArbitraryFiles: a name from the network becomes a path on the disk.
func TestCVE_2025_59352_ArbitraryFiles(t *testing.T) {
	for _, id := range []string{"../../etc/passwd", "sha256:../../../etc/passwd",
		"sha256:" + strings.Repeat("0", 63) + "/", "sha256:" + strings.Repeat(".", 64), "file:../x",
		"file:/etc/passwd", "",
		"sha256:" + strings.Repeat("0", 64) + "\x00", "SHA256:" + strings.Repeat("0", 64),
		"sha256:" + strings.Repeat("A", 64), `sha256:..\..\x`} {
		_, err := task.ParseID(id)
		assert.Error(t, err, "%q is taken for the name of a task", id)
	}
	c := start(t)
	before := list(t, filepath.Dir(c.dirs[0]))
	inside := member(t, clusterSecret)
	for _, id := range []string{"../../../evil", "sha256:..%2f..%2fevil", "file:../../evil"} {
		body, err := json.Marshal(
			map[string]any{
				"version":    1,
				"host":       map[string]any{"id": strings.Repeat("ab", 16), "addr": "127.0.0.1:1"},
				"generation": 1,
				"entries": []any{
					map[string]any{
						"task":  id,
						"event": "started",
						"spec":  map[string]any{"id": id, "kind": "plain", "url": "http://127.0.0.1:1/x"},
					},
				},
			},
		)
		require.NoError(t, err)
		_, _ = answer(t, inside, "POST", "https://"+c.supernode.Addrs()["api"]+api.PathAnnounce, string(body))
		_, _ = answer(
			t,
			http.DefaultClient,
			"GET",
			"http://"+c.daemon.Addrs()["mirror"]+"/v2/a/blobs/"+id+"?ns=docker.io",
			"",
		)
	}
	assert.Equal(t, before, list(t, filepath.Dir(c.dirs[0])), "no file outside of the data directory")
}

// TestCVE_2025_59353_CertificateForAnyAddress: a service certifies every caller. Darter has no such service: each
// member derives its certificate from the secret, and the certificate names its owner.
func TestCVE_2025_59353_CertificateForAnyAddress(t *testing.T) {
	c := start(t)
	naked := &http.Client{Timeout: time.Minute}
	defer naked.CloseIdleConnections()
	inside := member(t, clusterSecret)
	for _, path := range []string{"/api/v1/certificates", "/api/v1/certificate", "/v1/certificates", "/issue",
		"/api/v1/sign"} {
		code, _ := answer(t, inside, "POST", "https://"+c.supernode.Addrs()["api"]+path, `{"ip":"10.0.0.1"}`)
		assert.Equal(t, 404, code, path)
		for _, at := range []string{c.supernode.Addrs()["admin"], c.daemon.Addrs()["api"]} {
			code, _ = answer(t, naked, "POST", "http://"+at+path, `{"ip":"10.0.0.1"}`)
			assert.True(t, code == 404 || code == 405, "%s%s: %d", at, path, code)
		}
	}
	t.Run("a self-made certificate is refused", func(t *testing.T) {
		web := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
		defer web.Close()
		forged := &http.Client{
			Timeout: time.Minute,
			Transport: &http.Transport{
				TLSClientConfig: &tls.Config{
					InsecureSkipVerify: true,
					Certificates:       web.TLS.Certificates,
					NextProtos:         []string{"http/1.1"},
				},
			},
		}
		defer forged.CloseIdleConnections()
		code, text := answer(t, forged, "GET", "https://"+c.supernode.Addrs()["api"]+api.PathStatus, "")
		assert.Zero(t, code, text)
	})
}

// TestCVE_2025_59354_WeakDigest: MD5 protects the integrity.
func TestCVE_2025_59354_WeakDigest(t *testing.T) {
	for _, id := range []string{"md5:acbd18db4cc2f85cedef654fccc4a4d8", "sha1:0beec7b5ea3f0fdbc95d0dd47f3c5bc275da8a33",
		"crc32:8c736521"} {
		_, err := task.ParseID(id)
		assert.Error(t, err, id)
	}
	root, err := programs.Root()
	require.NoError(t, err)
	for name, file := range sources(t, root) {
		for _, spec := range file.Imports {
			switch strings.Trim(spec.Path.Value, `"`) {
			case "crypto/md5", "crypto/sha1":
				t.Errorf("%s imports %s", name, spec.Path.Value)
			}
		}
	}
}

// TestCVE_2025_59410_TinyFilesInTheClear: small files travel without TLS.
func TestCVE_2025_59410_TinyFilesInTheClear(t *testing.T) {
	c := start(t)
	for _, at := range []string{c.supernode.Addrs()["api"], c.supernode.Addrs()["peer"], c.daemon.Addrs()["peer"]} {
		for _, hello := range []string{"GET " + api.PathStatus + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"\x13BitTorrent protocol\x00\x00\x00\x00\x00\x10\x00\x04" + strings.Repeat("a", 40)} {
			conn, err := net.Dial("tcp", at)
			require.NoError(t, err)
			_, err = io.WriteString(conn, hello)
			require.NoError(t, err)
			// The other side closes connections without TLS; its handshake timeout bounds this read.
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
			b, err := io.ReadAll(conn)
			var late net.Error
			assert.False(t, err != nil && asTimeout(err, &late), "%s keeps a connection that is no TLS", at)
			assert.NotContains(t, string(b), "200 OK", at)
			assert.False(t, bytes.HasPrefix(b, []byte("\x13BitTorrent")), at)
			conn.Close()
		}
	}
}

// TestCVE_2026_24124_JobsWithoutAuthentication: anybody can start jobs. Darter's jobs are purges: members start them
// over TLS, and operators at a loopback port that refuses browsers.
func TestCVE_2026_24124_JobsWithoutAuthentication(t *testing.T) {
	c := start(t)
	naked := &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	defer naked.CloseIdleConnections()
	for _, at := range []string{c.supernode.Addrs()["api"], c.daemon.Addrs()["peer"]} {
		for _, scheme := range []string{"http", "https"} {
			code, text := answer(t, naked, "DELETE", scheme+"://"+at+api.PathPurge+"/"+taskDigest, "")
			assert.True(t, code == 0 || code >= 400, "%d %s", code, text)
			code, text = answer(
				t,
				naked,
				"POST",
				scheme+"://"+at+api.PathPurgeOrders,
				`{"withdrawals":[{"task":"`+taskDigest+`"}]}`,
			)
			assert.True(t, code == 0 || code >= 400, "%d %s", code, text)
		}
	}
	for _, at := range []string{c.supernode.Addrs()["admin"], c.daemon.Addrs()["api"]} {
		code, text := answer(t, naked, "DELETE", "http://"+at+api.PathPurge+"/"+taskDigest, "", "Host", "evil.test")
		assert.GreaterOrEqual(t, code, 400, "a page whose name leads to this machine gave an order: %s", text)
		for _, header := range [][]string{{"Origin", "http://evil.test"}, {"Sec-Fetch-Site", "cross-site"},
			{"Origin", "null"}} {
			code, text = answer(t, naked, "DELETE", "http://"+at+api.PathPurge+"/"+taskDigest, "", header...)
			assert.Equal(t, 403, code, "a page in a browser gave an order: %v %s", header, text)
		}
	}
}

// TestCVE_2026_49254_SecretsReadable: settings show their secrets to every caller.
func TestCVE_2026_49254_SecretsReadable(t *testing.T) {
	c := start(t)
	inside := member(t, clusterSecret)
	paths := []string{
		api.PathStatus,
		api.PathTasks,
		api.PathHosts,
		"/metrics",
		"/readyz",
		"/healthz",
		"/",
		"/debug/pprof/cmdline",
		"/debug/vars",
		"/config",
		"/api/v1/config",
		api.PathPurgeOrders,
	}
	for _, path := range paths {
		for _, at := range []string{"http://" + c.supernode.Addrs()["admin"], "http://" + c.daemon.Addrs()["api"],
			"https://" + c.supernode.Addrs()["api"], "https://" + c.daemon.Addrs()["peer"]} {
			_, text := answer(t, inside, "GET", at+path, "")
			assert.NotContains(t, text, clusterSecret, at+path)
			assert.NotContains(t, text, "PRIVATE KEY", at+path)
		}
	}
	for _, dir := range c.dirs {
		for _, name := range list(t, dir) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			assert.NotContains(t, string(b), clusterSecret, name)
		}
	}
}

// TestCVE_2026_54637_SchedulerSSRF: a scheduler fetches a URL that a stranger names.
func TestCVE_2026_54637_SchedulerSSRF(t *testing.T) {
	c := start(t)
	var asked atomic.Int64
	inner := httptest.NewServer(
		http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); _, _ = io.WriteString(w, "inner") },
		),
	)
	defer inner.Close()
	order := func(i int) string {
		target := fmt.Sprintf("%s/%d", inner.URL, i)
		sum := sha256.Sum256([]byte(target))
		id := fmt.Sprintf("file:%x", sum)
		b, err := json.Marshal(
			map[string]any{
				"version":    1,
				"host":       map[string]any{"id": strings.Repeat("ab", 16), "addr": "127.0.0.1:1"},
				"generation": 1,
				"entries": []any{
					map[string]any{
						"task":  id,
						"event": "started",
						"spec":  map[string]any{"id": id, "kind": task.Plain, "url": target},
					},
				},
			},
		)
		require.NoError(t, err)
		return string(b)
	}
	naked := &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	defer naked.CloseIdleConnections()
	code, text := answer(t, naked, "POST", "https://"+c.supernode.Addrs()["api"]+api.PathAnnounce, order(1))
	assert.Zero(t, code, text)
	// A member may let the supernode fetch files, but not from the supernode's own network.
	inside := member(t, clusterSecret)
	require.Eventually(t, func() bool { // its refusal is known to the owner a moment later
		_, text = answer(t, inside, "POST", "https://"+c.supernode.Addrs()["api"]+api.PathAnnounce, order(2))
		return strings.Contains(text, `"failure"`)
	}, time.Minute, 50*time.Millisecond)
	assert.Contains(t, text, "is not allowed", "the error names the address")
	assert.Zero(t, asked.Load(), "no request to an address of the supernode's machine")
}

func asTimeout(err error, out *net.Error) bool {
	e, ok := err.(net.Error)
	*out = e
	return ok && e.Timeout()
}

// list returns the files below a directory.
func list(t *testing.T, dir string) (names []string) {
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(path, dir+string(filepath.Separator)))
		}
		return err
	}))
	return names
}

// sources parses the programs' source files.
func sources(t *testing.T, root string) map[string]*ast.File {
	files := map[string]*ast.File{}
	for _, below := range []string{"pkg", "cmd"} {
		require.NoError(
			t,
			filepath.WalkDir(filepath.Join(root, below), func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
					return err
				}
				f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
				name, _ := filepath.Rel(root, path)
				files[name] = f
				return err
			}),
		)
	}
	require.Greater(t, len(files), 50)
	return files
}
