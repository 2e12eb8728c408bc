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

// TestTheCommandLineDoesWhatItSays runs the scripts in testdata beside a web server with one
// file, $ORIGIN/large, that fills all buffers on its way.
func TestTheCommandLineDoesWhatItSays(t *testing.T) {
	content := make([]byte, 48<<20)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(web.Close) // scripts run in parallel, after this function
	cli.Run(t, "ORIGIN="+web.URL)
}
