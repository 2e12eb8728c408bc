package registryproxy

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
)

// ask answers the client's own question: may it have this manifest or blob, and which
// content is meant. Everything that is known about rights and tags comes through here.
func (x *exchange) ask() (right, *refusal) {
	r, refused := x.askWith()
	if refused != nil && refused.status == http.StatusUnauthorized && x.brought() {
		x.authorization = ""
		if r, public := x.askWith(); public == nil {
			return r, nil
		}
	}
	return r, refused
}

func (x *exchange) askWith() (right, *refusal) {
	q := x.question()
	if q.id != "" {
		return x.right(q)
	}
	return x.askTag(q)
}

// brought reports whether the client's credential may be meant for another registry than the
// one it names in the path: clients that know the mirror as one registry (crane) answer the
// default's challenge, and bring what they got there everywhere. What anybody may have is
// theirs all the same.
func (x *exchange) brought() bool {
	return x.authorization != "" && x.t.prefix != "" && x.t.namespace == ""
}

// right answers whether the client may have a digest: from what the registry has said to the
// same credential of the same repository, or else by asking it.
func (x *exchange) right(q question) (right, *refusal) {
	r, counts, known := x.desk.rights.get(q.holder(), object{q.endpoint, q.id}, time.Now())
	if counts {
		return r, nil
	}
	fallback := known && x.desk.policy.Load().ServeCached
	s, err := orSoon(x, fallback, func(ctx context.Context) (saying, error) { return x.desk.ask(ctx, q) }, func(err error) saying { return saying{err: err} })
	if err != nil {
		return right{}, x.failed(err)
	}
	if fallback && s.down() {
		x.pull.Unverified = true
		x.w.Header().Set(HeaderUnverified, "registry unreachable")
		return r, nil
	}
	return x.said(s)
}

// said turns what a registry said into the client's right or refusal.
func (x *exchange) said(s saying) (right, *refusal) {
	switch {
	case s.err != nil:
		return right{}, x.unreached(s.err)
	case s.status != 0:
		return right{}, x.answered(s)
	}
	return s.right, nil
}

// question is the client's own, of a manifest or blob.
func (x *exchange) question() question {
	return question{
		upstream: x.t.upstream, repository: x.t.repository, endpoint: x.t.endpoint, reference: x.t.reference, id: x.t.id, accept: x.accept(),
		authorization: x.authorization, anonymous: x.anonymous(),
	}
}

// anonymous says to ask with the token that anybody gets. Podman and its kin, who name no
// namespace, take up no challenge but the version check's, and would get no public image
// where everybody needs a token.
func (x *exchange) anonymous() bool {
	return x.authorization == "" && x.t.namespace == "" && x.t.endpoint != endpointBase
}

// upstream passes one request for what is not content to its registry.
func (x *exchange) upstream() (*http.Response, *refusal) {
	h := http.Header{}
	if v := x.authorization; v != "" {
		h.Set("Authorization", v)
	}
	if v := x.accept(); len(v) > 0 {
		h["Accept"] = v
	}
	req := source.RegistryRequest{Upstream: x.t.upstream, Method: x.r.Method, Path: x.t.path(), Header: h, Anonymous: x.anonymous()}
	if x.t.endpoint == endpointTags || x.t.endpoint == endpointReferrers {
		query := x.r.URL.Query()
		query.Del("ns")
		req.Query = query.Encode()
	}
	res, err := forward(x.ctx, x.cfg.Upstream, req)
	if err != nil {
		return nil, x.unreached(err)
	}
	return res, nil
}

// accept is the client's Accept. A registry without it answers a manifest in an old format.
func (x *exchange) accept() []string {
	accept := x.r.Header.Values("Accept")
	if len(accept) == 0 && x.t.endpoint == endpointManifest {
		return oci.ManifestTypes()
	}
	return accept
}

// adopt lets a manifest that the client may have vouch for what it names: its config, its
// layers, its manifests, in the same repository, for the same credential, as long as the
// right to the manifest counts. It spares a HEAD for each of them. mediaType is what it is
// served as, empty when nobody said.
func (x *exchange) adopt(r right, mediaType string, manifest []byte) {
	if !x.mayAdopt(r) || oci.DigestOf(manifest) != r.id {
		return
	}
	var named []right
	for _, ref := range oci.References(mediaType, manifest) {
		n := right{verdict: verdict{id: ref.ID, length: ref.Size, named: true}, object: object{endpointBlob, ref.ID}}
		if ref.Manifest {
			n.mediaType, n.object.endpoint = ref.MediaType, endpointManifest
		}
		named = append(named, n)
	}
	x.desk.rights.adopt(r, named)
}

// mayAdopt reports whether adopt may find anything new.
func (x *exchange) mayAdopt(r right) bool {
	return !r.children && x.cfg.Vouches(x.t.upstream) && strings.HasPrefix(string(r.id), "sha256:")
}

// readManifest reads a whole manifest that is open, nil when it is larger than one may be.
func (x *exchange) readManifest(content Content) ([]byte, error) {
	total := content.Facts().Length
	if total > oci.ManifestMax {
		return nil, nil
	}
	r := content.NewReader(x.ctx, 0, total)
	defer r.Close()
	return io.ReadAll(r)
}
