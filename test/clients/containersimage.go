package clients

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// containersImage pulls like Podman, CRI-O, Buildah and skopeo. auth.json holds the credentials, under the names of the
// mirror and of the registry.
func containersImage(ctx context.Context, q Request) error {
	conf, err := os.MkdirTemp("", "containers-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(conf)
	registries := filepath.Join(conf, "registries.conf")
	text := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = "+
		"%q\ninsecure = true\n", Registry, q.server(), q.prefixed())
	if q.Server == "" {
		text = fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", Registry, q.prefixed())
	}
	if err := os.WriteFile(registries, []byte(text), 0o644); err != nil {
		return err
	}
	auth, login := filepath.Join(conf, "auth.json"), "{}"
	if q.User != "" {
		both := base64.StdEncoding.EncodeToString([]byte(q.User + ":" + q.Password))
		login = fmt.Sprintf(`{"auths": {%q: {"auth": %q}, %q: {"auth": %q}}}`, q.Mirror, both, q.server(), both)
		if q.Server == "" {
			login = fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, q.Mirror, both)
		}
	}
	if err := os.WriteFile(auth, []byte(login), 0o600); err != nil {
		return err
	}

	source, err := docker.ParseReference("//" + q.image(Registry))
	if err != nil {
		return err
	}
	target, err := layout.NewReference(q.Dir, "")
	if err != nil {
		return err
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{
		signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	_, err = copy.Image(ctx, policy, target, source, &copy.Options{
		PreserveDigests: true,
		SourceCtx: &types.SystemContext{
			SystemRegistriesConfPath: registries, SystemRegistriesConfDirPath: filepath.Join(conf, "none"),
			AuthFilePath:             auth,
			DockerPerHostCertDirPath: filepath.Join(conf, "none"), OSChoice: "linux", ArchitectureChoice: "amd64",
			BlobInfoCacheDir: conf,
		},
		DestinationCtx: &types.SystemContext{BlobInfoCacheDir: conf},
	})
	return err
}
