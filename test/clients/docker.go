package clients

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/distribution"
	"github.com/docker/distribution/manifest/manifestlist"
	_ "github.com/docker/distribution/manifest/ocischema"
	_ "github.com/docker/distribution/manifest/schema2"
	"github.com/docker/distribution/registry/client"
	"github.com/docker/distribution/registry/client/auth"
	"github.com/docker/distribution/registry/client/auth/challenge"
	"github.com/docker/distribution/registry/client/transport"
	"github.com/opencontainers/go-digest"
)

// These follow dockerd's use of the library, see its daemon/pkg/registry and distribution/xfer.
const (
	dockerPing  = 15 * time.Second
	dockerTries = 5
)

// dockerPull pulls like dockerd with its own image store (its "graph drivers"), with the library that dockerd uses. It
// names no registry, so the mirror uses its default.
func dockerPull(ctx context.Context, q Request) error {
	base := "http://" + q.Mirror
	plain := http.DefaultTransport.(*http.Transport).Clone()
	plain.DisableKeepAlives = true

	ping := &http.Client{Transport: plain, Timeout: dockerPing}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/", nil)
	if err != nil {
		return err
	}
	res, err := ping.Do(req)
	if err != nil {
		return fmt.Errorf("the version check: %w", err)
	}
	defer res.Body.Close()
	challenges := challenge.NewSimpleManager()
	if err := challenges.AddResponse(res); err != nil {
		return err
	}
	creds := login(q)
	authorizer := auth.NewAuthorizer(challenges, auth.NewTokenHandler(plain, creds, q.Repository, "pull"),
		auth.NewBasicHandler(creds))

	name, err := reference.WithName(q.Repository)
	if err != nil {
		return err
	}
	repository, err := client.NewRepository(name, base, transport.NewTransport(plain, authorizer))
	if err != nil {
		return err
	}
	manifests, err := repository.Manifests(ctx)
	if err != nil {
		return err
	}
	root := digest.Digest(q.Reference)
	if !q.digested() {
		desc, err := repository.Tags(ctx).Get(ctx, q.Reference)
		if err != nil {
			return fmt.Errorf("resolving tag %s: %w", q.Reference, err)
		}
		root = desc.Digest
	}
	return dockerManifest(ctx, q, repository, manifests, root)
}

// dockerManifest pulls a manifest and its blobs; of an index, the image for linux/amd64.
func dockerManifest(ctx context.Context, q Request, r distribution.Repository, manifests distribution.ManifestService,
	d digest.Digest) error {
	m, err := manifests.Get(ctx, d)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	mediaType, content, err := m.Payload()
	if err != nil {
		return err
	}
	if err := write(q.Dir, d.String(), bytes.NewReader(content)); err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	if index, ok := m.(*manifestlist.DeserializedManifestList); ok {
		for _, of := range index.Manifests {
			if of.Platform.OS == "linux" && of.Platform.Architecture == "amd64" {
				return dockerManifest(ctx, q, r, manifests, of.Digest)
			}
		}
		return fmt.Errorf("%s %s names no image for linux/amd64", mediaType, d)
	}
	for _, b := range m.References() {
		if err := dockerBlob(ctx, q.Dir, r, b.Digest); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return nil
}

// dockerBlob downloads a blob in several tries, each of which resumes the last one.
func dockerBlob(ctx context.Context, dir string, r distribution.Repository, d digest.Digest) (err error) {
	var got bytes.Buffer
	for range dockerTries {
		if err = dockerTry(ctx, &got, r, d); err == nil {
			return write(dir, d.String(), &got)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

func dockerTry(ctx context.Context, got *bytes.Buffer, r distribution.Repository, d digest.Digest) error {
	blob, err := r.Blobs(ctx).Open(ctx, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	if n := int64(got.Len()); n > 0 {
		if _, err := blob.Seek(n, io.SeekStart); err != nil {
			got.Reset()
			return err
		}
	}
	_, err = io.Copy(got, blob)
	return err
}

// login returns the request's credentials for every host.
type login Request

func (l login) Basic(*url.URL) (user, password string)   { return l.User, l.Password }
func (l login) RefreshToken(*url.URL, string) string     { return "" }
func (l login) SetRefreshToken(*url.URL, string, string) {}
