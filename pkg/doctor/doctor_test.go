package doctor_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/doctor"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/pkg/version"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

const (
	secretOne = "5f1cb1a0d28e4a6f9b0c3d7e11aa22bb33cc44dd55ee66ff7788990011223344"
	secretTwo = "0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b"
)

// settings are those of a dfdaemon on free loopback ports, with no registry.
func settings(t *testing.T) config.Dfdaemon {
	var cfg config.Dfdaemon
	require.NoError(t, config.NewForm("dfdaemon", &cfg).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "data"), "DARTER_CACHE_QUOTA=64MiB",
		"DARTER_MIRROR_LISTEN=127.0.0.1:0", "DARTER_API_LISTEN=127.0.0.1:0", "DARTER_PEER_LISTEN=127.0.0.1:0",
	}))
	cfg.Upstreams = nil
	cfg.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	return cfg
}

// run runs a program until the test is over.
func run(t *testing.T, program interface{ Run(context.Context) error }) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- program.Run(ctx) }()
	t.Cleanup(sync.OnceFunc(func() { cancel(); assert.NoError(t, <-ended) }))
}

// running starts a dfdaemon and gives its settings the addresses that it got.
func running(t *testing.T, cfg config.Dfdaemon) config.Dfdaemon {
	d, err := daemon.New(cfg, nil)
	require.NoError(t, err)
	run(t, d)
	cfg.Mirror.Listen, cfg.API.Listen, cfg.Peer.Listen = config.Address(d.Addrs()["mirror"]),
		config.Address(d.Addrs()["api"]), config.Address(d.Addrs()["peer"])
	return cfg
}

// supernodeOf starts a supernode with a cluster secret, or none.
func supernodeOf(t *testing.T, cluster string) config.Address {
	var cfg config.Supernode
	require.NoError(t, config.NewForm("supernode", &cfg).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "data"), "DARTER_CACHE_QUOTA=64MiB",
		"DARTER_API_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0", "DARTER_PEER_LISTEN=127.0.0.1:0",
	}))
	cfg.Cluster.Secret = secret.String(cluster)
	s, err := supernode.New(cfg, nil)
	require.NoError(t, err)
	run(t, s)
	return config.Address(s.Addrs()["api"])
}

func examine(t *testing.T, cfg config.Dfdaemon, change ...func(*doctor.Config)) []doctor.Finding {
	x := doctor.Config{
		Settings: cfg,
		Mirror: clientconf.Mirror{Addr: string(cfg.Mirror.Listen),
			Upstreams: []clientconf.Upstream{{Host: "quay.io"}}},
		Files: clientconf.Files{Root: t.TempDir()}, Installed: func(string) bool { return false },
	}
	for _, c := range change {
		c(&x)
	}
	return doctor.Examine(t.Context(), x)
}

// of returns what was found by one check.
func of(t *testing.T, list []doctor.Finding, check string) doctor.Finding {
	t.Helper()
	for _, f := range list {
		if f.Check == check {
			return f
		}
	}
	require.Failf(t, "not checked", "%s is not in %v", check, list)
	return doctor.Finding{}
}

func TestHealthyNode(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	cfg := settings(t)
	cfg.Upstreams = []config.Upstream{{Host: r.Host(), PlainHTTP: true}}
	cfg.Cluster.Secret = secret.String(secretOne)
	cfg.Supernodes = []config.Address{supernodeOf(t, secretOne)}
	cfg = running(t, cfg)
	found := examine(t, cfg)
	assert.Zero(t, doctor.Failed(found), "%v", found)
	for _, check := range []string{"daemon", "ports", "mirror", "upstream " + r.Host(),
		"supernode " + string(cfg.Supernodes[0]), "disk"} {
		assert.Equal(t, doctor.OK, of(t, found, check).Level, check)
	}
}

func TestAnOpenUpstreamIsReported(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	cfg := settings(t)
	for _, c := range []config.Access{"", "verify", config.AccessCluster} {
		cfg.Upstreams = []config.Upstream{{Host: r.Host(), PlainHTTP: true, Access: c}}
		said := fmt.Sprint(examine(t, cfg))
		assert.Equal(t, c == config.AccessCluster, strings.Contains(said, "access is cluster"), c)
	}
}

