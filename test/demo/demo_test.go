package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/test/registrytest"
)

func TestAPullChecksWhatItReads(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	img, err := registrytest.NewImage(1, []int64{300e3, 20e3})
	require.NoError(t, err)
	pushed, err := r.Push(t.Context(), repository, tag, img)
	require.NoError(t, err)

	asked := make(chan string, 100)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked <- req.Method + " " + req.URL.Query().Get("ns")
		http.Redirect(w, req, r.URL()+req.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	p := &pull{mirror: strings.TrimPrefix(front.URL, "http://"), registry: "registry.test",
		repository: repository, tag: tag}
	require.NoError(t, p.run(t.Context()))
	assert.Equal(t, pushed.Bytes(), p.received.Load())
	assert.Positive(t, p.took)
	assert.Equal(t, "HEAD registry.test", <-asked, "first the tag")
	assert.Equal(t, "GET registry.test", <-asked, "then the manifest")

	r.Fail(registrytest.Fault{Action: registrytest.ActCorrupt, Match: "blobs/" + pushed.Layers()[0].Digest, At: 1000})
	p = &pull{mirror: r.Host(), registry: "registry.test", repository: repository, tag: tag}
	assert.ErrorContains(t, p.run(t.Context()), pushed.Layers()[0].Digest+" has the digest")

	p = &pull{mirror: r.Host(), registry: "registry.test", repository: repository, tag: "unknown"}
	assert.ErrorContains(t, p.run(t.Context()), "manifests/unknown")
}

func TestRegistry(t *testing.T) {
	r, err := startRegistry(t.TempDir(), repository, tag, []int64{300e3, 20e3})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.stop()) }()
	p := &pull{mirror: r.Host(), registry: r.Host(), repository: repository, tag: tag}
	require.NoError(t, p.run(t.Context()))
	assert.Equal(t, r.size, p.received.Load())
	// The registry counts bytes once the kernel has taken them, which may be after the client has read them.
	assert.Eventually(t, func() bool { return r.sent.Load() >= r.size }, time.Minute, time.Millisecond)
	assert.InDelta(t, r.size, r.sent.Load(), 2000, "headers are counted too")

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		r.URL()+"/v2/"+repository+"/blobs/"+r.layers[0].Digest, nil)
	require.NoError(t, err)
	req.Header.Set("Range", "bytes=100-299")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusPartialContent, resp.StatusCode)
	assert.Equal(t, int64(200), resp.ContentLength)
	for _, path := range []string{"/v2/other/app/blobs/" + r.layers[0].Digest,
		"/v2/" + repository + "/manifests/v2", "/"} {
		resp, err := http.Get(r.URL() + path)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusNotFound, resp.StatusCode, path)
	}
}

func TestCounter(t *testing.T) {
	var out bytes.Buffer
	c := &counter{w: &out}
	for range 3 {
		c.add("%d of 7 packages compiled")
	}
	c.end()
	assert.Equal(t, "  1 of 7 packages compiled\n  3 of 7 packages compiled\n", out.String())
}

func TestTheTableTellsWhatTheRegistrySent(t *testing.T) {
	f := figures{image: 200e6, sent: 201e6, took: 4 * time.Second, nodes: []nodeFigures{
		{took: 3 * time.Second, received: api.Sources{Peers: 150e6, Seeds: 50e6}},
		{took: 4 * time.Second, received: api.Sources{Peers: 160e6, Seeds: 40e6}},
	}}
	var out bytes.Buffer
	f.print(&out, "", "out/demo.json")
	for _, want := range []string{"150 MB", "40 MB", "4.0 s", "201 MB", "1.005 × the image", "400 MB",
		"2.000 × the image", "out/demo.json", "hosts.toml"} {
		assert.Contains(t, out.String(), want)
	}
	path := filepath.Join(t.TempDir(), "demo.json")
	require.NoError(t, f.write(path))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"scenario": "demo/2-nodes"`)
	assert.Contains(t, string(b), fmt.Sprintf(`"value": %v`, 1.005))
}

func TestAChildThatEndsTooEarlyIsTold(t *testing.T) {
	c, err := startChild("sh", filepath.Join(t.TempDir(), "log"), "/bin/sh", "-c", "echo last words; exit 3")
	require.NoError(t, err)
	<-c.ended
	err = c.stop()
	assert.ErrorContains(t, err, "sh ended too early: exit status 3")
	assert.ErrorContains(t, err, "last words")

	c, err = startChild("sleep", filepath.Join(t.TempDir(), "log"), "/bin/sleep", "1000")
	require.NoError(t, err)
	require.NoError(t, c.stop())
}

// The demo says how much temporary space it needs before it builds anything.
func TestSpace(t *testing.T) {
	require.NoError(t, enoughSpace(t.TempDir(), 1))
	err := enoughSpace(t.TempDir(), 1e9)
	require.ErrorContains(t, err, "set TMPDIR to another directory")
	require.ErrorContains(t, enoughSpace(filepath.Join(t.TempDir(), "none"), 1), "set TMPDIR")
}
