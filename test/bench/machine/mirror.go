package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/oci"
)

// mirrorWarm asks for what is here already: how long one client waits for a manifest, and how
// long two hundred at once wait for manifests and for a small layer; and what the registry
// hears of it all. The same files from nginx, where it is, tell how much of that is the machine.
func (b *bench) mirrorWarm(ctx context.Context) error {
	nginx, err := findNginx()
	if err != nil && !errors.Is(err, errMissing) {
		return err
	}
	return b.withCluster(ctx, setup{layers: []int64{1e6}}, func(c *cluster) error {
		byTag := fmt.Sprintf("http://%s/v2/%s/manifests/v1?ns=%s", c.mirror, repository, c.registry.Host())
		head, err := ask(ctx, http.DefaultClient, http.MethodHead, byTag)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, c.dfdaemon.tail())
		}
		head.Body.Close()
		byDigest := fmt.Sprintf("http://%s/v2/%s/manifests/%s?ns=%s", c.mirror, repository,
			head.Header.Get("Docker-Content-Digest"), c.registry.Host())
		for _, url := range []string{byTag, byDigest, c.swarm(0)} { // from here on it is warm
			if _, err := readAll(ctx, http.DefaultClient, url); err != nil {
				return fmt.Errorf("%w\n%s", err, c.dfdaemon.tail())
			}
		}
		scenes := []scene{{"mirror/manifest-by-digest", byDigest}, {"mirror/manifest-by-tag", byTag},
			{"mirror/layer-1-MB", c.swarm(0)}}
		if nginx != "" {
			dir, err := os.MkdirTemp(b.dir, "nginx-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			if err := errors.Join(download(ctx, byDigest, filepath.Join(dir, "manifest")),
				download(ctx, c.direct(0), filepath.Join(dir, "blob"))); err != nil {
				return err
			}
			addr, server, err := startNginx(ctx, nginx, dir)
			if err != nil {
				return err
			}
			defer server.stop()
			scenes = append(scenes, scene{"nginx/manifest", "http://" + addr + "/manifest"},
				scene{"nginx/layer-1-MB", "http://" + addr + "/blob"})
		}
		c.registry.Reset()
		waits := map[string][]time.Duration{}
		for range b.rounds() { // by turns
			for _, x := range scenes {
				for name, how := range map[string]struct {
					clients,
					questions int
				}{"/one-client": {1, b.pickInt(500, 200)},
					"/200-clients": {200, b.pickInt(20, 10)}} {
					took, err := clients(ctx, x.url, how.clients, how.questions)
					if err != nil {
						return err
					}
					waits[x.name+name] = append(waits[x.name+name], took...)
				}
			}
		}
		for _, x := range scenes {
			for _, name := range []string{"/one-client", "/200-clients"} {
				b.percentiles(x.name+name, waits[x.name+name])
			}
		}
		b.out.Lower("mirror/warm", "registry_requests", float64(c.registry.Counts().Requests), "requests")
		return nil
	})
}

// scene is a server and a request to it.
type scene struct{ name, url string }

// percentiles adds what of the waits people ask for.
func (b *bench) percentiles(scenario string, took []time.Duration) {
	slices.Sort(took)
	for _, p := range []struct {
		name string
		of   int
	}{{"p50", 50}, {"p99", 99}} {
		b.out.Lower(scenario, p.name, float64(took[len(took)*p.of/100])/float64(time.Millisecond), "ms")
	}
}

// clients has so many clients, each with a connection of its own that is there before, put so
// many questions one after the other, and returns how long each answer took.
func clients(ctx context.Context, url string, n, questions int) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	ready.Add(n)
	for range n {
		done.Go(func() {
			t := &http.Transport{DisableCompression: true}
			defer t.CloseIdleConnections()
			client := &http.Client{Transport: t}
			_, err := readAll(ctx, client, url)
			ready.Done()
			<-begin
			took := make([]time.Duration, 0, questions)
			for range questions {
				var d time.Duration
				if err == nil {
					d, err = readAll(ctx, client, url)
					took = append(took, d)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	ready.Wait()
	close(begin)
	done.Wait()
	return all, failed
}

// readAll reads a URL to its end and says how long that took.
func readAll(ctx context.Context, c *http.Client, url string) (time.Duration, error) {
	begun := time.Now()
	res, err := ask(ctx, c, http.MethodGet, url)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	if err == nil && n != res.ContentLength {
		err = fmt.Errorf("%s has %d bytes, not %d", url, n, res.ContentLength)
	}
	return time.Since(begun), err
}

// ask puts a question as container runtimes do; anything but 200 is an error.
func ask(ctx context.Context, c *http.Client, method, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header["Accept"] = oci.ManifestTypes()
	res, err := c.Do(req)
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("%s answers %s", url, res.Status)
	}
	return res, err
}