func TestNoDaemon(t *testing.T) {
	cfg := settings(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	cfg.Peer.Listen = config.Address(taken.Addr().String())
	cfg.Mirror.Listen, cfg.API.Listen = free(t), free(t)
	found := examine(t, cfg)
	assert.Equal(t, doctor.Fail, of(t, found, "daemon").Level)
	assert.Contains(t, of(t, found, "mirror").Found, "connection refused")
	assert.Contains(t, of(t, found, "ports").Found, "peer.listen: bind: address already in use")
}

// free returns an address without a listener.
func free(t *testing.T) config.Address {
	addrs, err := programs.FreeAddrs(1)
	require.NoError(t, err)
	return config.Address(addrs[0])
}

func TestOtherProgramAtMirrorPort(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	cfg := settings(t)
	cfg.Mirror.Listen = config.Address(s.Listener.Addr().String())
	assert.Contains(t, of(t, examine(t, cfg), "mirror").Found, "not from a registry mirror")
}

func TestMirrorListeners(t *testing.T) {
	cfg := settings(t)
	cfg.Upstreams = []config.Upstream{{Host: "quay.io"}, {Host: "ghcr.io"}}
	cfg.Mirror.Listeners = []config.MirrorListener{{Listen: "127.0.0.1:0", Upstream: "quay.io"}}
	d, err := daemon.New(cfg, nil)
	require.NoError(t, err)
	run(t, d)
	cfg.API.Listen, cfg.Mirror.Listen = config.Address(d.Addrs()["api"]), config.Address(d.Addrs()["mirror"])
	cfg.Mirror.Listeners = []config.MirrorListener{
		{Listen: config.Address(d.Addrs()["mirror of quay.io"]), Upstream: "quay.io"},
		{Listen: free(t), Upstream: "ghcr.io"}}
	found := examine(t, cfg)
	assert.Equal(t, doctor.OK, of(t, found, "mirror").Level)
	assert.Equal(t, doctor.OK, of(t, found, "mirror of quay.io").Level)
	assert.Equal(t, doctor.Fail, of(t, found, "mirror of ghcr.io").Level)
}

func TestProxy(t *testing.T) {
	authority := func(t *testing.T, age time.Duration, hosts ...string) (ca, key string) {
		cert, keyPEM, err := httpproxy.NewAuthority(hosts, time.Now().Add(-age))
		require.NoError(t, err)
		return file(t, string(cert)), file(t, string(keyPEM))
	}
	right, rightKey := authority(t, 0, "quay.io")
	old, oldKey := authority(t, httpproxy.AuthorityLife-24*time.Hour, "quay.io")
	other, otherKey := authority(t, 0, "ghcr.io")
	for name, c := range map[string]struct {
		ca, key string
		hosts   []string
		level   doctor.Level
		says    string
	}{
		"all is well":  {right, rightKey, []string{"quay.io"}, doctor.OK, "responds"},
		"it ends soon": {old, oldKey, []string{"quay.io"}, doctor.Warn, "its certificate authority expires on"},
		"another registry's": {other, otherKey, []string{"quay.io"}, doctor.Fail,
			"tunnels quay.io instead of mirroring: .* may not issue a certificate for quay.io"},
		"none": {"", "", nil, doctor.Warn, "has no certificate authority: tunnels quay.io"},
		"a certificate and another one's key": {right, otherKey, []string{"quay.io"}, doctor.Fail,
			"reading the proxy's authority"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := settings(t)
			cfg.Upstreams = []config.Upstream{{Host: "docker.io"}, {Host: "quay.io"},
				{Host: "plain.test", PlainHTTP: true}}
			cfg.Proxy = config.Proxy{Listen: "127.0.0.1:0", CA: c.ca, CAKey: c.key, Hosts: c.hosts,
				Tunnel: config.TunnelNone}
			running := cfg
			if _, err := httpproxy.LoadAuthority(c.ca, c.key); err != nil {
				running.Proxy.CA, running.Proxy.CAKey = "", "" // it began before the files were changed
			}
			d, err := daemon.New(running, nil)
			require.NoError(t, err)
			run(t, d)
			cfg.API.Listen, cfg.Mirror.Listen, cfg.Proxy.Listen = config.Address(d.Addrs()["api"]),
				config.Address(d.Addrs()["mirror"]), config.Address(d.Addrs()["proxy"])
			var worst doctor.Finding
			for _, f := range examine(t, cfg) {
				if f.Check == "proxy" && (worst.Check == "" || f.Level != doctor.OK) {
					worst = f
				}
			}
			assert.Equal(t, c.level, worst.Level, worst.Found)
			assert.Regexp(t, c.says, worst.Found)
			if worst.Level != doctor.OK {
				assert.NotEmpty(t, worst.Do)
			}
		})
	}
	cfg := settings(t)
	for _, f := range examine(t, cfg) {
		assert.NotEqual(t, "proxy", f.Check, "without a proxy there is no finding about it")
	}
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	cfg.Proxy.Listen = config.Address(s.Listener.Addr().String())
	assert.Contains(t, of(t, examine(t, cfg), "proxy").Found, "not from Darter's proxy")
	cfg.Proxy.Listen = free(t)
	assert.Contains(t, of(t, examine(t, cfg), "proxy").Found, "connection refused")
}

