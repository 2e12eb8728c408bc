package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	// helperMax is the longest answer of a credential helper, in bytes.
	helperMax = 64 << 10
	// helperTimeout bounds one run of a helper; some ask a cloud.
	helperTimeout = 10 * time.Second
	// helperLife is how long a helper's answer is used before it is run again.
	helperLife = time.Minute
)

// dockerConfig is a file in which docker login, podman login or a Kubernetes pull secret
// keeps credentials. It is read anew when it has changed. Safe for concurrent use.
type dockerConfig struct {
	path string

	// mu is held while the file is read and while a helper runs, so that one run serves all.
	mu       sync.Mutex
	modified time.Time
	size     int64
	file     *dockerFile
	helped   map[string]helped // by server
}

// dockerFile is what of the file concerns credentials.
type dockerFile struct {
	Auths       map[string]authn.AuthConfig `json:"auths"`
	CredsStore  string                      `json:"credsStore"`
	CredHelpers map[string]string           `json:"credHelpers"`
}

// helped is what a helper answered.
type helped struct {
	auth authn.AuthConfig
	at   time.Time
}

// get finds the credential for a repository of a registry: that of the longest path that the
// file names, then that of the registry. ok is false when there is none. No error quotes the
// file or a helper.
func (d *dockerConfig) get(ctx context.Context, registry, repository string) (auth authn.AuthConfig, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.load(); err != nil {
		return auth, false, fmt.Errorf("credentials for %s: %w", registry, err)
	}
	names := serverNames(registry)
	for path := repository; path != ""; path = path[:max(0, strings.LastIndexByte(path, '/'))] {
		for _, server := range names {
			if auth, ok := d.file.Auths[server+"/"+path]; ok && auth != (authn.AuthConfig{}) {
				return auth, true, nil
			}
		}
	}
	for _, server := range names {
		if helper := d.file.CredHelpers[server]; helper != "" {
			return d.help(ctx, helper, server)
		}
	}
	for key, auth := range d.file.Auths {
		if auth == (authn.AuthConfig{}) {
			continue // an entry that says only that a store has it
		}
		for _, server := range names {
			if server == serverOf(key) {
				return auth, true, nil
			}
		}
	}
	if d.file.CredsStore != "" {
		return d.help(ctx, d.file.CredsStore, names[0])
	}
	return auth, false, nil
}

// concerns reports whether there may be a credential for some repository of a registry. It
// runs no helper. A file that cannot be read may hold one.
func (d *dockerConfig) concerns(registry string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.load() != nil || d.file.CredsStore != "" {
		return true
	}
	for _, server := range serverNames(registry) {
		if d.file.CredHelpers[server] != "" {
			return true
		}
		for key := range d.file.Auths {
			if serverOf(key) == server || strings.HasPrefix(key, server+"/") {
				return true
			}
		}
	}
	return false
}

// serverNames are the names under which a registry's credentials are kept, the usual one
// first.
func serverNames(registry string) []string {
	if registry == oci.DockerHub {
		return []string{"https://index.docker.io/v1/", "index.docker.io", oci.DockerHub, oci.Endpoint(oci.DockerHub)}
	}
	return []string{registry}
}

// serverOf takes from a key what old versions of Docker and Kubernetes put around the name.
func serverOf(key string) string {
	if key == "https://index.docker.io/v1/" {
		return key
	}
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	return strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
}

// load reads the file if it is another than before. mu is held.
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
	d.file, d.modified, d.size, d.helped = file, info.ModTime(), info.Size(), nil
	return nil
}

// parseDockerConfig reads a config.json, an auth.json or a .dockerconfigjson; a .dockercfg,
// too, which is the list of credentials alone.
func parseDockerConfig(b []byte) (*dockerFile, error) {
	var top map[string]json.RawMessage
	// What a decoder says may quote what it read.
	wrong := errors.New("it is no Docker configuration: a JSON object with auths, credHelpers or credsStore is expected, and each auth in base64")
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

// help asks a credential helper, by the protocol of docker-credential-helpers: the server on
// its standard input, JSON on its standard output. mu is held.
func (d *dockerConfig) help(ctx context.Context, helper, server string) (authn.AuthConfig, bool, error) {
	if h, ok := d.helped[server]; ok && time.Since(h.at) < helperLife {
		return h.auth, h.auth != (authn.AuthConfig{}), nil
	}
	program := "docker-credential-" + helper
	if strings.ContainsAny(helper, `/\`) {
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: %s names a helper by a path; a name is expected, of a docker-credential-NAME in the PATH", server, d.path)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.WaitDelay = time.Second
	out := &bounded{max: helperMax}
	cmd.Stdout = out
	err := cmd.Run()
	var answer struct{ Username, Secret string }
	switch {
	case err != nil && strings.Contains(out.String(), "credentials not found"):
		// The protocol's words for "there are none".
	case err != nil:
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: %s failed (%w); try it by hand: echo %s | %s get", server, program, err, server, program)
	case json.Unmarshal(out.Bytes(), &answer) != nil:
		return authn.AuthConfig{}, false, fmt.Errorf("credentials for %s: %s answered no JSON of at most %d bytes", server, program, helperMax)
	}
	auth := authn.AuthConfig{Username: answer.Username, Password: answer.Secret}
	if answer.Username == "<token>" {
		auth = authn.AuthConfig{IdentityToken: answer.Secret}
	}
	if d.helped == nil {
		d.helped = map[string]helped{}
	}
	d.helped[server] = helped{auth, time.Now()}
	return auth, auth != (authn.AuthConfig{}), nil
}

// bounded takes so many bytes and drops the rest.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	_, _ = b.Buffer.Write(p[:min(len(p), max(0, b.max-b.Len()))])
	return len(p), nil
}

// credential is the node's own for a repository; ok is false when it has none.
func (u *upstream) credential(ctx context.Context, repository string) (auth authn.AuthConfig, ok bool, err error) {
	if u.docker != nil {
		return u.docker.get(ctx, u.name, repository)
	}
	return authn.AuthConfig{Username: u.Username, Password: u.Password.Reveal(), IdentityToken: u.IdentityToken.Reveal()}, u.hasCredentials(), nil
}

// keeper gives the node's credential as it is at the moment, so that one that changes or ends
// is followed by the next.
type keeper struct {
	u          *upstream
	repository string
}

// Authorization implements [authn.Authenticator].
func (k keeper) Authorization() (*authn.AuthConfig, error) {
	return k.AuthorizationContext(context.Background())
}

// AuthorizationContext implements [authn.ContextAuthenticator].
func (k keeper) AuthorizationContext(ctx context.Context) (*authn.AuthConfig, error) {
	auth, _, err := k.u.credential(ctx, k.repository)
	return &auth, err
}
