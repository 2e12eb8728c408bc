package daemon_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/registrytest"
)

// Secrets that must never be shown. No two have a part in common, so that a failure names the leak.
const (
	wordCluster   = "swordfish-cluster-0123456789abcdef"
	wordAuth      = "swordfish-authorization"
	wordUserinfo  = "swordfish-userinfo"
	wordSignature = "swordfish-signature"
	wordHeader    = "swordfish-header"
	wordProxy     = "swordfish-upstream-proxy"
	wordFiles     = "swordfish-files-proxy"
	wordPassword  = "swordfish-password-file"
	wordRedirect  = "swordfish-redirect"
	wordToken     = "swordfish-token"
)

// shown maps places to the texts that a person or a program can read there.
type shown map[string]string

func (s shown) check(t *testing.T) {
	for where, text := range s {
		assert.NotContains(t, text, "swordfish", where)
		for _, w := range []string{wordAuth, wordPassword, wordProxy, wordFiles} { // as in basic authentication
			for _, user := range []string{"uma:", "robot:"} {
				assert.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte(user+w)), where)
			}
		}
		assert.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte("uma:"+wordUserinfo)), where)
	}
}

// TestNoSecretIsShownAnywhere runs a supernode, a dfdaemon and dfget with every kind of secret,
// with success and with every kind of failure, and searches all of their output.
func TestNoSecretIsShownAnywhere(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 1e6, 20e3)
	picky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="picky"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer picky.Close()
	var mode atomic.Value
	mode.Store("ok")
	content := bytes.Repeat([]byte("a file "), 200_000)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case "forbidden":
			w.WriteHeader(http.StatusForbidden)
		case "error":
			w.WriteHeader(http.StatusInternalServerError)
		case "hang up":
			panic(http.ErrAbortHandler)
		case "redirect":
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere?X-Amz-Signature="+wordRedirect,
				http.StatusTemporaryRedirect)
		case "break off":
			w.Header().Set("ETag", `"v2"`)
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			if r.Method != http.MethodHead {
				_, _ = w.Write(content[:1000])
				panic(http.ErrAbortHandler)
			}
		default:
			w.Header().Set("ETag", `"v1"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}
	}))
	defer web.Close()
	// A proxy that serves requests while it runs.
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.RequestURI = ""
		res, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer res.Body.Close()
		for k, v := range res.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(res.StatusCode)
		_, _ = io.Copy(w, res.Body)
	}))
	defer proxy.Close()

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	common := fmt.Sprintf(`
upstreams:
- {host: "%s", urls: ["%s"], plainHTTP: true, proxy: none}
- {host: proxied.test, plainHTTP: true, proxy: "http://uma:%s@127.0.0.1:1"}
- {host: picky.test, urls: ["%s"], plainHTTP: true, proxy: none, username: robot, passwordFile: "%s"}
cluster: {secret: %s}
files: {allowAddresses: [127.0.0.0/8], proxy: "http://uma:%s@%s"}
cache: {quota: 1GiB}
drainTimeout: 5s
`, r.Host(), r.URL(), wordProxy, picky.URL, write("password", wordPassword), wordCluster, wordFiles,
		proxy.Listener.Addr())
	out := shown{}
	load := func(program string, target any, text string) {
		form, flags := config.NewForm(program, target), pflag.NewFlagSet(program, pflag.ContinueOnError)
		form.Bind(flags)
		require.NoError(t, flags.Parse([]string{"--config", write(program+".yaml", text)}))
		require.NoError(t, form.Load(nil))
		var printed bytes.Buffer
		require.NoError(t, form.Print(&printed))
		assert.Contains(t, printed.String(), "[redacted]")
		out[program+" --print-config"] = printed.String()
	}
	var top config.Supernode
	load("supernode", &top, common+"node: {dataDir: "+dir+
		"/s}\napi: {listen: '127.0.0.1:0'}\npeer: {listen: '127.0.0.1:0'}\nadmin: {listen: '127.0.0.1:0'}\n")
	var lead, led journal
	s, err := supernode.New(top, lead.logger(t, slog.LevelDebug))
	require.NoError(t, err)
	stopS := run(t, s)
	var cfg config.Dfdaemon
	load("dfdaemon", &cfg, common+"node: {dataDir: "+dir+"/d}\nmirror: {listen: '127.0.0.1:0'}\n"+
		"api: {listen: '127.0.0.1:0'}\npeer: {listen: '127.0.0.1:0'}\nsupernodes: ['"+s.Addrs()["api"]+"']\n")
	d, err := daemon.New(cfg, led.logger(t, slog.LevelDebug))
	require.NoError(t, err)
	stopD := run(t, d)

	// Pulls, with a client's own credentials.
	pull := func(name, host, digest string, want int) {
		req, err := http.NewRequest(http.MethodGet,
			fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository, digest, host), nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+wordAuth)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, want, res.StatusCode, "%s: %.300s", name, b)
		if want != http.StatusOK {
			out["answer to the pull "+name] = fmt.Sprint(res.Header, string(b))
		}
	}
	good := p.Layers()[0].Digest
	pull("that succeeds", r.Host(), good, http.StatusOK)
	pull("of what is not there", r.Host(), "sha256:"+strings.Repeat("0", 64), http.StatusNotFound)
	pull("through a proxy that is gone", "proxied.test", good, http.StatusBadGateway)
	pull("of a registry that rejects every login", "picky.test", good, http.StatusUnauthorized)

	// Files, with every kind of credential.
	fetch := func(name string, direct bool, progress string, ok bool) {
		var told, printed bytes.Buffer
		var set config.Dfget
		form, flags := config.NewForm("dfget", &set), pflag.NewFlagSet("dfget", pflag.ContinueOnError)
		form.Bind(flags)
		require.NoError(t, flags.Parse([]string{"-H", "X-Token: " + wordHeader, "--netrc=none", "--retries=0",
			"--progress=" + progress, "--daemon=" + d.Addrs()["api"], "--output=" + filepath.Join(t.TempDir(), "f"),
			fmt.Sprintf("--direct=%t", direct)}))
		require.NoError(t, form.Load(nil))
		require.NoError(t, form.Print(&printed))
		link := strings.Replace(web.URL, "://", "://uma:"+wordUserinfo+"@", 1) + "/" + url.PathEscape(name) +
			"?X-Amz-Signature=" + wordSignature + "&token=" + wordToken
		err := dfget.New(dfget.Config{URLs: []string{link}, Settings: set, Stderr: &told}).Run(t.Context())
		where := fmt.Sprintf("dfget %s, direct %t, ", name, direct)
		assert.Equal(t, ok, err == nil, "%s%v", where, err)
		out[where+"--print-config"], out[where+progress], out[where+"error"] = printed.String(), told.String(),
			fmt.Sprint(err)
	}
	for _, m := range []string{"ok", "forbidden", "error", "hang up", "redirect", "break off"} {
		mode.Store(m)
		fetch(m, false, "json", m == "ok")
		fetch(m, true, "plain", m == "ok")
	}
	mode.Store("ok")
	proxy.Close()
	fetch("without its proxy", false, "plain", false)

	for _, at := range []string{d.Addrs()["api"], s.Addrs()["admin"]} {
		for _, path := range []string{api.PathStatus, api.PathTasks, "/metrics", "/readyz", "/healthz",
			"/debug/pprof/cmdline"} {
			res, err := http.Get("http://" + at + path)
			require.NoError(t, err)
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			res.Body.Close()
			out[at+path] = string(b)
		}
	}
	stopD()
	stopS()
	out["the log of dfdaemon"], out["the log of supernode"] = led.String(), lead.String()
	for _, j := range []*journal{&led, &lead} {
		assert.Contains(t, j.String(), "level=DEBUG")
	}
	assert.Contains(t, led.String(), `msg="pull finished"`)
	out.check(t)
}
