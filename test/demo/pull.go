package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// pull gets an image from a mirror as containerd does: the tag is resolved with HEAD, then
// come manifest, config and layers by digest, the layers three at a time, every URL with the
// registry's name in ns. Each digest is checked; the bytes are dropped.
type pull struct {
	mirror, registry, repository, tag string

	received atomic.Int64
	took     time.Duration
}

// manifestMax bounds a manifest, in bytes.
const manifestMax = 4 << 20

var manifestTypes = []string{
	typeManifest, "application/vnd.docker.distribution.manifest.v2+json", "*/*",
}

func (p *pull) run(ctx context.Context) error {
	begin := time.Now()
	head, err := p.ask(ctx, http.MethodHead, "manifests/"+p.tag, manifestTypes...)
	if err != nil {
		return err
	}
	head.Body.Close()
	digest := head.Header.Get("Docker-Content-Digest")
	var image manifest
	if err := p.get(ctx, "manifests/"+digest, digest, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, manifestMax)).Decode(&image)
	}, head.Header.Get("Content-Type"), "*/*"); err != nil {
		return err
	}
	blobs := append([]descriptor{image.Config}, image.Layers...)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, b := range blobs {
		g.Go(func() error {
			return p.get(ctx, "blobs/"+b.Digest, b.Digest, func(r io.Reader) error {
				n, err := io.Copy(io.Discard, r)
				if err == nil && n != b.Size {
					err = fmt.Errorf("it has %d bytes, not %d", n, b.Size)
				}
				return err
			}, b.MediaType, "*/*")
		})
	}
	err = g.Wait()
	p.took = time.Since(begin)
	return err
}

// get reads an object and checks its digest.
func (p *pull) get(ctx context.Context, object, digest string, read func(io.Reader) error, accept ...string) error {
	resp, err := p.ask(ctx, http.MethodGet, object, accept...)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body := &counted{r: resp.Body, n: &p.received, h: sha256.New()}
	if err := read(body); err != nil {
		return fmt.Errorf("reading %s: %w", object, err)
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return fmt.Errorf("reading %s: %w", object, err)
	}
	if got := "sha256:" + hex.EncodeToString(body.h.Sum(nil)); got != digest {
		return fmt.Errorf("%s has the digest %s", object, got)
	}
	return nil
}

func (p *pull) ask(ctx context.Context, method, object string, accept ...string) (*http.Response, error) {
	url := fmt.Sprintf("http://%s/v2/%s/%s?ns=%s", p.mirror, p.repository, object, p.registry)
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = accept
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, body)
	}
	return resp, nil
}

// counted counts and hashes what is read.
type counted struct {
	r io.Reader
	n *atomic.Int64
	h hash.Hash
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	c.h.Write(b[:n])
	return n, err
}
