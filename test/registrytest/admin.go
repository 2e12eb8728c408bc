package registrytest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// adminBodyMax bounds a request to the admin handler, in bytes.
const adminBodyMax = 1 << 20

// PushOrder is the body of POST /push of [Registry.Admin].
type PushOrder struct {
	Repository string  `json:"repository"`
	Tag        string  `json:"tag"`
	Seed       uint64  `json:"seed"`
	Layers     []int64 `json:"layers"` // compressed sizes in bytes
	// Index pushes an index of all [Platforms] instead of an image.
	Index bool `json:"index,omitempty"`
}

// PushAnswer is the answer to POST /push.
type PushAnswer struct {
	Pushed
	Bytes int64 `json:"bytes"` // of all objects
	// Files of the unpacked image, see [Image]; for an index, those of its linux/amd64 image.
	Files map[string]string `json:"files"`
}

// Admin returns a handler with which another process controls the registry. It requires no credentials, so serve it on
// a loopback address only:
//
//	GET    /counts                  returns Counts as JSON
//	POST   /reset                   resets the counts
//	POST   /push                    takes a PushOrder, returns a PushAnswer
//	POST   /faults                  adds a list of Faults
//	DELETE /faults                  removes all faults
//	POST   /shape?all=N&connection=N  sets limits in bytes per second, 0 for none
//	POST   /revoke-tokens           expires all tokens
func (r *Registry) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /counts", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, r.Counts()) })
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { r.Reset() })
	mux.HandleFunc("POST /revoke-tokens", func(http.ResponseWriter, *http.Request) { r.RevokeTokens() })
	mux.HandleFunc("DELETE /faults", func(http.ResponseWriter, *http.Request) { r.ClearFaults() })
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, req *http.Request) {
		var faults []Fault
		if readJSON(w, req, &faults) {
			r.Fail(faults...)
		}
	})
	mux.HandleFunc("POST /shape", func(w http.ResponseWriter, req *http.Request) {
		all, err := strconv.ParseInt(req.FormValue("all"), 10, 64)
		perConnection, err2 := strconv.ParseInt(req.FormValue("connection"), 10, 64)
		if err := errors.Join(err, err2); err != nil {
			http.Error(w, "shape: "+err.Error(), http.StatusBadRequest)
			return
		}
		r.Shape(all, perConnection)
	})
	mux.HandleFunc("POST /push", func(w http.ResponseWriter, req *http.Request) {
		var order PushOrder
		if !readJSON(w, req, &order) {
			return
		}
		answer, err := r.push(req, order)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, answer)
	})
	return mux
}

func (r *Registry) push(req *http.Request, order PushOrder) (*PushAnswer, error) {
	if order.Index {
		idx, err := NewIndex(order.Seed, order.Layers)
		if err != nil {
			return nil, err
		}
		p, err := r.PushIndex(req.Context(), order.Repository, order.Tag, idx)
		return &PushAnswer{Pushed: p, Bytes: p.Bytes(), Files: idx.Images["linux/amd64"].Files}, err
	}
	img, err := NewImage(order.Seed, order.Layers)
	if err != nil {
		return nil, err
	}
	p, err := r.Push(req.Context(), order.Repository, order.Tag, img)
	return &PushAnswer{Pushed: p, Bytes: p.Bytes(), Files: img.Files}, err
}

func readJSON(w http.ResponseWriter, req *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, req.Body, adminBodyMax))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		http.Error(w, fmt.Sprintf("reading the request: %v", err), http.StatusBadRequest)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}
