package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/test/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dfdaemon": main})
}

// TestScripts runs the scripts in testdata with a web server that serves one file, $ORIGIN/large, which fills all
// buffers between server and client.
func TestScripts(t *testing.T) {
	content := make([]byte, 48<<20)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(web.Close) // scripts run in parallel, after this function
	cli.Run(t, "ORIGIN="+web.URL)
}
