package registrytest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Referrers returns a peculiarity that adds the referrers API (OCI distribution-spec 1.1), which distribution lacks. It
// knows the manifests that are pushed through the front by their digest or tag.
func Referrers() Peculiarity {
	var mu sync.Mutex // held to look up and change
	known := map[string][]v1.Descriptor{}
	return func(_ *Registry, w http.ResponseWriter, req *http.Request, next http.HandlerFunc) {
		repository, subject, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/referrers/")
		if ok && req.Method == http.MethodGet {
			index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
			wanted := req.URL.Query().Get("artifactType")
			mu.Lock()
			for _, d := range known[repository+"@"+subject] {
				if wanted == "" || d.ArtifactType == wanted {
					index.Manifests = append(index.Manifests, d)
				}
			}
			mu.Unlock()
			if wanted != "" {
				w.Header().Set("OCI-Filters-Applied", "artifactType")
			}
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			_ = json.NewEncoder(w).Encode(index)
			return
		}
		o, ok := parsePath(req.URL.Path)
		if !ok || o.kind != "manifests" || req.Method != http.MethodPut {
			next(w, req)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			writeError(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
		var m struct {
			MediaType    types.MediaType   `json:"mediaType"`
			ArtifactType string            `json:"artifactType"`
			Config       v1.Descriptor     `json:"config"`
			Subject      *v1.Descriptor    `json:"subject"`
			Annotations  map[string]string `json:"annotations"`
		}
		if json.Unmarshal(body, &m) != nil || m.Subject == nil {
			next(w, req)
			return
		}
		next(&editing{w, func(h http.Header, status int) {
			digest, err := v1.NewHash(h.Get("Docker-Content-Digest"))
			if status != http.StatusCreated || err != nil {
				return
			}
			h.Set("OCI-Subject", m.Subject.Digest.String())
			d := v1.Descriptor{MediaType: m.MediaType, Digest: digest, Size: int64(len(body)), ArtifactType: m.ArtifactType,
				Annotations: m.Annotations}
			if d.ArtifactType == "" {
				d.ArtifactType = string(m.Config.MediaType)
			}
			key := o.repository + "@" + m.Subject.Digest.String()
			mu.Lock()
			defer mu.Unlock()
			known[key] = append(known[key], d)
		}}, req)
	}
}
