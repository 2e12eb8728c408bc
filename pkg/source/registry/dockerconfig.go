package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/darter-io/darter/pkg/oci"
)

// Bounds of reading credentials.
const (
	// dockerConfigMax is the largest file, in bytes; a Kubernetes secret holds 1 MiB.
	dockerConfigMax = 1 << 20
)

// dockerConfig is a file in which docker login, podman login or a Kubernetes pull secret keeps credentials.
// It is read again when it has changed. Safe for concurrent use.
type dockerConfig struct {
	path string

	helpers helpers

	// mu is held while the file is read, never while a helper runs.
	mu       sync.Mutex
	modified time.Time
	size     int64
	file     *dockerFile // replaced, never changed
}

// dockerFile is the part of the file that holds credentials.
type dockerFile struct {
	Auths       map[string]authn.AuthConfig `json:"auths"`
	CredsStore  string                      `json:"credsStore"`
	CredHelpers map[string]string           `json:"credHelpers"`
}

// get finds the credential for a repository of a registry: that of the longest path in the file, else that
// of the registry. ok is false if there is none. No error quotes the file or a helper.
func (d *dockerConfig) get(ctx context.Context,
	registry, repository string) (auth authn.AuthConfig, ok bool, err error) {
	file, err := d.read()
	if err != nil {
		return auth, false, fmt.Errorf("credentials for %s: %w", registry, err)
	}
	names := serverNames(registry)
	for path := repository; path != ""; path = path[:max(0, strings.LastIndexByte(path, '/'))] {
		for _, server := range names {
			if auth, ok := file.Auths[server+"/"+path]; ok && auth != (authn.AuthConfig{}) {
				return auth, true, nil
			}
		}
	}
	for _, server := range names {
		if helper := file.CredHelpers[server]; helper != "" {
			return d.help(ctx, file, helper, server)
		}
	}
	for key, auth := range file.Auths {
		if auth == (authn.AuthConfig{}) {
			continue // an entry that only refers to a store
		}
		for _, server := range names {
			if server == serverOf(key) {
				return auth, true, nil
			}
		}
	}
	if file.CredsStore != "" {
		return d.help(ctx, file, file.CredsStore, names[0])
	}
	return auth, false, nil
}

// concerns reports whether there may be a credential for some repository of a registry. It runs no helper. A
// file that cannot be read may hold one.
func (d *dockerConfig) concerns(registry string) bool {
	file, err := d.read()
	if err != nil || file.CredsStore != "" {
		return true
	}
	for _, server := range serverNames(registry) {
		if file.CredHelpers[server] != "" {
			return true
		}
		for key := range file.Auths {
			if serverOf(key) == server || strings.HasPrefix(key, server+"/") {
				return true
			}
		}
	}
	return false
}

// serverNames are the names under which files keep a registry's credentials, the usual one first.
func serverNames(registry string) []string {
	if registry == oci.DockerHub {
		return []string{"https://index.docker.io/v1/", "index.docker.io", oci.DockerHub, oci.Endpoint(oci.DockerHub)}
	}
	return []string{registry}
}

// serverOf removes the scheme and the version that old versions of Docker and Kubernetes add to the name in a key.
func serverOf(key string) string {
	if key == "https://index.docker.io/v1/" {
		return key
	}
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	return strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
}

// read returns the file as it is now.
func (d *dockerConfig) read() (*dockerFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.load(); err != nil {
		return nil, err
	}
	return d.file, nil
}

// load reads the file if it has changed. mu is held.
func (d *dockerConfig) load() error {
	info, err := os.Stat(d.path) // of the file that a link leads to: Kubernetes swaps links
	if err != nil {
		return err
	}
	if d.file != nil && info.ModTime().Equal(d.modified) && info.Size() == d.size {
		return nil
	}
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, dockerConfigMax+1))
	if err != nil {
		return err
	}
	if len(b) > dockerConfigMax {
		return fmt.Errorf("%s is larger than %d bytes", d.path, dockerConfigMax)
	}
	file, err := parseDockerConfig(b)
	if err != nil {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	d.file, d.modified, d.size = file, info.ModTime(), info.Size()
	return nil
}

// parseDockerConfig reads a config.json, an auth.json or a .dockerconfigjson, or a .dockercfg, which is only
// the list of credentials.
func parseDockerConfig(b []byte) (*dockerFile, error) {
	var top map[string]json.RawMessage
	// A decoder's error may quote a secret.
	wrong := errors.New("it is no Docker configuration: it must be a JSON object with auths, credHelpers or credsStore, " +
		"and each auth in base64")
	if json.Unmarshal(b, &top) != nil {
		return nil, wrong
	}
	_, auths := top["auths"]
	_, helpers := top["credHelpers"]
	_, store := top["credsStore"]
	file := &dockerFile{}
	if len(top) > 0 && !auths && !helpers && !store {
		if json.Unmarshal(b, &file.Auths) != nil {
			return nil, wrong
		}
		return file, nil
	}
	if json.Unmarshal(b, file) != nil {
		return nil, wrong
	}
	return file, nil
}

// credential is the node's own for a repository; ok is false if it has none.
func (u *upstream) credential(ctx context.Context, repository string) (auth authn.AuthConfig, ok bool, err error) {
	if u.docker != nil {
		return u.docker.get(ctx, u.name, repository)
	}
	auth = authn.AuthConfig{Username: u.Username, Password: u.Password.Reveal(), IdentityToken: u.IdentityToken.Reveal()}
	return auth, u.hasCredentials(), nil
}

// currentCredential is the node's credential at the time of each login, so that a changed one is used at once.
type currentCredential struct {
	u          *upstream
	repository string
}

// Authorization implements [authn.Authenticator].
func (k currentCredential) Authorization() (*authn.AuthConfig, error) {
	return k.AuthorizationContext(context.Background())
}

// AuthorizationContext implements [authn.ContextAuthenticator].
func (k currentCredential) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	auth, _, err := k.u.credential(ctx, k.repository)
	return &auth, err
}
