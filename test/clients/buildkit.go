package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/testutil"
	"github.com/moby/buildkit/util/resolver"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/darter-io/darter/pkg/clientconf"
)

// buildkit pulls as BuildKit does for FROM. "dfdaemon configure buildkit" edits its configuration, which has another
// mirror already: the one that acts as the registry.
func buildkit(ctx context.Context, q Request) (err error) {
	file, err := buildkitToml(q)
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(file))
	settings, err := config.LoadFile(file)
	if err != nil {
		return fmt.Errorf("reading what was configured: %w", err)
	}
	// BuildKit has no credentials of its own: it asks the client that builds, for each host.
	sm, err := session.NewManager()
	if err != nil {
		return err
	}
	who, err := session.NewSession(ctx, "darter")
	if err != nil {
		return err
	}
	who.Allow(&builder{q: q})
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- who.Run(ctx, session.Dialer(testutil.TestStream(testutil.Handler(sm.HandleConn)))) }()
	defer func() {
		closed := who.Close()
		cancel()
		if e := <-ended; !errors.Is(e, context.Canceled) {
			closed = errors.Join(closed, e)
		}
		err = errors.Join(err, closed)
	}()

	ref := q.image(Registry)
	r := resolver.NewPool().GetResolver(resolver.NewRegistryConfig(settings.Registries), ref, resolver.ScopeType{}, sm,
		session.NewGroup(who.ID()))
	name, desc, err := r.Resolve(ctx, ref)
	if err != nil {
		return fmt.Errorf("resolving %s: %w", ref, err)
	}
	fetcher, err := r.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	store, err := local.NewStore(q.Dir)
	if err != nil {
		return err
	}
	platform := platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"})
	handler := images.Handlers(remotes.FetchHandler(store, fetcher),
		images.FilterPlatforms(images.ChildrenHandler(store), platform))
	return images.Dispatch(ctx, handler, nil, desc)
}

// buildkitToml writes the configuration.
func buildkitToml(q Request) (file string, err error) {
	root, err := os.MkdirTemp(q.Dir, "buildkit-")
	if err != nil {
		return "", err
	}
	file = filepath.Join(root, "buildkitd.toml")
	if q.Server != "" {
		text := fmt.Sprintf("[registry.%q]\nmirrors = [%q]\n[registry.%[2]q]\nhttp = true\n", Registry, q.Server)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	files := clientconf.Files{Root: root}
	plan, err := clientconf.Configure(clientconf.BuildKit, files, clientconf.Mirror{Addr: q.Mirror,
		Upstreams: []clientconf.Upstream{{Host: Registry}}}, clientconf.Options{Config: "/buildkitd.toml"})
	if err != nil {
		return "", err
	}
	return file, plan.Apply(files)
}

// builder is the client that builds, with a login at the registry.
type builder struct {
	auth.UnimplementedAuthServer
	q Request
}

// Register implements [session.Attachable].
func (b *builder) Register(s *grpc.Server) { auth.RegisterAuthServer(s, b) }

// Credentials returns the credentials for one host.
func (b *builder) Credentials(_ context.Context, of *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	if of.Host != b.q.Server || b.q.Server == "" {
		return &auth.CredentialsResponse{}, nil
	}
	return &auth.CredentialsResponse{Username: b.q.User, Secret: b.q.Password}, nil
}
