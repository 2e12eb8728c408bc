package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/pkg/api"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dfget": main})
}

// TestTheCommandLineDoesWhatItSays runs the scripts in testdata against a dfdaemon that is
// played here: it gives every URL its own text, and refuses those under /missing.
func TestTheCommandLineDoesWhatItSays(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathFiles, func(w http.ResponseWriter, r *http.Request) {
		u := r.URL.Query().Get(api.FileURL)
		if strings.Contains(u, "/missing") {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"kind":"refused","status":404,"message":"GET ` + u + `: 404 Not Found"}`))
			return
		}
		w.Header().Set("ETag", `"file:00"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("content of "+u+"\n"+r.Header.Get(api.ForwardPrefix+"X-Word")))
	})
	daemon := httptest.NewServer(mux)
	t.Cleanup(daemon.Close) // scripts run in parallel, after this function
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("DARTER_DAEMON", strings.TrimPrefix(daemon.URL, "http://"))
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
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
