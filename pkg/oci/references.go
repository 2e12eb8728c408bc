package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"strings"

	"github.com/darter-io/darter/pkg/task"
)

// ReferencesMax bounds the references of one manifest; the rest is left out.
const ReferencesMax = 4096

// Reference is a blob or manifest that a manifest names (OCI image-spec, "Descriptors").
type Reference struct {
	ID task.ID
	// Size in bytes as the manifest states it.
	Size int64
	// MediaType to the letter.
	MediaType string
	// Manifest means that the reference is a manifest; else it is a blob.
	Manifest bool
}

// References lists the parts of a manifest: an image's config and layers, an index's manifests. A
// registry verifies that it has these, and only these, when it accepts the manifest. References leaves
// out what registries accept without having it: a subject, and layers that come from elsewhere (with
// "urls", or of a non-distributable type). It also leaves out what another parser could read in another
// way: a text in which an image also names manifests, an index also names layers, or a name occurs twice
// or in other capitals has no references at all. mediaType is the registry's Content-Type, empty if it
// sent none.
func References(mediaType string, manifest []byte) []Reference {
	if len(manifest) > ManifestParsed {
		return nil
	}
	m, ok := members(manifest, "schemaVersion", "mediaType", "config", "layers", "manifests")
	if !ok || string(m["schemaVersion"]) != "2" {
		return nil
	}
	index, ok := isIndex(mediaType, m)
	if !ok {
		return nil
	}
	var named []json.RawMessage
	if key := map[bool]string{false: "layers", true: "manifests"}[index]; m[key] != nil &&
		json.Unmarshal(m[key], &named) != nil {
		return nil
	}
	if !index && m["config"] != nil {
		named = append([]json.RawMessage{m["config"]}, named...)
	}
	var out []Reference
	for _, d := range named {
		if len(out) == ReferencesMax {
			break
		}
		if r, ok := referenceOf(d); ok {
			r.Manifest = index
			out = append(out, r)
		}
	}
	return out
}

// isIndex separates indexes from images; ok is false if the manifest's own media type, the registry's and
// the fields do not agree. Only OCI's manifests may have no media type of their own (image-spec 1.0).
func isIndex(mediaType string, m map[string]json.RawMessage) (index, ok bool) {
	index = m["manifests"] != nil
	if image := m["config"] != nil || m["layers"] != nil; image == index {
		return false, false
	}
	kinds := map[string]bool{
		MediaTypeIndex: true, MediaTypeDockerList: true, MediaTypeManifest: false, MediaTypeDockerManifest: false,
	}
	own := map[bool]string{false: MediaTypeManifest, true: MediaTypeIndex}[index]
	if m["mediaType"] != nil && json.Unmarshal(m["mediaType"], &own) != nil {
		return false, false
	}
	if kind, known := kinds[own]; !known || kind != index {
		return false, false
	}
	base, _, err := mime.ParseMediaType(mediaType)
	_, known := kinds[base]
	return index, err != nil || !known || base == own
}

// referenceOf reads a descriptor; ok is false if its registry need not have the blob.
func referenceOf(descriptor []byte) (r Reference, ok bool) {
	d, ok := members(descriptor, "mediaType", "digest", "size", "urls")
	if !ok {
		return r, false
	}
	var digest string
	var urls []string
	fields := map[string]any{"mediaType": &r.MediaType, "digest": &digest, "size": &r.Size, "urls": &urls}
	for name, into := range fields {
		if d[name] != nil && json.Unmarshal(d[name], into) != nil {
			return r, false
		}
	}
	id, err := ParseDigest(digest)
	if err != nil || r.Size < 0 || len(r.MediaType) > 255 {
		return r, false
	}
	r.ID = id
	elsewhere := len(urls) > 0 || strings.Contains(r.MediaType, ".nondistributable.") ||
		strings.Contains(r.MediaType, ".foreign.")
	return r, !elsewhere
}

// members returns the members of a JSON object that have one of the names and are not null. ok is false
// if the text is no object, or has one of the names twice or in other capitals: parsers disagree about
// that.
func members(object []byte, names ...string) (map[string]json.RawMessage, bool) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	out, seen := map[string]json.RawMessage{}, map[string]bool{}
	for d.More() {
		t, err := d.Token()
		key, isKey := t.(string)
		var v json.RawMessage
		if err != nil || !isKey || d.Decode(&v) != nil {
			return nil, false
		}
		for _, name := range names {
			switch {
			case !strings.EqualFold(key, name):
			case key != name || seen[name]:
				return nil, false
			default:
				seen[name] = true
				if string(v) != "null" {
					out[name] = v
				}
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, false
	}
	_, err := d.Token()
	return out, err == io.EOF
}
