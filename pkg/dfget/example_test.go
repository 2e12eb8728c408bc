package dfget_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/dfget"
)

// defaults returns the settings of dfget without flags, environment or file.
func defaults() (s config.Dfget) {
	if err := config.NewForm("dfget", &s).Load(nil); err != nil {
		panic(err)
	}
	s.Netrc, s.Progress = "none", "none"
	return s
}

// Download a file through the dfdaemon of this machine. The file appears under its name when it is complete.
func Example() {
	// A real program uses the address of its dfdaemon's local API; this one answers every request for a file.
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.PathFiles {
			fmt.Fprintln(w, "the file", r.URL.Query().Get(api.FileURL))
		}
	}))
	defer daemon.Close()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	settings := defaults()
	settings.Daemon = config.Address(strings.TrimPrefix(daemon.URL, "http://"))
	settings.Output = filepath.Join(dir, "model.bin")
	getter := dfget.New(dfget.Config{URLs: []string{"https://example.com/model.bin"}, Settings: settings})
	if err := getter.Run(context.Background()); err != nil {
		fmt.Println(err)
		return
	}
	b, err := os.ReadFile(settings.Output)
	fmt.Print(string(b), err, "\n")
	// Output:
	// the file https://example.com/model.bin
	// <nil>
}

// Write a file to a stream, straight from its origin, and check its digest.
func ExampleGetter_Run() {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello\n")
	}))
	defer origin.Close()

	settings := defaults()
	settings.Direct = true
	settings.Output = "-"
	settings.Digest = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	var out bytes.Buffer
	err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Settings: settings, Stdout: &out}).
		Run(context.Background())
	fmt.Printf("%q %v\n", out.String(), err)
	// Output: "hello\n" <nil>
}

// Tell the causes of a failure apart.
func ExampleExitCode() {
	origin := httptest.NewServer(http.NotFoundHandler())
	defer origin.Close()

	settings := defaults()
	settings.Direct = true
	settings.Output = "-"
	err := dfget.New(dfget.Config{URLs: []string{origin.URL + "/f"}, Settings: settings}).Run(context.Background())
	switch code := dfget.ExitCode(err); code {
	case dfget.NotFound:
		fmt.Println("the origin does not have the file")
	default:
		fmt.Println("exit code", code, err)
	}
	// Output: the origin does not have the file
}
