package registryproxy

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// grant returns the client's grant for the manifest or blob that it asks for, and marks the response if the registry
// was unreachable. A client that takes the mirror for one registry (crane) answers the default registry's challenge,
// and sends that token also for the registry in its path. If that registry refuses the token, the client still gets
// what anonymous clients may read there. If a grant of anonymous clients is known, the mirror does not ask the
// registry.
func (req *request) grant() (access.Grant, *apiError) {
	foreign := req.authorization != "" && req.target.prefix != "" && req.target.namespace == ""
	if foreign {
		if g, ok := req.cfg.Resolver.AnonymousGrant(req.lookup()); ok {
			req.authorization = ""
			return g, nil
		}
	}
	found, err := req.cfg.Resolver.Resolve(req.ctx, req.lookup())
	var huge *access.HugeError
	if errors.As(err, &huge) {
		return access.Grant{Length: huge.Length}, nil
	}
	if err != nil {
		refused := req.refused(err)
		if !foreign || refused.status != http.StatusUnauthorized {
			return access.Grant{}, refused
		}
		req.authorization = ""
		if found, err = req.cfg.Resolver.Resolve(req.ctx, req.lookup()); err != nil {
			return access.Grant{}, refused
		}
	}
	req.pull.Unverified, req.pull.Stale = found.Unverified, found.Stale
	if found.Unverified != "" {
		req.w.Header().Set(HeaderUnverified, "registry unreachable; "+string(found.Unverified))
	}
	if found.Stale > 0 {
		req.w.Header().Set(HeaderStale, strconv.FormatInt(int64(found.Stale/time.Second), 10))
	}
	return found.Grant, nil
}

// refused is the client's error for a lookup that got no grant.
func (req *request) refused(err error) *apiError {
	var refused *access.RefusedError
	var unreachable *access.UnreachableError
	var silent *access.SilentError
	var out *apiError
	switch {
	case errors.As(err, &refused):
		out = req.registryError(refused)
	case errors.As(err, &silent):
		out = newError(http.StatusServiceUnavailable, "%v", silent)
		out.header = http.Header{"Retry-After": {strconv.Itoa(int(silent.RetryAfter / time.Second))}}
	case errors.As(err, &unreachable):
		out = req.unreachable(err)
	default:
		out = req.failed(err)
	}
	if access.Unreachable(err) && !out.gone {
		if challenge := req.repeatChallenge(); challenge != nil {
			return challenge
		}
	}
	var tag *access.TagError
	if errors.As(err, &tag) {
		out = out.hiding(string(tag.ID), tag.Tag)
	}
	return out
}

// lookup is the request's manifest or blob and credential.
func (req *request) lookup() access.Lookup {
	return access.Lookup{
		Upstream: req.target.upstream, Repository: req.target.repository, Kind: req.target.kind(),
		Reference: req.target.reference, ID: req.target.id, Accept: req.accept(),
		Authorization: secret.String(req.authorization), Anonymous: req.anonymous(),
		Agent:        source.CleanAgent(req.r.UserAgent()),
		Unchallenged: isContainersImage(req.r),
	}
}

// anonymous reports whether to ask with the registry's anonymous token. Podman and other clients that send no ?ns=
// answer no challenge but that of the ping, and would get no public image of a registry that requires a token for each.
// If expired grants are used while the registry is unreachable, the mirror has to know in any case what anonymous
// clients may read, and asking at once costs less than asking later.
func (req *request) anonymous() bool {
	return req.authorization == "" && req.target.endpoint != endpointBase &&
		(req.target.namespace == "" || req.cfg.Resolver.ServesCached())
}

// accept is the client's Accept. A registry without it answers a manifest in an old format.
func (req *request) accept() []string {
	accept := req.r.Header.Values("Accept")
	if len(accept) == 0 && req.target.endpoint == endpointManifest {
		return oci.ManifestTypes()
	}
	return accept
}

// spec describes how to fetch the granted blob from its origin.
func (req *request) spec(g access.Grant) task.Spec {
	spec := task.Spec{
		ID: g.ID, Kind: req.target.kind(), Upstream: req.target.upstream, Repository: req.target.repository,
		Authorization: secret.String(req.authorization), Agent: source.CleanAgent(req.r.UserAgent()),
	}
	if spec.Kind == task.Manifest {
		spec.Accept, spec.Tag = req.accept(), g.Tag
	}
	if g.Declared {
		// A manifest states this size of another blob, and the registry does not: it bounds what this client
		// reads, and does not fail the blob for a client with another manifest.
		spec.Promised = g.Length
	} else {
		spec.Hint = g.Length
	}
	return spec
}

// bringsPasswordOfDefault reports whether the client's password answers the default registry's challenge although its
// path names another registry. A client that takes the mirror for one registry sends its login for that registry with
// every request, and the other registry must not see it. (A token is of use only to the registry that issued it.)
func (req *request) bringsPasswordOfDefault() bool {
	t := req.target
	scheme, _, _ := strings.Cut(req.authorization, " ")
	if !strings.EqualFold(scheme, "Basic") || t.prefix == "" || t.namespace != "" ||
		firstOf(req.r.Header, HeaderUpstream, HeaderUpstreamDragonfly) != "" {
		return false
	}
	standard, err := oci.ParseHost(req.fallback)
	if err != nil || standard == t.upstream || req.cfg.Allow(standard) != nil {
		return false
	}
	last, ok := req.pings.get(standard)
	if !ok {
		ping := source.RegistryRequest{Upstream: standard, Method: http.MethodGet, Path: target{}.path(),
			Agent: req.r.UserAgent()}
		ctx, cancel := context.WithTimeout(req.ctx, req.cfg.Wait) // the client asked for another registry
		defer cancel()
		res, err := req.cfg.Resolver.Send(ctx, ping)
		if err != nil {
			return true
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
			return true // its challenge is unknown
		}
		req.pings.put(standard, req.generation, res)
		last.challenge = res.Header.Values("WWW-Authenticate")
	}
	return slices.ContainsFunc(last.challenge, func(c string) bool {
		return len(c) >= len(scheme) && strings.EqualFold(c[:len(scheme)], scheme)
	})
}