func TestDaemonVersionAndReadiness(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		assert.NoError(t, json.NewEncoder(w).Encode(api.Status{Program: "dfdaemon", Version: "v0.0.1",
			Missing: []string{"data directory: read-only"}}))
	}))
	defer s.Close()
	cfg := settings(t)
	cfg.API.Listen = config.Address(s.Listener.Addr().String())
	found := examine(t, cfg)
	assert.Equal(t, doctor.Fail, found[0].Level)
	assert.Contains(t, found[0].Found, "data directory: read-only")
	assert.Equal(t, doctor.Warn, found[1].Level)
	assert.Contains(t, found[1].Found, "has version v0.0.1")
}

func TestChangeOfTheSecretIsReported(t *testing.T) {
	const first, other = "0a1b2c3d4e5f", "f5e4d3c2b1a0"
	answer := api.Status{Program: "dfdaemon", Version: version.Current(), Ready: true,
		Secrets: []api.SecretStatus{{Fingerprint: first, First: true}}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		assert.NoError(t, json.NewEncoder(w).Encode(answer))
	}))
	defer s.Close()
	cfg := settings(t)
	cfg.API.Listen = config.Address(s.Listener.Addr().String())
	about := func() (list []doctor.Finding) {
		for _, f := range examine(t, cfg) {
			if strings.Contains(f.Found, other) {
				list = append(list, f)
			}
		}
		return list
	}
	assert.Empty(t, about())
	answer.Secrets = append(answer.Secrets, api.SecretStatus{Fingerprint: other, Connections: 3, Address: "10.0.0.1:4",
		Last: time.Now()})
	found := about()
	require.Len(t, found, 1)
	assert.Equal(t, doctor.Warn, found[0].Level)
	assert.Contains(t, found[0].Found, "3 connections use it")
	assert.Contains(t, found[0].Found, "10.0.0.1:4")
	assert.Contains(t, found[0].Do, "remove it")
	answer.RenewingProofs = true
	assert.Contains(t, about()[0].Do, "wait")
	answer.Secrets[1].Removed, answer.RenewingProofs = true, false
	assert.Contains(t, about()[0].Found, "was removed")
}

