package registrytest

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// Peculiarity changes the answer to one request, as some registries do. next gives the registry's usual answer. It
// runs behind the front, which counts its answers like all others.
type Peculiarity func(r *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc)

// Peculiar is a kind of registry that clients pull from without Darter, although it differs from distribution.
type Peculiar struct {
	// Name says how it differs.
	Name string
	// Config makes such a registry; a test may add Auth and Users.
	Config Config
}

// Peculiarities returns the peculiar registries. docs/registries.md says which public registries are so.
func Peculiarities() []Peculiar {
	return []Peculiar{
		{"blobs at another path of the host", Config{Peculiarity: blobsElsewhere(false)}},
		{"blobs at another path, by an absolute URL", Config{Peculiarity: blobsElsewhere(true)}},
		{"HEAD gets 400", Config{Peculiarity: noHead(http.StatusBadRequest)}},
		{"HEAD gets 403", Config{Peculiarity: noHead(http.StatusForbidden)}},
		{"HEAD gets 404", Config{Peculiarity: noHead(http.StatusNotFound)}},
		{"HEAD gets 500", Config{Peculiarity: noHead(http.StatusInternalServerError)}},
		{"HEAD gets 204", Config{Peculiarity: noHead(http.StatusNoContent)}},
		{"HEAD breaks off", Config{Peculiarity: noHead(0)}},
		{"HEAD gets 502 once", Config{Peculiarity: onceHead(http.StatusBadGateway)}},
		{"HEAD states a wrong length", Config{Peculiarity: wrongHead}},
		{"HEAD states the type of a page", Config{Peculiarity: pageHead}},
		{"blobs behind nine redirects", Config{Peculiarity: redirectedTimes(9)}},
		{"no manifest by digest", Config{Peculiarity: onlyTags(http.StatusNotFound)}},
		{"manifests by digest get 403", Config{Peculiarity: onlyTags(http.StatusForbidden)}},
		{"manifests by digest get 500", Config{Peculiarity: onlyTags(http.StatusInternalServerError)}},
		{"the version check gets 404", Config{Peculiarity: noPing(http.StatusNotFound)}},
		{"the version check gets 403", Config{Peculiarity: noPing(http.StatusForbidden)}},
		{"the version check gets 500", Config{Peculiarity: noPing(http.StatusInternalServerError)}},
		{"the version check redirects to itself", Config{Peculiarity: noPing(http.StatusFound)}},
		{"layers labelled gzip", Config{Peculiarity: labelled("gzip", false)}},
		{"layers labelled x-gzip, no lengths", Config{Peculiarity: labelled("x-gzip", true)}},
		{"layers labelled zstd", Config{Peculiarity: labelled("zstd", false)}},
		{"manifests encoded by gzip, no digests", Config{Peculiarity: packedManifests}},
		{"blobs from https to http", Config{TLS: true, PlainStorage: true, Peculiarity: redirected}},
		{"only HTTP/2", Config{TLS: true, HTTP2: true}},
	}
}

// redirected redirects blobs to the storage host, as [ActRedirect] does.
func redirected(r *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
	if o, ok := parsePath(req.URL.Path); ok && o.kind == "blobs" && r.readable(req) {
		http.Redirect(w, req, r.storageURL(o), http.StatusTemporaryRedirect)
		return
	}
	next(w, req)
}

// redirectedTimes redirects blobs n times, to URLs without a scheme, before it serves them.
func redirectedTimes(n int) Peculiarity {
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		hop, _ := strconv.Atoi(req.URL.Query().Get("hop"))
		if o, ok := parsePath(req.URL.Path); !ok || o.kind != "blobs" || hop == n {
			next(w, req)
			return
		}
		w.Header().Set("Location", fmt.Sprintf("//%s%s?hop=%d", req.Host, req.URL.Path, hop+1))
		w.WriteHeader(http.StatusPermanentRedirect)
	}
}

// onceHead refuses the first HEAD of each object with a status.
func onceHead(status int) Peculiarity {
	var seen sync.Map
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if o, ok := parsePath(req.URL.Path); ok && req.Method == http.MethodHead {
			if _, again := seen.LoadOrStore(o.key(), true); !again {
				w.WriteHeader(status)
				return
			}
		}
		next(w, req)
	}
}

// pageHead states the type of a page in response to a HEAD of a manifest.
func pageHead(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
	if o, ok := parsePath(req.URL.Path); ok && o.kind == "manifests" && req.Method == http.MethodHead {
		w = &editing{w, func(h http.Header, _ int) { h.Set("Content-Type", "text/html; charset=utf-8") }}
	}
	next(w, req)
}

