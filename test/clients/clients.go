// Package clients pulls images with the libraries of container tools, each configured for a mirror like its tool.
//
// Every successful pull leaves all blobs in [Request].Dir, checked by the library itself. The package is a module of
// its own, so that Darter's programs depend on none of the libraries. Start at [All].
package clients

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// Registry is the name of the registry of all images. It does not resolve: only a mirror, or [Request].Server, answers
// for it.
const Registry = "registry.test"

// Request is one pull.
type Request struct {
	// Mirror is host:port of the mirror, over plain HTTP.
	Mirror string
	// Server is host:port of the fallback if the mirror refuses, over plain HTTP; empty means the mirror again.
	Server string
	// Repository and Reference name the image: a tag, or a digest.
	Repository, Reference string
	// User and Password are sent to every host that asks for them; without a user there are no credentials.
	User, Password string
	// Dir receives the blobs, as blobs/sha256/HEX.
	Dir string
}

// digested reports whether the reference is a digest.
func (q Request) digested() bool { return strings.HasPrefix(q.Reference, "sha256:") }

// image returns the image's name at a host, which may include a path.
func (q Request) image(host string) string {
	if q.digested() {
		return host + "/" + q.Repository + "@" + q.Reference
	}
	return host + "/" + q.Repository + ":" + q.Reference
}

// server returns the fallback if the mirror refuses.
func (q Request) server() string {
	if q.Server == "" {
		return q.Mirror
	}
	return q.Server
}

// prefixed returns the mirror with the registry as path prefix, for clients that have no other way to name it.
func (q Request) prefixed() string { return q.Mirror + "/" + Registry }

// Library is a client library.
type Library struct {
	// Name of the library, and Module, its path; see [Library.Version].
	Name, Module string
	// Servers is true if the library tries [Request].Server when its mirror refuses.
	Servers bool
	// OwnLogin is true if the library answers a mirror's challenge with the user's credentials. containers/image pings
	// each host once, before it names the registry, so a mirror of several registries cannot send a challenge; clients
	// of BuildKit have credentials only for the registry's name.
	OwnLogin bool
	// Pull pulls an image for linux/amd64, or for all platforms if the library cannot choose.
	Pull func(context.Context, Request) error
}

// Version returns the version of the library's module, such as "v1.7.35"; empty if the program was built without
// modules.
func (l Library) Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == l.Module {
			return m.Version
		}
	}
	return ""
}

// All returns the libraries by name.
func All() []Library {
	return []Library{
		{Name: "buildkit", Module: "github.com/moby/buildkit", Servers: true, Pull: buildkit},
		{Name: "containerd-1", Module: "github.com/containerd/containerd", Servers: true, OwnLogin: true,
			Pull: containerd1},
		{Name: "containerd-2", Module: "github.com/containerd/containerd/v2", Servers: true, OwnLogin: true,
			Pull: containerd2},
		{Name: "containerd-2-parallel", Module: "github.com/containerd/containerd/v2", Servers: true, OwnLogin: true,
			Pull: containerd2Parallel},
		{Name: "containers-image", Module: "go.podman.io/image/v5", Servers: true, Pull: containersImage},
		{Name: "crane", Module: "github.com/google/go-containerregistry", OwnLogin: true, Pull: cranePull},
		{Name: "docker", Module: "github.com/docker/distribution", OwnLogin: true, Pull: dockerPull},
		{Name: "oras", Module: "oras.land/oras-go/v2", OwnLogin: true, Pull: orasPull},
		{Name: "regclient", Module: "github.com/regclient/regclient", Servers: true, OwnLogin: true,
			Pull: regclientPull},
	}
}

// hostsToml writes containerd's configuration of a mirror.
func hostsToml(q Request) (dir string, err error) {
	dir = filepath.Join(q.Dir, "certs.d")
	if err := os.MkdirAll(filepath.Join(dir, Registry), 0o755); err != nil {
		return "", err
	}
	text := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		q.server(), q.Mirror)
	return dir, os.WriteFile(filepath.Join(dir, Registry, "hosts.toml"), []byte(text), 0o644)
}

// write stores a blob below dir and checks its digest, for libraries without a store.
func write(dir, digest string, r io.Reader) error {
	hexSum, ok := strings.CutPrefix(digest, "sha256:")
	if !ok {
		return fmt.Errorf("%s is no SHA-256", digest)
	}
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(blobs, hexSum))
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	if err = errors.Join(err, f.Close()); err == nil && hex.EncodeToString(sum.Sum(nil)) != hexSum {
		err = fmt.Errorf("%s has digest sha256:%x", digest, sum.Sum(nil))
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
