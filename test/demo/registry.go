package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// descriptor names one object of an image, as the OCI image specification does.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"` // bytes
}

// manifest is an OCI image manifest.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// registry serves one image, read-only, and counts every byte that leaves it. It needs the standard library
// alone, so that the first make demo builds little. Tests use the distribution registry of test/registrytest.
type registry struct {
	repository, tag string
	layers          []descriptor
	size            int64 // bytes of the image: manifest, config and layers

	manifest []byte
	digest   string                // of the manifest
	blobs    map[string]descriptor // by digest
	dir      string                // one file a blob

	listener net.Listener
	server   *http.Server
	ended    chan error
	sent     atomic.Int64
}

// startRegistry writes an image with layers of these sizes into dir and serves it on a free loopback port. The
// caller calls stop.
func startRegistry(dir, repository, tag string, sizes []int64) (*registry, error) {
	r := &registry{repository: repository, tag: tag, dir: dir, blobs: map[string]descriptor{},
		ended: make(chan error, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the registry's directory: %w", err)
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest}
	var err error
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	if m.Config, err = r.add(typeConfig, bytes.NewReader(config)); err != nil {
		return nil, err
	}
	for i, size := range sizes {
		// Random bytes, because a layer is compressed. The seed makes each run's image the same.
		content := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
		layer, err := r.add(typeLayer, content)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, layer)
	}
	if r.manifest, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	r.layers = m.Layers
	r.digest = fmt.Sprintf("sha256:%x", sha256.Sum256(r.manifest))
	r.size += int64(len(r.manifest))

	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("opening the registry's listener: %w", err)
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { r.ended <- r.server.Serve(&countingListener{r.listener, &r.sent}) }()
	return r, nil
}

// add stores one blob.
func (r *registry) add(mediaType string, content io.Reader) (descriptor, error) {
	f, err := os.CreateTemp(r.dir, "blob-")
	if err != nil {
		return descriptor{}, fmt.Errorf("making a blob: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), content)
	if err != nil {
		return descriptor{}, fmt.Errorf("writing a blob: %w", err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if err := os.Rename(f.Name(), filepath.Join(r.dir, sum)); err != nil {
		return descriptor{}, fmt.Errorf("naming a blob: %w", err)
	}
	d := descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: n}
	r.blobs[d.Digest] = d
	r.size += n
	return d, nil
}

// Host is the registry's name, host:port.
func (r *registry) Host() string { return r.listener.Addr().String() }

// URL is where the registry listens.
func (r *registry) URL() string { return "http://" + r.Host() }

// ServeHTTP answers the pulling half of the OCI distribution API.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch path, image := req.URL.Path, "/v2/"+r.repository; {
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		http.Error(w, "this registry serves pulls only", http.StatusMethodNotAllowed)
	case path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case path == image+"/manifests/"+r.tag || path == image+"/manifests/"+r.digest:
		serve(w, req, descriptor{MediaType: typeManifest, Digest: r.digest}, bytes.NewReader(r.manifest))
	default:
		d, ok := r.blobs[filepath.Base(path)]
		if !ok || path != image+"/blobs/"+d.Digest {
			http.Error(w, "no such object", http.StatusNotFound)
			return
		}
		f, err := os.Open(filepath.Join(r.dir, d.Digest[len("sha256:"):]))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer f.Close()
		serve(w, req, d, f)
	}
}

func serve(w http.ResponseWriter, req *http.Request, d descriptor, content io.ReadSeeker) {
	w.Header().Set("Content-Type", d.MediaType)
	w.Header().Set("Docker-Content-Digest", d.Digest)
	w.Header().Set("ETag", `"`+d.Digest+`"`)
	http.ServeContent(w, req, "", time.Time{}, content)
}

func (r *registry) stop() error {
	err := r.server.Close()
	if served := <-r.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// countingListener counts the bytes that its connections send.
type countingListener struct {
	net.Listener
	sent *atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c, l.sent}, nil
}

type countingConn struct {
	net.Conn
	sent *atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}
