package clients

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/remotes"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/containerd/remotes/docker/config"

	"github.com/containerd/containerd/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerd1 pulls like containerd 1.x, without unpacking.
func containerd1(ctx context.Context, q Request) error {
	dir, err := hostsToml(q)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(dir),
		Credentials: func(string) (string, string, error) { return q.User, q.Password, nil },
	})})
	name, desc, err := resolver.Resolve(ctx, q.image(Registry))
	if err != nil {
		return fmt.Errorf("resolving %s: %w", q.image(Registry), err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
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
