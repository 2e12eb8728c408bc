package registrytest

import (
	"net/http"
	"strings"
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
	}
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
