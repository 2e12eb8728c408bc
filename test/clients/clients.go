// Package clients pulls images with the libraries that container tools are made of, each
// configured for a mirror as the tools configure it.
//
// A pull that returns no error has left every blob where [Request].Dir says, checked by the
// library itself. The package is a module of its own, because Darter's programs depend on
// none of the libraries. Start at [All].
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

// Registry is the name of the registry that images are pulled from. It resolves to nothing:
// only a mirror, or [Request].Server, answers for it.
const Registry = "registry.test"

// Request is one pull.
type Request struct {
	// Mirror is host:port of the mirror, over plain HTTP.
	Mirror string
	// Server is host:port of what is asked where the mirror refuses, over plain HTTP; empty
	// asks the mirror again.
	Server string
	// Repository and Reference name the image: a tag, or a digest.
	Repository, Reference string
	// User and Password are given to whoever asks for them; no user, no credentials.
	User, Password string
	// Dir is where the content goes, as blobs/sha256/HEX.
	Dir string
}

// digested reports whether the reference is a digest.
func (q Request) digested() bool { return strings.HasPrefix(q.Reference, "sha256:") }

// image is the image's name at a host, which may carry a path.
func (q Request) image(host string) string {
	if q.digested() {
		return host + "/" + q.Repository + "@" + q.Reference
	}
	return host + "/" + q.Repository + ":" + q.Reference
}

// server is whom to ask where the mirror refuses.
func (q Request) server() string {
	if q.Server == "" {
		return q.Mirror
	}
	return q.Server
}

// prefixed is the mirror as a client names it that has no other way to say which registry it
// means.
func (q Request) prefixed() string { return q.Mirror + "/" + Registry }

// Library is a client library.
type Library struct {
	// Name says which, Module is its path, whose version is [Library.Version].
	Name, Module string
	// Servers says that the library itself goes to [Request].Server where its mirror
	// refuses.
	Servers bool
	// OwnLogin says that the library answers a mirror's challenge with the user's
	// credentials. Containers/image asks once per host who may come in, before it says which
	// registry it means, and a mirror of several registries cannot answer that; who builds with
	// BuildKit has credentials for the registry's name alone.
	OwnLogin bool
	// Pull pulls an image for linux/amd64, or of all platforms where the library knows no
	// other way.
	Pull func(context.Context, Request) error
}

// Version is that of the library's module, such as "v1.7.35"; empty when the program was
// built without modules.
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

// All are the libraries, by name.
func All() []Library {
	return []Library{
		{Name: "buildkit", Module: "github.com/moby/buildkit", Servers: true, Pull: buildkit},
		{Name: "containerd-1", Module: "github.com/containerd/containerd", Servers: true, OwnLogin: true, Pull: containerd1},
		{Name: "containerd-2", Module: "github.com/containerd/containerd/v2", Servers: true, OwnLogin: true, Pull: containerd2},
		{Name: "containerd-2-parallel", Module: "github.com/containerd/containerd/v2", Servers: true, OwnLogin: true, Pull: containerd2Parallel},
		{Name: "containers-image", Module: "go.podman.io/image/v5", Servers: true, Pull: containersImage},
		{Name: "crane", Module: "github.com/google/go-containerregistry", OwnLogin: true, Pull: cranePull},
		{Name: "docker", Module: "github.com/docker/distribution", OwnLogin: true, Pull: dockerPull},
		{Name: "oras", Module: "oras.land/oras-go/v2", OwnLogin: true, Pull: orasPull},
		{Name: "regclient", Module: "github.com/regclient/regclient", Servers: true, OwnLogin: true, Pull: regclientPull},
	}
}

// hostsToml is containerd's configuration of a mirror.
func hostsToml(q Request) (dir string, err error) {
	dir = filepath.Join(q.Dir, "certs.d")
	if err := os.MkdirAll(filepath.Join(dir, Registry), 0o755); err != nil {
		return "", err
	}
	text := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", q.server(), q.Mirror)
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
