package clients_test

import (
	"bytes"
	"encoding/xml"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
)

// conformanceModule is the OCI distribution-spec's own suite, a program; go.mod names its version.
const conformanceModule = "github.com/opencontainers/distribution-spec/conformance"

// TestConformance runs the suite of the OCI distribution-spec twice: at the registry itself, and with all reading
// requests through the mirror. Every item that passes directly passes through the mirror. The suite pushes random
// content, and deletes none: a mirror serves what it has for as long as a grant lives.
func TestConformance(t *testing.T) {
	race.Skip(t, "the suite asks one request after the other, and takes ten times as long")
	t.Parallel()
	suite := buildConformance(t)
	r := registrytest.Start(t, registrytest.Config{Peculiarity: registrytest.Referrers()})
	directly := runConformance(t, suite, r.Host(), "directly")

	logged := &lines{}
	// The suite moves a tag and asks for it at once.
	d := startNode(t, logged, nodeSettings{url: r.URL(), env: []string{"DARTER_MIRROR_TAG_LIFE=0s"}})
	front, reads := readThrough(t, r.URL(), "http://"+d.Addrs()["mirror"])
	through := runConformance(t, suite, front, "through")

	passed := map[string]int{} // by the last part of an item's name
	for _, name := range slices.Sorted(maps.Keys(directly)) {
		want, got := directly[name], through[name]
		passed["any"] += want.statuses["passed"]
		passed[path.Base(name)] += want.statuses["passed"]
		assert.GreaterOrEqual(t, got.statuses["passed"], want.statuses["passed"],
			"%s\ndirectly: %v\nthrough the mirror: %v\n%s", name, want.statuses, got.statuses, got.output)
		assert.LessOrEqual(t, got.statuses["failure"]+got.statuses["error"],
			want.statuses["failure"]+want.statuses["error"], "%s\n%s", name, got.output)
	}
	assert.ElementsMatch(t, slices.Collect(maps.Keys(directly)), slices.Collect(maps.Keys(through)))
	assert.Greater(t, passed["any"], 400)
	for _, kind := range []string{"referrers", "tag-list", "blob-get", "manifest-by-tag", "manifest-by-digest"} {
		assert.Positive(t, passed[kind], "items %q", kind)
	}
	assert.Greater(t, reads.Load(), int64(400), "requests to the mirror")
	t.Logf("%d items pass directly and through the mirror; it answered %d requests", passed["any"], reads.Load())
}

// buildConformance builds the suite and returns the program. It asks no module proxy: .ci/run fetches the module.
func buildConformance(t *testing.T) string {
	program := filepath.Join(t.TempDir(), "conformance")
	build := exec.Command("go", "build", "-mod=mod", "-o", program, conformanceModule)
	build.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		reason := "the module " + conformanceModule + " is not here (go mod download): " + err.Error() + "\n" + string(out)
		if os.Getenv("CI") != "" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return program
}

// readThrough starts a front that sends reading requests to a mirror, and pushes to the registry. It counts the former.
func readThrough(t *testing.T, registry, mirror string) (host string, reads *atomic.Int64) {
	to := func(target string) *httputil.ReverseProxy {
		u, err := url.Parse(target)
		require.NoError(t, err)
		return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(u)
			r.Out.Host = r.In.Host // the registry names the next step of an upload by it
		}}
	}
	pushes, pulls := to(registry), to(mirror)
	reads = &atomic.Int64{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if !read || strings.Contains(r.URL.Path, "/blobs/uploads/") {
			pushes.ServeHTTP(w, r)
			return
		}
		reads.Add(1)
		pulls.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	return strings.TrimPrefix(front.URL, "http://"), reads
}

// items are those of one name: the suite has one for each blob, for instance.
type items struct {
	// statuses counts passed, skipped, failure and error.
	statuses map[string]int
	// output is what the suite says of those that did not pass.
	output string
}

// runConformance runs the suite and returns its items by name.
func runConformance(t *testing.T, suite, host, repository string) map[string]items {
	dir := t.TempDir()
	run := exec.CommandContext(t.Context(), suite)
	run.Dir = dir
	run.Env = append(os.Environ(), "OCI_REGISTRY="+host, "OCI_TLS=disabled", "OCI_RESULTS_DIR="+dir,
		"OCI_REPO1="+repository+"/one", "OCI_REPO2="+repository+"/two", "OCI_VERSION=1.1",
		"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false")
	var out bytes.Buffer
	run.Stdout, run.Stderr = &out, &out
	_ = run.Run() // 1 where an item failed
	b, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	require.NoError(t, err, "%s", &out)
	var report struct {
		Suites []struct {
			Cases []struct {
				Name   string `xml:"name,attr"`
				Status string `xml:"status,attr"`
				Out    string `xml:"system-out"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	require.NoError(t, xml.Unmarshal(b, &report))
	found := map[string]items{}
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			of, ok := found[c.Name]
			if !ok {
				of.statuses = map[string]int{}
			}
			of.statuses[c.Status]++
			if c.Status != "passed" {
				of.output += c.Out + "\n"
			}
			found[c.Name] = of
		}
	}
	return found
}