// noHead refuses every HEAD of an object with a status and an empty body; 0 ends the connection.
func noHead(status int) Peculiarity {
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if _, ok := parsePath(req.URL.Path); ok && req.Method == http.MethodHead {
			if status == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(status)
			return
		}
		next(w, req)
	}
}

// noPing refuses the version check, GET /v2/, whatever comes with it.
func noPing(status int) Peculiarity {
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if req.URL.Path == "/v2/" {
			w.Header().Set("Location", "/v2/")
			w.WriteHeader(status)
			return
		}
		next(w, req)
	}
}

// wrongHead states seven bytes too many in response to a HEAD.
func wrongHead(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
	if _, ok := parsePath(req.URL.Path); ok && req.Method == http.MethodHead {
		w = &editing{w, func(h http.Header, _ int) {
			if n, err := strconv.Atoi(h.Get("Content-Length")); err == nil {
				h.Set("Content-Length", strconv.Itoa(n+7))
			}
		}}
	}
	next(w, req)
}

// onlyTags serves a manifest by a tag and never by its digest.
func onlyTags(status int) Peculiarity {
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if o, ok := parsePath(req.URL.Path); ok && o.kind == "manifests" && strings.Contains(o.reference, ":") {
			writeError(w, status, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		next(w, req)
	}
}

// labelled gives blobs a Content-Encoding as object stores do that keep it with the file.
func labelled(encoding string, chunked bool) Peculiarity {
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if o, ok := parsePath(req.URL.Path); ok && o.kind == "blobs" {
			w = &editing{w, func(h http.Header, status int) {
				if status < 300 && h.Get("Content-Type") != "application/json" {
					h.Set("Content-Encoding", encoding)
				}
				if chunked && req.Method == http.MethodGet {
					h.Del("Content-Length")
				}
			}}
		}
		next(w, req)
	}
}

// packedManifests encodes manifests by gzip whatever the client accepts, and names no digest.
func packedManifests(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
	o, ok := parsePath(req.URL.Path)
	if !ok || o.kind != "manifests" {
		next(w, req)
		return
	}
	out := &packing{editing: editing{w, nil}}
	out.edit = func(h http.Header, status int) {
		h.Del("Docker-Content-Digest")
		h.Del("Etag")
		if out.packs = status == http.StatusOK; out.packs {
			h.Set("Content-Encoding", "gzip")
			h.Del("Content-Length")
		}
	}
	next(out, req)
	if out.zip != nil {
		_ = out.zip.Close()
	}
}

// packing encodes the body of a response.
type packing struct {
	editing
	packs bool
	zip   *gzip.Writer
}

func (w *packing) Write(b []byte) (int, error) {
	if w.edit != nil {
		w.WriteHeader(http.StatusOK)
	}
	if !w.packs {
		return w.ResponseWriter.Write(b)
	}
	if w.zip == nil {
		w.zip = gzip.NewWriter(w.ResponseWriter)
	}
	return w.zip.Write(b)
}

// editing edits the headers of a response before they are sent.
type editing struct {
	http.ResponseWriter
	edit func(h http.Header, status int)
}

func (w *editing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *editing) WriteHeader(status int) {
	if w.edit != nil {
		w.edit(w.Header(), status)
		w.edit = nil
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *editing) Write(b []byte) (int, error) {
	if w.edit != nil {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(b)
}

// elsewhere begins the paths to which blobsElsewhere redirects.
const elsewhere = "/artifacts-downloads/"

// blobsElsewhere redirects requests for blobs to another path of the registry's own host, which needs no Authorization.
func blobsElsewhere(absolute bool) Peculiarity {
	return func(r *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		if key, ok := strings.CutPrefix(req.URL.Path, elsewhere); ok {
			next(w, r.inside(req, "/v2/"+key))
			return
		}
		o, ok := parsePath(req.URL.Path)
		if !ok || o.kind != "blobs" || !r.readable(req) {
			next(w, req)
			return
		}
		location := elsewhere + o.key()
		if absolute {
			location = r.scheme + "://" + req.Host + location
		}
		http.Redirect(w, req, location, http.StatusFound)
	}
}

// inside is a request for another path of the distribution API, with the internal user's credentials.
func (r *Registry) inside(req *http.Request, path string) *http.Request {
	in := req.Clone(req.Context())
	in.URL.Path, in.URL.RawQuery = path, ""
	if o, ok := parsePath(path); ok {
		r.authorizeInside(in, o.repository)
	}
	return in
}
