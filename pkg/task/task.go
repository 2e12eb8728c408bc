// Package task names what is distributed: one immutable content each.
//
// Two nodes that speak of the same content compute the same [ID] without asking anybody,
// and content that changes has another ID, so that pieces of two versions never mix.
// Start at [ID] and [Spec].
package task

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/darter-io/darter/pkg/secret"
)

// ErrInvalidID tells that a text is no task ID.
var ErrInvalidID = errors.New("invalid task ID")

// ID names one immutable content: "sha256:<64 hex>" or "sha512:<128 hex>" for content whose
// digest is known beforehand (OCI image-spec, descriptor digests), "file:<64 hex>" for a
// file known by its URL and validator. An ID is safe as a file name once its colon is
// replaced, and holds nothing secret.
type ID string

// algorithms maps the prefix of an ID to the length of its lower-case hex part.
var algorithms = map[string]int{"sha256": 64, "sha512": 128, "file": 64}

// ParseID checks a text that came from outside. The error wraps [ErrInvalidID].
func ParseID(s string) (ID, error) {
	algorithm, hexPart, ok := strings.Cut(s, ":")
	if !ok || algorithms[algorithm] == 0 || len(hexPart) != algorithms[algorithm] {
		return "", fmt.Errorf("%w: %.150q", ErrInvalidID, s)
	}
	for _, c := range []byte(hexPart) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("%w: %.150q", ErrInvalidID, s)
		}
	}
	return ID(s), nil
}

// Digest returns the digest of the whole content in OCI form; ok is false for a file,
// whose ID says nothing about its bytes.
func (id ID) Digest() (digest string, ok bool) {
	if strings.HasPrefix(string(id), "file:") {
		return "", false
	}
	return string(id), true
}

// Swarm is the task's 20-byte name in the BitTorrent handshake (BEP 3, info_hash): the
// first 20 bytes of SHA-256 over the ID.
func (id ID) Swarm() (h [20]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(h[:], sum[:])
	return h
}

// Short is the ID cut for people: algorithm and twelve digits.
func (id ID) Short() string {
	algorithm, hexPart, _ := strings.Cut(string(id), ":")
	if len(hexPart) > 12 {
		hexPart = hexPart[:12]
	}
	return algorithm + ":" + hexPart
}

// File is the identity of a file at a URL. Two files with equal fields are the same task.
type File struct {
	// URL is absolute and without the query parameters that only sign a request.
	URL string
	// Validator is the origin's ETag, or else its Last-Modified.
	Validator string
	// Length in bytes, −1 when the origin does not tell.
	Length int64
	// Tag and Application keep apart what a user wants kept apart.
	Tag, Application string
	// Cover names what else of a request chooses the bytes, its headers above all; see package
	// sharing. Empty for a request that has nothing of it.
	Cover string
}

// ID derives the task's name from every field of f.
func (f File) ID() ID {
	h := sha256.New()
	parts := []string{f.URL, f.Validator, strconv.FormatInt(f.Length, 10), f.Tag, f.Application}
	if f.Cover != "" {
		parts = append(parts, f.Cover)
	}
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return ID("file:" + hex.EncodeToString(h.Sum(nil)))
}

// Kind tells how the origin of a task is spoken to.
type Kind string

// The kinds of content.
const (
	Blob     Kind = "blob"     // GET /v2/<repository>/blobs/<digest>
	Manifest Kind = "manifest" // GET /v2/<repository>/manifests/<digest>
	Plain    Kind = "file"     // GET of a URL
)

// Spec is all that an owner needs to bring a task from its origin. It carries the
// credentials of whoever asked first, so it travels only to owners and is never stored.
type Spec struct {
	ID   ID
	Kind Kind
	// Upstream is the registry as clients name it ("quay.io", "registry.test:5000");
	// Repository the name in it. Both are empty for a file.
	Upstream, Repository string
	// URL of a file; empty for registry content.
	URL string
	// Digest in OCI form when the whole must match one although the ID does not say it
	// (dfget --digest). For registry content it is empty: the ID is the digest.
	Digest string
	// Validator is the ETag or Last-Modified of the file's version; an origin that
	// answers with another one has changed the file.
	Validator string
	// Length in bytes where the origin itself told it beforehand (a HEAD), else 0.
	Length int64
	// Promised is the length in bytes that a manifest's descriptor says, else 0. It bounds what is
	// read for this asker; it is not the registry's word, so another manifest may say otherwise.
	Promised int64
	// Accept is sent with a manifest's GET.
	Accept []string
	// Authorization is the client's own header value for the origin.
	Authorization secret.String
	// Header is what else a user wants sent to a file's origin; values may be secret.
	Header map[string]secret.String
	// Share is among whom a file's bytes may be shared (package sharing): the answer to the GET must
	// allow as much. Empty asks for no check, as for registry content.
	Share string
	// Alone keeps the task on this host: it asks the origin itself and tells no owner how. It is
	// not on the wire.
	Alone bool
}

// SameAsker reports whether an origin is asked in the same place, sees the same client behind both
// specs, and is held to the same promise. A file's URL may hold a signature, which is a credential, too.
func (s Spec) SameAsker(o Spec) bool {
	return s.Upstream == o.Upstream && s.Repository == o.Repository && s.URL == o.URL && s.Promised == o.Promised &&
		s.Authorization == o.Authorization && maps.Equal(s.Header, o.Header)
}

// Name is what people call the content: registry and repository, or the URL of a file without
// what in it may be secret.
func (s Spec) Name() string {
	if s.URL == "" {
		return strings.Trim(s.Upstream+"/"+s.Repository, "/")
	}
	name, _, _ := strings.Cut(s.URL, "?")
	name, _, _ = strings.Cut(name, "#")
	scheme, rest, ok := strings.Cut(name, "://")
	if !ok {
		return ""
	}
	host, path, _ := strings.Cut(rest, "/")
	return scheme + "://" + host[strings.LastIndex(host, "@")+1:] + "/" + path
}

// Known returns the length in bytes that is known beforehand, the origin's own word before a
// manifest's; 0 when nobody said.
func (s Spec) Known() int64 {
	if s.Length > 0 {
		return s.Length
	}
	return max(0, s.Promised)
}

// WholeDigest returns the digest that the whole content must have, in OCI form.
func (s Spec) WholeDigest() (string, bool) {
	if s.Digest != "" {
		return s.Digest, true
	}
	return s.ID.Digest()
}
