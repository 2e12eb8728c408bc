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

// ManifestMax is the size of the largest manifest that is read into memory, in bytes; containerd and
// Docker refuse larger ones too.
const ManifestMax = 4 << 20

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

// mediaTypeSigned is that of a signed manifest (Docker image manifest version 2, schema 1).
const mediaTypeSigned = "application/vnd.docker.distribution.manifest.v1+prettyjws"

// Signed reports whether a manifest of a media type is signed: its digest is that of its payload, and not of its bytes.
func Signed(mediaType string) bool {
	base, _, err := mime.ParseMediaType(mediaType)
	return err == nil && base == mediaTypeSigned
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
	if len(content) > ManifestMax || json.Unmarshal(content, &m) != nil {
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
