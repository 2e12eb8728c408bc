package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
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

// References lists what a manifest or index needs to be whole: an image's config and layers, an
// index's manifests. Its registry has verified these, and only these, when it took it, so left
// out is what registries take a manifest's word for without having it: a subject, layers that
// are to be fetched from elsewhere (with "urls", or of a non-distributable type), and what
// another parser could read in another way. An image that names manifests beside its layers,
// an index that names layers, a name that is there twice or in other capitals: such content has
// no references at all. mediaType is what the registry calls it, empty when it does not say.
func References(mediaType string, content []byte) []Reference {
	if len(content) > ManifestMax {
		return nil
	}
	m, ok := members(content, "schemaVersion", "mediaType", "config", "layers", "manifests")
	if !ok || string(m["schemaVersion"]) != "2" {
		return nil
	}
	index, ok := isIndex(mediaType, m)
	if !ok {
		return nil
	}
	var named []json.RawMessage
	if key := map[bool]string{false: "layers", true: "manifests"}[index]; m[key] != nil && json.Unmarshal(m[key], &named) != nil {
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

// isIndex tells an index from an image; ok is false where its own words, the registry's and
// what is in it do not agree. Only OCI's manifests may leave it to the last (image-spec 1.0).
func isIndex(told string, m map[string]json.RawMessage) (index, ok bool) {
	index = m["manifests"] != nil
	if image := m["config"] != nil || m["layers"] != nil; image == index {
		return false, false
	}
	kinds := map[string]bool{MediaTypeIndex: true, MediaTypeDockerList: true, MediaTypeManifest: false, MediaTypeDockerManifest: false}
	own := map[bool]string{false: MediaTypeManifest, true: MediaTypeIndex}[index]
	if m["mediaType"] != nil && json.Unmarshal(m["mediaType"], &own) != nil {
		return false, false
	}
	if kind, known := kinds[own]; !known || kind != index {
		return false, false
	}
	told, _, err := mime.ParseMediaType(told)
	_, known := kinds[told]
	return index, err != nil || !known || told == own
}

// referenceOf reads a descriptor; ok is false for one that its registry need not have.
func referenceOf(descriptor []byte) (r Reference, ok bool) {
	d, ok := members(descriptor, "mediaType", "digest", "size", "urls")
	if !ok {
		return r, false
	}
	var digest string
	var urls []string
	for name, into := range map[string]any{"mediaType": &r.MediaType, "digest": &digest, "size": &r.Size, "urls": &urls} {
		if d[name] != nil && json.Unmarshal(d[name], into) != nil {
			return r, false
		}
	}
	id, err := ParseDigest(digest)
	if err != nil || r.Size < 0 || len(r.MediaType) > 255 {
		return r, false
	}
	r.ID = id
	return r, len(urls) == 0 && !strings.Contains(r.MediaType, ".nondistributable.") && !strings.Contains(r.MediaType, ".foreign.")
}

// members returns the members of a JSON object that have one of the names, but for null. ok is
// false for what is no object, and for one of the names twice or in other capitals: parsers differ
// in what they make of that.
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
