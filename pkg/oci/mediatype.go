package oci

import (
	"encoding/json"
	"mime"
)

// The media types of manifests (OCI image-spec, "Media Types"; Docker image manifest
// version 2, schema 2).
const (
	MediaTypeIndex          = "application/vnd.oci.image.index.v1+json"
	MediaTypeManifest       = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// MediaTypeBlob is the Content-Type of every blob.
const MediaTypeBlob = "application/octet-stream"

// Bounds of manifests, in bytes.
const (
	// ManifestMax is the size of the largest manifest that hosts share: that of crane, the most patient client known
	// with a bound. Registries need not take more than 4 MiB (OCI distribution-spec, "Pushing Manifests"), and containerd,
	// Podman and oras refuse more. Nothing reads so much into memory.
	ManifestMax = 100 << 20
	// ManifestParsed is the size of the largest manifest that is read into memory. Of a larger one each part needs a
	// lookup of its own, since nobody knows what it names.
	ManifestParsed = 4 << 20
)

// ManifestTypes returns the Accept of a manifest for a client that sends none.
func ManifestTypes() []string {
	return []string{MediaTypeIndex, MediaTypeManifest, MediaTypeDockerList, MediaTypeDockerManifest, "*/*"}
}

// NamesContent reports whether a media type describes a manifest. An empty one and the generic type of a
// blob do not, and containerd fails a pull over them.
func NamesContent(mediaType string) bool {
	base, _, err := mime.ParseMediaType(mediaType)
	return err == nil && base != MediaTypeBlob
}

// mediaTypeSigned is that of a signed manifest (Docker image manifest version 2, schema 1), mediaTypeSchema1 that of
// one without signatures. Some registries give the latter to both.
const (
	mediaTypeSigned  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	mediaTypeSchema1 = "application/vnd.docker.distribution.manifest.v1+json"
)

// Signed reports whether a manifest of a media type may be signed: its digest is that of its payload, and not of its
// bytes.
func Signed(mediaType string) bool {
	base, _, err := mime.ParseMediaType(mediaType)
	return err == nil && (base == mediaTypeSigned || base == mediaTypeSchema1)
}

// SniffManifest derives the media type of a manifest from its "mediaType" or else its fields, for
// registries that send none. It is empty if the text is no manifest.
func SniffManifest(content []byte) string {
	var m struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Config        json.RawMessage   `json:"config"`
		FSLayers      []json.RawMessage `json:"fsLayers"`
	}
	if len(content) > ManifestParsed || json.Unmarshal(content, &m) != nil {
		return ""
	}
	switch {
	case len(m.MediaType) <= 255 && NamesContent(m.MediaType):
		return m.MediaType
	case m.Manifests != nil:
		return MediaTypeIndex
	case m.Config != nil:
		return MediaTypeManifest
	case m.SchemaVersion == 1 && m.FSLayers != nil:
		return mediaTypeSigned
	}
	return ""
}
