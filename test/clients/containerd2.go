package clients

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// containerd2 pulls like containerd 2.x, without unpacking.
func containerd2(ctx context.Context, q Request) error {
	return containerd2With(ctx, q)
}

// parallelChunk is the size of one request of a parallel download, in bytes.
const parallelChunk = 256 << 10

// containerd2Parallel is containerd2 with concurrent_layer_fetch_buffer.
func containerd2Parallel(ctx context.Context, q Request) error {
	return containerd2With(ctx, q, transfer.WithConcurrentLayerFetchBuffer(parallelChunk),
		transfer.WithMaxConcurrentDownloads(4))
}

func containerd2With(ctx context.Context, q Request, options ...transfer.ImageResolverOption) error {
	dir, err := hostsToml(q)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(dir),
		Credentials: func(string) (string, string, error) { return q.User, q.Password, nil },
	})})
	if with, ok := resolver.(remotes.ResolverWithOptions); ok {
		with.SetOptions(options...)
	}
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