// Findings with a count name one thing in the singular.
func TestCountsAgreeInNumber(t *testing.T) {
	for n, want := range map[int][]string{
		1: {"1 piece from", "1 connection uses it", "rejected 1 announce from", "1 file with secrets: safe"},
		2: {"2 pieces from", "2 connections use it", "rejected 2 announces from", "2 files with secrets: safe"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			assert.NoError(t, json.NewEncoder(w).Encode(api.Status{Program: "dfdaemon", Ready: true, BadPieces: int64(n),
				Listen:       map[string]string{"api": "127.0.0.1:1"},
				Secrets:      []api.SecretStatus{{Fingerprint: "a", First: true}, {Fingerprint: "b", Connections: n}},
				RefusedHosts: []api.RefusedHost{{Addr: "10.0.0.9:1", Times: n, Reason: "the same ID"}}}))
		}))
		cfg := settings(t)
		cfg.API.Listen = config.Address(s.Listener.Addr().String())
		cfg.Supernodes = []config.Address{cfg.API.Listen}
		cfg.Proxy.CAKey = file(t, "")
		if n == 2 {
			cfg.Cluster.SecretFile = file(t, "")
		}
		var all []string
		for _, f := range examine(t, cfg) {
			all = append(all, f.Found)
		}
		for _, text := range want {
			assert.Contains(t, strings.Join(all, "\n"), text)
		}
		s.Close()
	}
}

// expired is a TLS server whose certificate was good in the past.
func expired(t *testing.T) (addr, ca string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour),
		NotAfter:    time.Now().Add(-24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), pemFile(t, "CERTIFICATE", der)
}

func TestRunningDaemonSettings(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.NoError(t, json.NewEncoder(w).Encode(api.Status{Program: "dfdaemon", Version: version.Current(),
			Ready:  true,
			Owners: []api.OwnerStatus{{Addr: "10.0.0.1:65000", Alive: true}, {Addr: "10.0.0.9:65002", Standby: true}},
			Pulls: &api.Outcomes{OK: 5, Failed: 2, Failure: &api.Failed{At: time.Now(), Name: "quay.io/a/b",
				Error: "no route to host"}},
		}))
	}))
	defer s.Close()
	cfg := settings(t)
	cfg.API.Listen = config.Address(s.Listener.Addr().String())
	found := examine(t, cfg)
	f := of(t, found, "supernodes")
	assert.Equal(t, doctor.Warn, f.Level)
	assert.Contains(t, f.Found, "the running daemon knows 10.0.0.1:65000")
	assert.NotContains(t, f.Found, "10.0.0.9", "a standby is in no settings")
	assert.Contains(t, f.Do, "--config")
	var warnings []string
	for _, f := range found {
		if f.Check == "daemon" && f.Level == doctor.Warn {
			warnings = append(warnings, f.Found)
		}
	}
	require.Len(t, warnings, 1)
	assert.Contains(t, warnings[0], "2 of 7 pulls failed")
	assert.Contains(t, warnings[0], "quay.io/a/b: no route to host")
}

