package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

// depthMax bounds indexes inside of indexes.
const depthMax = 4

// Registry is how a supernode reads manifests for a job.
type Registry interface {
	// Find returns the digest that a reference of a repository means for a credential.
	Find(ctx context.Context, t preheat.Target, reference string, authorization secret.String) (task.ID, error)
	// Manifest fetches a manifest into the store, and returns its bytes and media type. It returns at most
	// [oci.ManifestParsed] bytes, compared with the digest.
	Manifest(ctx context.Context, spec task.Spec) (content []byte, mediaType string, err error)
	// Referrers asks for the manifests that refer to another one; the answer is an index. ok is false if the registry does
	// not know the API.
	Referrers(ctx context.Context, t preheat.Target, id task.ID, authorization secret.String) (index []byte, ok bool,
		err error)
}

// RefusedError is a registry's refusal, which another attempt does not change.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the registry's answer.
func (e *RefusedError) Unwrap() error { return e.Err }

// resolver collects the objects of one job.
type resolver struct {
	reg    Registry
	spec   preheat.Spec
	target preheat.Target
	known  map[task.ID]bool
	list   []preheat.Object
}

// resolve finds all objects that a job's reference means now.
func resolve(ctx context.Context, reg Registry, spec preheat.Spec) (*preheat.Resolved, error) {
	target, err := spec.Target()
	if err != nil {
		return nil, &RefusedError{err}
	}
	r := &resolver{reg: reg, spec: spec, target: target, known: map[task.ID]bool{}}
	reference := target.Tag
	if target.Digest != "" {
		reference = string(target.Digest)
	}
	id, err := reg.Find(ctx, target, reference, spec.Authorization())
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w", spec.Name(), err)
	}
	if err := r.manifest(ctx, preheat.Object{ID: id, Kind: task.Manifest}, 0); err != nil {
		return nil, err
	}
	if spec.Referrers {
		for _, o := range slices.Clone(r.list) {
			if o.Kind == task.Manifest {
				if err := r.referrers(ctx, o.ID); err != nil {
					return nil, err
				}
			}
		}
	}
	return &preheat.Resolved{Digest: id, Objects: r.list}, nil
}

func (r *resolver) add(o preheat.Object) (fresh bool, err error) {
	if r.known[o.ID] {
		return false, nil
	}
	if len(r.list) == preheat.ObjectsMax {
		return false, &RefusedError{fmt.Errorf("%s has more than %d objects; name the platforms that you need",
			r.spec.Name(), preheat.ObjectsMax)}
	}
	r.known[o.ID] = true
	r.list = append(r.list, o)
	return true, nil
}

// manifest adds a manifest and what it names.
func (r *resolver) manifest(ctx context.Context, o preheat.Object, depth int) error {
	at := len(r.list)
	fresh, err := r.add(o)
	if err != nil || !fresh {
		return err
	}
	if depth > depthMax {
		return &RefusedError{fmt.Errorf("%s has indexes inside of indexes, more than %d deep", r.spec.Name(), depthMax)}
	}
	spec := Spec(preheat.Order{Upstream: r.target.Upstream, Repository: r.target.Repository,
		Authorization: r.spec.Authorization().Reveal()}, o)
	content, mediaType, err := r.reg.Manifest(ctx, spec)
	if err != nil {
		return fmt.Errorf("reading manifest %s of %s: %w", o.ID.Short(), r.spec.Name(), err)
	}
	r.list[at].Size, r.list[at].MediaType = int64(len(content)), mediaType
	named := oci.References(mediaType, content)
	if len(named) == oci.ReferencesMax {
		return &RefusedError{fmt.Errorf("manifest %s names more than %d objects", o.ID.Short(), oci.ReferencesMax)}
	}
	wanted := platforms(content, r.spec.Platforms)
	chosen := 0
	for _, n := range named {
		next := preheat.Object{ID: n.ID, Kind: task.Blob, Size: n.Size, MediaType: n.MediaType}
		if !n.Manifest {
			// Some manifests name their config twice, or an empty one.
			if _, err := r.add(next); err != nil {
				return err
			}
			continue
		}
		if !wanted(n.ID) {
			continue
		}
		chosen++
		next.Kind = task.Manifest
		if err := r.manifest(ctx, next, depth+1); err != nil {
			return err
		}
	}
	if depth == 0 && len(r.spec.Platforms) > 0 && chosen == 0 && slices.ContainsFunc(named, func(n oci.Reference) bool {
		return n.Manifest
	}) {
		return &RefusedError{fmt.Errorf("%s has no manifest for %s", r.spec.Name(), strings.Join(r.spec.Platforms, ", "))}
	}
	return nil
}

// platforms reports which manifests of an index are for one of the platforms. A manifest for which the index states no
// platform is for all, as is an index inside of an index.
func platforms(index []byte, names []string) func(task.ID) bool {
	if len(names) == 0 {
		return func(task.ID) bool { return true }
	}
	var m struct {
		Manifests []struct {
			Digest   task.ID `json:"digest"`
			Platform *struct {
				OS      string `json:"os"`
				Arch    string `json:"architecture"`
				Variant string `json:"variant"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	_ = json.Unmarshal(index, &m) // References has parsed it
	wanted := map[task.ID]bool{}
	for _, x := range m.Manifests {
		if x.Platform == nil {
			wanted[x.Digest] = true
			continue
		}
		short := x.Platform.OS + "/" + x.Platform.Arch
		if slices.Contains(names, short) || slices.Contains(names, short+"/"+x.Platform.Variant) {
			wanted[x.Digest] = true
		}
	}
	return func(id task.ID) bool { return wanted[id] }
}

// referrers adds what refers to a manifest: signatures, SBOMs.
func (r *resolver) referrers(ctx context.Context, id task.ID) error {
	index, ok, err := r.reg.Referrers(ctx, r.target, id, r.spec.Authorization())
	if err != nil {
		return fmt.Errorf("asking for what refers to %s: %w", id.Short(), err)
	}
	if ok {
		for _, n := range oci.References(oci.MediaTypeIndex, index) {
			o := preheat.Object{ID: n.ID, Kind: task.Manifest, Size: n.Size, MediaType: n.MediaType}
			if err := r.manifest(ctx, o, 1); err != nil {
				return err
			}
		}
		return nil
	}
	// The tag of registries without the API (distribution-spec, "Referrers Tag Schema").
	tagged, err := r.reg.Find(ctx, r.target, strings.Replace(string(id), ":", "-", 1), r.spec.Authorization())
	if err != nil {
		var refused *RefusedError
		if errors.As(err, &refused) {
			return nil // nothing refers to it
		}
		return err
	}
	return r.manifest(ctx, preheat.Object{ID: tagged, Kind: task.Manifest}, 0)
}

// refusal reports whether a status means that another attempt brings the same.
func refusal(status int) bool {
	return status >= 400 && status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
}

// AsRefusal marks an error with a registry's status as final if it is.
func AsRefusal(status int, err error) error {
	if err != nil && refusal(status) {
		return &RefusedError{err}
	}
	return err
}
