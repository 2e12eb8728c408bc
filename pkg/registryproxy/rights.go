package registryproxy

import (
	"fmt"
	"io"
	"net/http"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// verdict is a registry's consent: this client may have this content of this repository.
// It holds what the registry said of the content meanwhile.
type verdict struct {
	id task.ID
	// length in bytes, 0 when the registry did not tell.
	length int64
	// mediaType to the letter, empty when the registry did not tell.
	mediaType string
}

// ask puts the client's question to the registry, with the client's own credentials: may
// it have this manifest or blob, and which content is meant. Everything that is known
// about rights and tags comes from here, so this is where to remember answers.
func (x *exchange) ask() (verdict, *refusal) {
	res, refused := x.upstream(http.MethodHead, "")
	if refused != nil {
		return verdict{}, refused
	}
	res.Body.Close()
	// A registry that does not speak HEAD is asked by GET, for one byte of a blob.
	noHead := res.StatusCode == http.StatusMethodNotAllowed || res.StatusCode == http.StatusNotImplemented
	if noHead && x.t.endpoint == endpointBlob {
		if res, refused = x.upstream(http.MethodGet, "bytes=0-0"); refused != nil {
			return verdict{}, refused
		}
		res.Body.Close()
	}
	if noHead && x.t.endpoint == endpointManifest {
		return x.askByGet()
	}
	if res.StatusCode >= 400 {
		return verdict{}, x.answered(res)
	}
	v := verdict{id: x.t.id}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Encoding") == "" {
		v.length, v.mediaType = max(res.ContentLength, 0), res.Header.Get("Content-Type")
	}
	if v.id == "" {
		id, err := oci.ParseDigest(res.Header.Get("Docker-Content-Digest"))
		if err != nil {
			return x.askByGet()
		}
		v.id = id
	}
	return v, nil
}

// askByGet reads a manifest, because the registry does not tell its digest otherwise.
func (x *exchange) askByGet() (verdict, *refusal) {
	res, refused := x.upstream(http.MethodGet, "")
	if refused != nil {
		return verdict{}, refused
	}
	if res.StatusCode != http.StatusOK {
		return verdict{}, x.answered(res)
	}
	defer res.Body.Close()
	content, err := io.ReadAll(io.LimitReader(res.Body, oci.ManifestMax+1))
	if err != nil {
		return verdict{}, x.unreached(fmt.Errorf("reading %s of %s: %w", x.t.path(), x.t.upstream, err))
	}
	if len(content) > oci.ManifestMax {
		return verdict{}, refuse(http.StatusBadGateway, "%s of %s is larger than the %d bytes that a manifest may have", x.t.path(), x.t.upstream, oci.ManifestMax)
	}
	v := verdict{id: x.t.id, length: int64(len(content)), mediaType: res.Header.Get("Content-Type")}
	if v.id == "" {
		v.id = oci.DigestOf(content)
	}
	return v, nil
}

// upstream sends one request for the target to its registry.
func (x *exchange) upstream(method, byteRange string) (*http.Response, *refusal) {
	h := http.Header{}
	if v := x.r.Header.Get("Authorization"); v != "" {
		h.Set("Authorization", v)
	}
	if v := x.accept(); len(v) > 0 {
		h["Accept"] = v
	}
	if byteRange != "" {
		h.Set("Range", byteRange)
	}
	req := source.Question{Upstream: x.t.upstream, Method: method, Path: x.t.path(), Header: h}
	if x.t.endpoint == endpointTags || x.t.endpoint == endpointReferrers {
		query := x.r.URL.Query()
		query.Del("ns")
		req.Query = query.Encode()
	}
	// Podman and its kin, who name no namespace, take up no challenge but the version
	// check's, and would get no public image where everybody needs a token.
	req.Anonymous = h.Get("Authorization") == "" && x.t.namespace == "" && x.t.endpoint != endpointBase
	res, err := x.cfg.Upstream.Forward(x.ctx, req)
	if req.Anonymous && (err != nil || res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden) {
		if err == nil {
			res.Body.Close()
		}
		req.Anonymous = false
		res, err = x.cfg.Upstream.Forward(x.ctx, req)
	}
	if err != nil {
		return nil, x.unreached(fmt.Errorf("asking %s: %s %s: %w", x.t.upstream, method, req.Path, err))
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
