package supernode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/jobs"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/pkg/telemetry"
)

// openPreheats opens the preheat jobs. owners lists the live supernodes; nil for one alone.
func (s *Supernode) openPreheats(owners func() []string) (err error) {
	registries := s.node.Origins.Registries
	s.resolver = access.New(access.Config{Registry: registries, Credentialed: registries.Credentialed,
		Trusted: registries.Listed, FirstByte: registries.FirstByte})
	s.worker = s.node.NewPreheatWorker(nil, func(id task.ID) bool {
		if owners == nil {
			return true
		}
		list := owners()
		return !slices.Contains(list, s.advertised) || rendezvous.Order(string(id), list)[0] == s.advertised
	})
	webhooks, err := s.node.NewWebhooks()
	if err != nil {
		return err
	}
	s.preheats, err = jobs.Open(jobs.Config{
		Dir: s.cfg.Node.DataDir, Host: s.node.Host, Labels: s.node.Labels(), Self: s.advertised, Owners: owners,
		Scheme: s.node.Scheme(), Secure: s.node.Identity.Secure(), Transport: s.node.Transport, Webhooks: webhooks,
		Allow: registries.Allow, Registry: manifests{s}, Worker: s.worker, Now: s.node.Clock, Logger: s.node.Log,
	})
	if err != nil {
		return err
	}
	telemetry.NewPreheats(s.node.Metrics, func() map[string]int {
		by := map[string]int{}
		for _, j := range s.preheats.List() {
			by[string(j.State)]++
		}
		return by
	})
	return nil
}

// manifests reads manifests for preheat jobs by the path of a pull: a lookup at the registry with the job's
// credentials, and the bytes through this host's engine.
type manifests struct{ s *Supernode }

// Find implements [jobs.Registry].
func (m manifests) Find(ctx context.Context, t preheat.Target, reference string, authorization secret.String) (task.ID,
	error) {
	l := access.Lookup{Upstream: t.Upstream, Repository: t.Repository, Kind: task.Manifest, Reference: reference,
		Accept: oci.ManifestTypes(), Authorization: authorization, Anonymous: true, Unchallenged: true}
	if !oci.IsTag(reference) {
		id, err := oci.ParseDigest(reference)
		if err != nil {
			return "", err
		}
		l.ID = id
	}
	found, err := m.s.resolver.Resolve(ctx, l)
	var refused *access.RefusedError
	if errors.As(err, &refused) {
		return "", jobs.AsRefusal(refused.Status, err)
	}
	return found.ID, err
}

// Manifest implements [jobs.Registry].
func (m manifests) Manifest(ctx context.Context, spec task.Spec) ([]byte, string, error) {
	e := m.s.node.Engine
	if err := e.Fetch(ctx, spec); err != nil {
		var f *api.Failure
		if errors.As(err, &f) && !f.Full {
			return nil, "", jobs.AsRefusal(f.Status, err)
		}
		return nil, "", err
	}
	metadata, _ := e.Metadata(spec.ID)
	if metadata.Length > oci.ManifestParsed {
		return nil, "", &jobs.RefusedError{Err: fmt.Errorf("the manifest has %d bytes, more than the %d that are read",
			metadata.Length, oci.ManifestParsed)}
	}
	content, ok := e.ReadAll(spec.ID, oci.ManifestParsed)
	if !ok {
		return nil, "", errors.New("the store lost the manifest again")
	}
	mediaType := metadata.MediaType
	if !oci.NamesContent(mediaType) {
		mediaType = oci.SniffManifest(content)
	}
	return content, mediaType, nil
}

// Referrers implements [jobs.Registry].
func (m manifests) Referrers(ctx context.Context, t preheat.Target, id task.ID,
	authorization secret.String) ([]byte, bool, error) {
	header := http.Header{"Accept": {oci.MediaTypeIndex}}
	if !authorization.IsZero() {
		header.Set("Authorization", authorization.Reveal())
	}
	res, err := m.s.node.Origins.Registries.Do(ctx, source.RegistryRequest{Upstream: t.Upstream, Method: http.MethodGet,
		Path: "/v2/" + t.Repository + "/referrers/" + string(id), Header: header, Anonymous: true})
	if err != nil {
		return nil, false, err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		b, err := io.ReadAll(io.LimitReader(res.Body, oci.ManifestParsed+1))
		return b, true, err
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed:
		return nil, false, nil
	}
	return nil, false, jobs.AsRefusal(res.StatusCode, fmt.Errorf("%s answered %s", t.Upstream, res.Status))
}