func TestUnreachableRegistries(t *testing.T) {
	secure := registrytest.Start(t, registrytest.Config{TLS: true})
	mutual := registrytest.Start(t, registrytest.Config{TLS: true, ClientCert: true})
	clear := registrytest.Start(t, registrytest.Config{})
	basic := registrytest.Start(t, registrytest.Config{Auth: registrytest.Basic,
		Users: map[string]registrytest.User{"ann": {Password: "right"}}})
	bearer := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{"ann": {Password: "right"}}})
	right, wrong := file(t, "right\n"), file(t, "wrong-and-secret\n")
	ca := file(t, string(secure.CA()))
	old, oldCA := expired(t)
	key := pinAt(t, secure.Host())
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer sick.Close()

	for name, c := range map[string]struct {
		up    config.Upstream
		level doctor.Level
		says  string
	}{
		"reached":              {config.Upstream{Host: secure.Host(), CA: ca}, doctor.OK, "responds"},
		"an unknown authority": {config.Upstream{Host: secure.Host()}, doctor.Fail, "does not trust the authority"},
		"another name": {config.Upstream{Host: "r.test", URLs: []string{strings.Replace(secure.URL(), "127.0.0.1",
			"127.0.0.2", 1)}, CA: ca}, doctor.Fail, "TLS: its certificate is for another name|refuses connections"},
		"an expired certificate": {config.Upstream{Host: old, CA: oldCA}, doctor.Fail,
			"TLS: its certificate is not valid now"},
		"no client certificate": {config.Upstream{Host: mutual.Host(), CA: file(t, string(mutual.CA()))}, doctor.Fail,
			"TLS: it rejects this node"},
		"the certificate of an unknown authority": {config.Upstream{Host: secure.Host()}, doctor.Fail,
			`its certificate: subject ".*names ".*127\.0\.0\.1.* valid from .* key ` + regexp.QuoteMeta(key)},
		"a pinned key":         {config.Upstream{Host: secure.Host(), Pin: key}, doctor.OK, "responds"},
		"a pinned expired key": {config.Upstream{Host: old, Pin: pinAt(t, old)}, doctor.Warn, "responds with 404"},
		"another key": {config.Upstream{Host: secure.Host(), Pin: "sha256//" + strings.Repeat("A", 43) + "=", CA: ca},
			doctor.Fail, "another key than pin of the upstream.* key " + regexp.QuoteMeta(key)},
		"a server's name": {config.Upstream{Host: secure.Host(), CA: ca, ServerName: "elsewhere.test"}, doctor.Fail,
			"TLS: its certificate is for another name"},
		"plain HTTP":  {config.Upstream{Host: clear.Host()}, doctor.Fail, "TLS: it speaks plain HTTP"},
		"no registry": {config.Upstream{Host: string(free(t)), PlainHTTP: true}, doctor.Fail, "refuses connections"},
		"no such name": {config.Upstream{Host: "registry.invalid"}, doctor.Fail,
			"no such name|the name server does not respond"},
		"a login, and none given": {config.Upstream{Host: basic.Host(), PlainHTTP: true}, doctor.OK,
			"requires a login: clients send their own"},
		"the right password": {config.Upstream{Host: basic.Host(), PlainHTTP: true, Username: "ann",
			PasswordFile: right},
			doctor.OK, `accepts the login of "ann"`},
		"the wrong password": {config.Upstream{Host: basic.Host(), PlainHTTP: true, Username: "ann",
			PasswordFile: wrong},
			doctor.Fail, `rejects the login of "ann"`},
		"the right token": {config.Upstream{Host: bearer.Host(), PlainHTTP: true, Username: "ann", PasswordFile: right},
			doctor.OK, `accepts the login of "ann"`},
		"no token": {config.Upstream{Host: bearer.Host(), PlainHTTP: true, Username: "ann", PasswordFile: wrong},
			doctor.Fail,
			`rejects the login of "ann"`},
		"a docker login": {config.Upstream{Host: bearer.Host(), PlainHTTP: true,
			DockerConfig: dockerConfig(t, bearer.Host(), "right")}, doctor.OK, "accepts the node's login"},
		"a wrong docker login": {config.Upstream{Host: bearer.Host(), PlainHTTP: true,
			DockerConfig: dockerConfig(t, bearer.Host(), "wrong")}, doctor.Fail, "rejects the node's login"},
		"an error": {config.Upstream{Host: sick.Listener.Addr().String(), PlainHTTP: true}, doctor.Warn,
			"responds with 500"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := settings(t)
			cfg.Upstreams = []config.Upstream{c.up}
			f := of(t, examine(t, cfg), "upstream "+c.up.Host)
			assert.Equal(t, c.level, f.Level, f.Found)
			assert.Regexp(t, c.says, f.Found)
			assert.NotContains(t, f.Found+f.Do, "wrong-and-secret")
			if f.Level != doctor.OK {
				assert.NotEmpty(t, f.Do)
			}
		})
	}
}

// pinAt is the pin of the certificate of a server.
func pinAt(t *testing.T, addr string) string {
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	require.NoError(t, err)
	defer conn.Close()
	return httporigin.PinOf(conn.ConnectionState().PeerCertificates[0]).String()
}

// dockerConfig is what docker login leaves behind for ann.
func dockerConfig(t *testing.T, host, password string) string {
	return file(t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host,
		base64.StdEncoding.EncodeToString([]byte("ann:"+password))))
}

