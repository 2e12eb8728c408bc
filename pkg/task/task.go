// Package task names tasks. A task is the unit that a swarm shares: one immutable blob, manifest or version of a file.
//
// Two nodes compute the same [ID] for the same bytes without a message. Other bytes have another ID, so that pieces of
// two versions never mix. Start at [ID] and [Spec].
package task

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/darter-io/darter/pkg/secret"
)

// ErrInvalidID reports a text that is not a task ID.
var ErrInvalidID = errors.New("invalid task ID")

// ID names a task: "sha256:<64 hex>" or "sha512:<128 hex>" for a blob or manifest (OCI image-spec, descriptor digests),
// "file:<64 hex>" for a version of a file, named by its URL and validator. An ID with its colon replaced is safe as a
// file name. It contains no secret.
type ID string

// algorithms maps the prefix of an ID to the length of its lower-case hex part.
var algorithms = map[string]int{"sha256": 64, "sha512": 128, "file": 64}

// ParseID parses a text from outside. The error wraps [ErrInvalidID].
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

// Digest returns the digest of all bytes in OCI form; ok is false for a file, whose ID does not depend on its bytes.
func (id ID) Digest() (digest string, ok bool) {
	if strings.HasPrefix(string(id), "file:") {
		return "", false
	}
	return string(id), true
}

// Swarm returns the task's 20-byte name in the BitTorrent handshake (BEP 3, info_hash): the first 20 bytes of SHA-256
// over the ID.
func (id ID) Swarm() (h [20]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(h[:], sum[:])
	return h
}

// Short returns the ID for people: algorithm and twelve digits.
func (id ID) Short() string {
	algorithm, hexPart, _ := strings.Cut(string(id), ":")
	if len(hexPart) > 12 {
		hexPart = hexPart[:12]
	}
	return algorithm + ":" + hexPart
}

// File is the identity of a file at a URL. Two files with equal fields are the same task.
type File struct {
	// URL is absolute and without the query parameters that only sign it.
	URL string
	// Validator is the origin's ETag, or else its Last-Modified.
	Validator string
	// Length in bytes, −1 if the origin does not report it.
	Length int64
	// Tag and Application separate downloads at the wish of a user.
	Tag, Application string
	// Cover identifies the rest of the request that selects the bytes, mostly headers; see package sharing. Empty if
	// nothing else does.
	Cover string
}

// ID derives the task's ID from every field of f.
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

// Kind is how a task is requested from its origin.
type Kind string

// The kinds of tasks.
const (
	Blob     Kind = "blob"     // GET /v2/<repository>/blobs/<digest>
	Manifest Kind = "manifest" // GET /v2/<repository>/manifests/<digest>
	Plain    Kind = "file"     // GET of a URL
)

// Spec is all that an owner needs to download a task from its origin. It holds the credentials of the first client, so
// that it is sent only to owners and never stored.
type Spec struct {
	ID   ID
	Kind Kind
	// Upstream is the registry as clients name it ("quay.io", "registry.test:5000"), Repository the repository in it.
	// Both are empty for a file.
	Upstream, Repository string
	// URL of a file; empty for a blob or manifest.
	URL string
	// Digest is the digest in OCI form that a user expects of a file (dfget --digest). Empty for a blob or manifest,
	// whose ID is its digest.
	Digest string
	// Validator is the ETag or Last-Modified of the file's version. An origin that responds with another one has
	// changed the file.
	Validator string
	// Length in bytes if the origin reported it beforehand (HEAD), else 0.
	Length int64
	// Promised is the length in bytes according to a manifest's descriptor, else 0. It bounds what is read for this
	// client only: another manifest may state another length.
	Promised int64
	// Hint is the length in bytes that a registry stated before the GET (HEAD), else 0. Some registries state a wrong
	// one: it only bounds how much is kept of a body whose length nothing else states.
	Hint int64
	// Accept is the Accept header for a manifest's GET.
	Accept []string
	// Tag is a tag that means a manifest, for registries that do not serve it by its digest; empty if none is known.
	Tag string
	// Authorization is the client's own header value for the origin.
	Authorization secret.String
	// Agent is the client's User-Agent, for a registry that serves by it; empty if unknown.
	Agent string
	// Header holds a user's further headers for a file's origin; values may be secret.
	Header map[string]secret.String
	// Share is the set of clients that may share a file's bytes (package sharing); the response to the GET must allow
	// it. Empty for no check, as for a blob or manifest.
	Share string
	// Alone keeps the task on this host: the host requests it from the origin itself and sends no owner its spec. It is
	// not on the wire.
	Alone bool
}

// SameAsker reports whether both specs send the same client's credentials to the same place with the same promised
// length. A file's URL is compared too, because it may hold a signature, and a manifest's tag, because a registry that
// serves no manifest by its digest refuses those who name no tag, or one that has moved.
func (s Spec) SameAsker(o Spec) bool {
	return s.Upstream == o.Upstream && s.Repository == o.Repository && s.URL == o.URL && s.Promised == o.Promised &&
		s.Tag == o.Tag && s.Authorization == o.Authorization && maps.Equal(s.Header, o.Header)
}

// Asker returns a short name of whose request this is: of the place and the credentials. It is an HMAC with a key of
// the cluster, so that a stranger cannot test passwords against it.
func (s Spec) Asker(key []byte) string {
	h := hmac.New(sha256.New, key)
	for _, part := range []string{s.Upstream, s.Repository, s.URL, s.Authorization.Reveal()} {
		fmt.Fprintf(h, "%q\n", part)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Header)) {
		fmt.Fprintf(h, "%q: %q\n", name, s.Header[name].Reveal())
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Name returns the task's name for people: registry and repository, or the URL of a file without its secrets.
func (s Spec) Name() string {
	if s.URL == "" {
		return strings.Trim(s.Upstream+"/"+s.Repository, "/")
	}
	return secret.PrintableURLText(s.URL)
}

// Known returns the length in bytes if it is known beforehand, else 0. The origin's own header counts before a
// manifest's descriptor.
func (s Spec) Known() int64 {
	if s.Length > 0 {
		return s.Length
	}
	return max(0, s.Promised)
}

// WholeDigest returns the digest that all bytes together must have, in OCI form.
func (s Spec) WholeDigest() (string, bool) {
	if s.Digest != "" {
		return s.Digest, true
	}
	return s.ID.Digest()
}
