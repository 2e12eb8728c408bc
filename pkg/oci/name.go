// Package oci parses the terms of the OCI distribution API: names of registries and repositories,
// digests, media types and byte ranges.
//
// A name that these functions return is checked and in one spelling: two clients that mean the same
// registry never get two names. Everything here is a pure function of text. Start at [ParseHost],
// [ParseDigest] and [ParseRange].
package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/reference"

	"github.com/darter-io/darter/pkg/task"
)

// The reasons to refuse a name.
var (
	// ErrInvalidHost reports that a text is no name of a registry.
	ErrInvalidHost = errors.New("invalid registry name")
	// ErrInvalidRepository reports that a text is no name of a repository.
	ErrInvalidRepository = errors.New("invalid repository name")
	// ErrInvalidDigest reports that a text is no digest of a supported algorithm.
	ErrInvalidDigest = errors.New("invalid digest")
)

// Bounds on names, in bytes.
const (
	// HostMax is the longest DNS name with the longest port.
	HostMax = 253 + len(":65535")
	// RepositoryMax is the longest name that registries accept (distribution-spec, "Pulling manifests").
	RepositoryMax = 255
)

// DockerHub is the name of Docker Hub in image references.
const DockerHub = "docker.io"

// dockerHubEndpoint is the host that serves Docker Hub's /v2/; docker.io itself does not.
const dockerHubEndpoint = "registry-1.docker.io"

var (
	hostRegexp       = regexp.MustCompile(`^(?:` + reference.DomainRegexp.String() + `)$`)
	repositoryRegexp = regexp.MustCompile(
		`^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`)
	tagRegexp = regexp.MustCompile(`^` + reference.TagRegexp.String() + `$`)
)

// ParseHost checks the name of a registry, "quay.io" or "registry.test:5000", and returns its one
// spelling: lower case, and "docker.io" for every name of Docker Hub. The error wraps [ErrInvalidHost].
func ParseHost(s string) (string, error) {
	if len(s) > HostMax || !hostRegexp.MatchString(s) {
		return "", fmt.Errorf("%w: %.100q", ErrInvalidHost, s)
	}
	name, port := strings.ToLower(s), ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, ']') {
		name, port = name[:i], name[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", fmt.Errorf("%w: the port of %.100q is not 1 to 65535", ErrInvalidHost, s)
		}
	}
	if strings.HasPrefix(name, "[") {
		if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err != nil {
			return "", fmt.Errorf("%w: %.100q is no IPv6 address", ErrInvalidHost, s)
		}
	}
	switch name {
	case DockerHub, "index." + DockerHub, dockerHubEndpoint:
		if port == "" || port == "443" {
			return DockerHub, nil
		}
	}
	if port != "" {
		name += ":" + port
	}
	return name, nil
}

// ParseHostURL is [ParseHost] for a text that may also be the URL of a registry ("https://quay.io"). It
// drops the scheme: the operator configures how to reach a registry, not the client.
func ParseHostURL(s string) (string, error) {
	if !strings.Contains(s, "://") {
		return ParseHost(strings.TrimSuffix(s, "/"))
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return "", fmt.Errorf("%w: %.100q", ErrInvalidHost, s)
	}
	return ParseHost(u.Host)
}

// Endpoint is the host that serves a registry's API: its name, except for Docker Hub.
func Endpoint(host string) string {
	if host == DockerHub {
		return dockerHubEndpoint
	}
	return host
}

// LooksLikeHost reports whether the first part of an image name is a registry and not part of the
// repository: it has a dot or a colon, or is "localhost".
func LooksLikeHost(part string) bool {
	return part == "localhost" || strings.HasPrefix(part, "localhost_") || strings.ContainsAny(part, ".:")
}

// SplitPrefix splits a registry off the front of a name: "quay.io/coreos/etcd" is "coreos/etcd" at
// "quay.io". ok is false if the name has no such prefix.
func SplitPrefix(name string) (prefix, repository string, ok bool) {
	first, rest, ok := strings.Cut(name, "/")
	if !ok || !LooksLikeHost(first) {
		return "", "", false
	}
	return first, rest, true
}

// ParsePrefix is [ParseHost] for a prefix. It may spell its port with an underscore,
// "registry.test_5000", because clients that need a prefix allow no colon there.
func ParsePrefix(prefix string) (string, error) {
	if host, port, ok := strings.Cut(prefix, "_"); ok && !strings.Contains(prefix, ":") {
		prefix = host + ":" + port
	}
	return ParseHost(prefix)
}

// ParseRepository checks the name of a repository and completes it: on Docker Hub "alpine" means
// "library/alpine". The host is one that [ParseHost] returned. The error wraps [ErrInvalidRepository].
func ParseRepository(host, name string) (string, error) {
	if len(name) > RepositoryMax || !repositoryRegexp.MatchString(name) {
		return "", fmt.Errorf("%w: %.100q", ErrInvalidRepository, name)
	}
	if host == DockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	return name, nil
}

// ParseDigest checks a digest, sha256 or sha512, and returns its task. The error wraps
// [ErrInvalidDigest].
func ParseDigest(s string) (task.ID, error) {
	id, err := task.ParseID(s)
	if err != nil {
		return "", fmt.Errorf("%w: %.150q (want sha256:<64 hex> or sha512:<128 hex>, lower case)", ErrInvalidDigest, s)
	}
	if _, ok := id.Digest(); !ok {
		return "", fmt.Errorf("%w: %.150q", ErrInvalidDigest, s)
	}
	return id, nil
}

// NewHash returns the hash of a digest's algorithm, to compare a stream of bytes with the digest. The
// error wraps [ErrInvalidDigest].
func NewHash(digest string) (hash.Hash, error) {
	switch algorithm, _, _ := strings.Cut(digest, ":"); algorithm {
	case "sha256":
		return sha256.New(), nil
	case "sha512":
		return sha512.New(), nil
	default:
		return nil, fmt.Errorf("%w: algorithm %.50q is not known", ErrInvalidDigest, algorithm)
	}
}

// DigestOf returns the task of a blob in memory.
func DigestOf(content []byte) task.ID {
	sum := sha256.Sum256(content)
	return task.ID("sha256:" + hex.EncodeToString(sum[:]))
}

// IsTag reports whether a manifest's reference is well formed as a tag.
func IsTag(reference string) bool { return tagRegexp.MatchString(reference) }