func TestDefaultUpstreams(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	cfg := settings(t)
	gone := config.Upstream{Host: string(free(t)), PlainHTTP: true}
	standard := func(x *doctor.Config) { x.Standard = true }
	cfg.Upstreams = []config.Upstream{{Host: r.Host(), PlainHTTP: true}, gone}
	assert.Equal(t, doctor.Warn, of(t, examine(t, cfg, standard), "upstream "+gone.Host).Level)
	assert.Equal(t, doctor.Fail, of(t, examine(t, cfg), "upstream "+gone.Host).Level)
	cfg.Upstreams = []config.Upstream{gone}
	assert.Equal(t, doctor.Fail, of(t, examine(t, cfg, standard), "upstream "+gone.Host).Level,
		"none at all is reached")
}

func TestSupernodes(t *testing.T) {
	same, other, open := supernodeOf(t, secretOne), supernodeOf(t, secretTwo), supernodeOf(t, "")
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	own := settings(t)
	own.Cluster.Secret, own.Supernodes = secret.String(secretOne), []config.Address{same}
	own = running(t, own)
	for name, c := range map[string]struct {
		secret string
		at     config.Address
		level  doctor.Level
		says   string
	}{
		"the same secret":         {secretOne, same, doctor.OK, "belongs to this cluster"},
		"another secret":          {secretOne, other, doctor.Fail, "another cluster secret"},
		"a secret only here":      {secretOne, open, doctor.Fail, "speaks no TLS"},
		"a secret only there":     {"", same, doctor.Fail, "it has a cluster secret, and this node has none"},
		"no secret here or there": {"", open, doctor.OK, "belongs to this cluster"},
		"gone":                    {"", free(t), doctor.Fail, "refuses connections"},
		"a dfdaemon that leads":   {secretOne, own.Peer.Listen, doctor.OK, "belongs to this cluster"},
		"a dfdaemon's own API":    {"", own.API.Listen, doctor.Fail, "not a supernode"},
		"no supernode": {"", config.Address(stranger.Listener.Addr().String()), doctor.Fail,
			"not a supernode"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := settings(t)
			cfg.Cluster.Secret = secret.String(c.secret)
			cfg.Supernodes = []config.Address{c.at}
			f := of(t, examine(t, cfg), "supernode "+string(c.at))
			assert.Equal(t, c.level, f.Level, f.Found)
			assert.Contains(t, f.Found, c.says)
		})
	}
	cfg := settings(t)
	cfg.Supernodes = []config.Address{open, free(t)}
	assert.Equal(t, doctor.Warn, of(t, examine(t, cfg), "supernode "+string(cfg.Supernodes[1])).Level,
		"another one stands in")
}

func TestClocksAndVersions(t *testing.T) {
	for skew, level := range map[time.Duration]doctor.Level{0: doctor.OK, 5 * time.Minute: doctor.Warn,
		-25 * time.Hour: doctor.Fail} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
			assert.NoError(t, json.NewEncoder(w).Encode(api.Status{Program: "supernode", Version: "v0.0.1"}))
		}))
		cfg := settings(t)
		cfg.Supernodes = []config.Address{config.Address(s.Listener.Addr().String())}
		clock, version := doctor.OK, doctor.OK
		for _, f := range examine(t, cfg) {
			if strings.Contains(f.Found, "clock") {
				clock = f.Level
			}
			if strings.Contains(f.Found, "has version v0.0.1") {
				version = f.Level
			}
		}
		if skew < 0 {
			level = doctor.Warn // it answers all the same: members without TLS do not look at clocks
		}
		assert.Equal(t, level, clock, skew)
		assert.Equal(t, doctor.Warn, version)
		s.Close()
	}
}

