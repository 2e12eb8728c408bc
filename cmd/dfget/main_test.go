package main

import (
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/test/cli"
)

// resumed is the file whose download the scripts interrupt.
var resumed = strings.Repeat("0123456789abcdef", 65536)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dfget": main})
}

// TestScripts runs the scripts in testdata against a fake dfdaemon. It serves every URL with its own text, and
// refuses those under /missing.
func TestScripts(t *testing.T) {
	daemon := httptest.NewServer(fakeDaemon())
	t.Cleanup(daemon.Close) // scripts run in parallel, after this function
	// far is a web server with a certificate for example.com and 127.0.0.1. One proxy connects to it for every
	// host; the other one requires a password.
	far := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(resumed))
	}))
	t.Cleanup(far.Close)
	proxy := httptest.NewServer(connect(t, far.Listener.Addr().String()))
	t.Cleanup(proxy.Close)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	t.Cleanup(refusing.Close)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("DARTER_DAEMON", strings.TrimPrefix(daemon.URL, "http://"))
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("ORIGIN", daemon.URL+"/origin")
			e.Setenv("PROXY", proxy.URL)
			e.Setenv("REFUSING", refusing.URL)
			e.Setenv("FAR", far.URL)
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: far.Certificate().Raw})
			if err := os.WriteFile(filepath.Join(e.WorkDir, "ca.pem"), ca, 0o600); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(e.WorkDir, "resumed"), []byte(resumed), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"signal": cli.Signal,
			"size":   cli.Size,
			// code N COMMAND…: the command ends with exit code N.
			"code": func(ts *testscript.TestScript, neg bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				exit, ok := err.(interface{ ExitCode() int })
				got := "0"
				if ok {
					got = string(rune('0' + exit.ExitCode()))
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if got != args[0] {
					ts.Fatalf("%v ended with code %s, want %s", args[1:], got, args[0])
				}
			},
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// fakeDaemon serves the local API of a dfdaemon, and a web server under /origin.
func fakeDaemon() http.Handler {
	mux := http.NewServeMux()
	// The first GET of /origin/NAME, or through the daemon of /slow/NAME, stops in the middle until the client
	// disconnects.
	var mu sync.Mutex
	begun := map[string]bool{}
	slow := func(w http.ResponseWriter, r *http.Request, name, etag string) {
		mu.Lock()
		first := !begun[name]
		begun[name] = true
		mu.Unlock()
		w.Header().Set("ETag", etag)
		if !first {
			if r.Header.Get("Range") != "bytes=524288-" {
				http.Error(w, "expected a request for the rest", http.StatusTeapot)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(resumed))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(resumed)))
		_, _ = w.Write([]byte(resumed[:524288]))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	mux.HandleFunc("GET /origin/{name}", func(w http.ResponseWriter, r *http.Request) {
		slow(w, r, r.PathValue("name"), `"v1"`)
	})
	mux.HandleFunc("GET "+api.PathFiles, func(w http.ResponseWriter, r *http.Request) {
		u := r.URL.Query().Get(api.FileURL)
		if _, name, ok := strings.Cut(u, "/slow/"); ok {
			slow(w, r, name, `"file:00"`)
			return
		}
		if strings.Contains(u, "/missing") {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"kind":"refused","status":404,"message":"GET ` + u + `: 404 Not Found"}`))
			return
		}
		w.Header().Set("ETag", `"file:00"`)
		text := "content of " + u + "\n" + r.Header.Get(api.ForwardPrefix+"X-Word")
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	})
	return mux
}

// connect is a proxy that only opens tunnels (RFC 9110 §9.3.6), all to one server.
func connect(t *testing.T, to string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "this proxy only connects", http.StatusForbidden)
			return
		}
		up, err := net.Dial("tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		down, early, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer down.Close()
		_, _ = io.WriteString(down, "HTTP/1.1 200 Connected\r\n\r\n")
		go func() {
			_, _ = io.Copy(up, early) // the server may have read some bytes already
			up.Close()
		}()
		_, _ = io.Copy(down, up)
	})
}
