package oci

import (
	"encoding/json"
	"strings"

	"github.com/darter-io/darter/pkg/task"
)

// ReferencesMax is how many contents one manifest may name; the rest is left out.
const ReferencesMax = 4096

// Reference is a content that a manifest names (OCI image-spec, "Descriptors").
type Reference struct {
	ID task.ID
	// Size in bytes as the manifest says it.
	Size int64
	// MediaType to the letter.
	MediaType string
	// Manifest says that it is got as a manifest; else it is a blob.
	Manifest bool
}

// References lists what a manifest or index needs to be whole: its config, its layers, its
// manifests. Left out is what registries take a manifest's word for without having it: a
// subject, and layers that are to be fetched from elsewhere (with "urls", or of a
// non-distributable type). What is no manifest has no references.
func References(content []byte) []Reference {
	type descriptor struct {
		MediaType string   `json:"mediaType"`
		Digest    string   `json:"digest"`
		Size      int64    `json:"size"`
		URLs      []string `json:"urls"`
	}
	var m struct {
		Config    *descriptor  `json:"config"`
		Layers    []descriptor `json:"layers"`
		Manifests []descriptor `json:"manifests"`
	}
	if len(content) > ManifestMax || json.Unmarshal(content, &m) != nil {
		return nil
	}
	var out []Reference
	add := func(d descriptor, manifest bool) {
		id, err := ParseDigest(d.Digest)
		foreign := len(d.URLs) > 0 || strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
		if err != nil || foreign || d.Size < 0 || len(d.MediaType) > 255 || len(out) >= ReferencesMax {
			return
		}
		out = append(out, Reference{ID: id, Size: d.Size, MediaType: d.MediaType, Manifest: manifest})
	}
	if m.Config != nil {
		add(*m.Config, false)
	}
	for _, d := range m.Layers {
		add(d, false)
	}
	for _, d := range m.Manifests {
		add(d, true)
	}
	return out
}