// Docker and BuildKit give a mirror no login: the doctor says for which registries this node has none either.
func TestClientsWithoutLogin(t *testing.T) {
	cfg := settings(t)
	cfg.Mirror.Listen = "127.0.0.1:65001"
	word := filepath.Join(t.TempDir(), "word")
	require.NoError(t, os.WriteFile(word, []byte("word"), 0o600))
	cfg.Upstreams = []config.Upstream{{Host: "quay.io"}, {Host: "own.test", Username: "u", PasswordFile: word}}
	files := clientconf.Files{Root: t.TempDir()}
	m := clientconf.Mirror{Addr: "127.0.0.1:65001", Upstreams: []clientconf.Upstream{{Host: "quay.io"}}}
	for _, c := range clientconf.Clients() {
		plan, err := clientconf.Configure(c, files, m, clientconf.Options{})
		require.NoError(t, err)
		require.NoError(t, plan.Apply(files))
	}
	says := func(change func(*doctor.Config)) (out []string) {
		for _, f := range examine(t, cfg, func(x *doctor.Config) {
			x.Files, x.Installed = files, func(string) bool { return true }
		}, change) {
			if strings.Contains(f.Found, "private images of quay.io come from the registry itself") {
				assert.Equal(t, doctor.OK, f.Level)
				assert.Contains(t, f.Do, "dockerConfig")
				out = append(out, f.Check)
			}
		}
		return out
	}
	assert.Equal(t, []string{"client docker", "client buildkit"}, says(func(*doctor.Config) {}))
	assert.Empty(t, says(func(x *doctor.Config) { x.Adopted = true }), "its logins are unknown")
	cfg.Upstreams = cfg.Upstreams[1:]
	assert.Empty(t, says(func(*doctor.Config) {}))
}

func TestClients(t *testing.T) {
	cfg := settings(t)
	cfg.Mirror.Listen = "127.0.0.1:65001"
	all := func(x *doctor.Config) { x.Installed = func(string) bool { return true } }
	var files clientconf.Files
	found := examine(t, cfg, all, func(x *doctor.Config) { files = x.Files })
	for _, c := range clientconf.Clients() {
		f := of(t, found, "client "+string(c))
		assert.Equal(t, doctor.Warn, f.Level, c)
		assert.Contains(t, f.Do, "dfdaemon configure "+string(c))
	}
	m := clientconf.Mirror{Addr: "127.0.0.1:65001", Upstreams: []clientconf.Upstream{{Host: "quay.io"}}}
	for _, c := range clientconf.Clients() {
		plan, err := clientconf.Configure(c, files, m, clientconf.Options{})
		require.NoError(t, err)
		require.NoError(t, plan.Apply(files))
	}
	found = examine(t, cfg, all, func(x *doctor.Config) { x.Files = files })
	for _, c := range clientconf.Clients() {
		assert.Equal(t, doctor.OK, of(t, found, "client "+string(c)).Level, c)
	}
	m.DigestsOnly = true
	for _, c := range []clientconf.Client{clientconf.Containerd, clientconf.Podman} {
		plan, err := clientconf.Configure(c, files, m, clientconf.Options{})
		require.NoError(t, err)
		require.NoError(t, plan.Apply(files))
		f := of(t, examine(t, cfg, all, func(x *doctor.Config) { x.Files = files }), "client "+string(c))
		assert.Equal(t, doctor.OK, f.Level)
		assert.Contains(t, f.Found, "for digests")
	}
	skopeo := func(x *doctor.Config) { x.Installed = func(program string) bool { return program == "skopeo" } }
	assert.Equal(t, doctor.OK, of(t, examine(t, cfg, skopeo, func(x *doctor.Config) { x.Files = files }),
		"client podman").Level, "they read the same files")
	require.NoError(t, os.WriteFile(filepath.Join(files.Root, "/etc/containerd/config.toml"),
		[]byte("not TOML"), 0o600))
	f := of(t, examine(t, cfg, all, func(x *doctor.Config) { x.Files = files }), "client containerd")
	assert.Contains(t, f.Found, "cannot be configured for the mirror")
	assert.Equal(t, "clients", of(t, examine(t, cfg), "clients").Check, "no client at all is worth a word")
}

func TestDiskTooSmall(t *testing.T) {
	cfg := settings(t)
	assert.Equal(t, doctor.OK, of(t, examine(t, cfg), "disk").Level)
	cfg.Cache.Quota = 1 << 60
	f := of(t, examine(t, cfg), "disk")
	assert.Equal(t, doctor.Warn, f.Level)
	assert.Contains(t, f.Found, "the cache may grow by")
	in := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(in, nil, 0o600))
	cfg.Node.DataDir = in
	assert.Equal(t, doctor.Fail, of(t, examine(t, cfg), "disk").Level)
	cfg.Node.DataDir = "/proc/darter" // no user may write there, root neither
	assert.Equal(t, doctor.Fail, of(t, examine(t, cfg), "disk").Level)
}

func TestDiskFullOrReadOnly(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.Mkdir(disk, 0o700))
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,nr_inodes=16,mode=0700"); err != nil {
		t.Skipf("mounting a small disk needs root; run the tests as root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	cfg := settings(t)
	cfg.Node.DataDir = disk
	cfg.Cache.Quota = 1 << 10
	small := of(t, examine(t, cfg), "disk")
	assert.Equal(t, doctor.Warn, small.Level, "a disk of 1 MiB")
	assert.Contains(t, small.Found, "are free; a layer that does not fit")
	look := func(says string) {
		t.Helper()
		var all []string
		for _, f := range examine(t, cfg) {
			if f.Check == "disk" && f.Level == doctor.Fail {
				assert.NotEmpty(t, f.Do)
				all = append(all, f.Found)
			}
		}
		if says == "" {
			assert.Empty(t, all)
			return
		}
		assert.Contains(t, strings.Join(all, "; "), says)
	}
	look("")
	filler := filepath.Join(disk, "filler")
	require.ErrorIs(t, os.WriteFile(filler, make([]byte, 2<<20), 0o600), unix.ENOSPC)
	look("the disk is full")
	require.NoError(t, os.Remove(filler))
	for i := range 15 {
		_ = os.WriteFile(filepath.Join(disk, fmt.Sprint(i)), nil, 0o600)
	}
	look("there are no inodes left")
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	look("read-only file system")
}

func TestOpenFiles(t *testing.T) {
	f := of(t, examine(t, settings(t), func(x *doctor.Config) { x.NoFile = 1024 }), "limits")
	assert.Equal(t, doctor.Warn, f.Level)
	assert.Contains(t, f.Found, "1024 open files")
}

func TestWrite(t *testing.T) {
	list := []doctor.Finding{{Level: doctor.OK, Check: "disk", Found: "fine"},
		{Level: doctor.Fail, Check: "mirror", Found: "two\nlines", Do: "start it"}}
	var people, program bytes.Buffer
	require.NoError(t, doctor.Write(&people, list))
	assert.Equal(t, "OK    disk    fine\nFAIL  mirror  two lines\n              → start it\n", people.String())
	require.NoError(t, doctor.WriteJSON(&program, list))
	var back []doctor.Finding
	require.NoError(t, json.Unmarshal(program.Bytes(), &back))
	assert.Equal(t, list, back)
	assert.Equal(t, 1, doctor.Failed(list))
}

// silent accepts and says nothing.
func silent(t *testing.T) config.Address {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return config.Address(l.Addr().String())
}

func TestSilentServers(t *testing.T) {
	cfg := settings(t)
	cfg.Mirror.Listen, cfg.API.Listen = silent(t), silent(t)
	cfg.Supernodes = []config.Address{silent(t)}
	cfg.Upstreams = []config.Upstream{{Host: string(silent(t)), PlainHTTP: true}}
	began := time.Now()
	found := examine(t, cfg)
	t.Logf("took %s", time.Since(began))
	for _, check := range []string{"daemon", "mirror", "upstream " + cfg.Upstreams[0].Host,
		"supernode " + string(cfg.Supernodes[0])} {
		assert.Equal(t, doctor.Fail, of(t, found, check).Level, check)
	}
	assert.Regexp(t, "does not respond in time", of(t, found, "upstream "+cfg.Upstreams[0].Host).Found)
}

func file(t *testing.T, text string) string {
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func pemFile(t *testing.T, kind string, der []byte) string {
	return file(t, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}
