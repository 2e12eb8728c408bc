package clients

import (
	"context"
	"net/netip"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// orasPull copies like oras, an index with all its platforms. oras has no mirrors: the mirror is part of the name.
func orasPull(ctx context.Context, q Request) error {
	repository, err := remote.NewRepository(q.prefixed() + "/" + q.Repository)
	if err != nil {
		return err
	}
	repository.PlainHTTP = true
	c := &auth.Client{
		Client: retry.NewClient(), Cache: auth.NewCache(),
		// By default it refuses a token service on loopback other than the registry's own.
		BlockedRealmPrefixes: []netip.Prefix{},
	}
	if q.User != "" {
		c.Credential = auth.StaticCredential(q.Mirror, auth.Credential{Username: q.User, Password: q.Password})
	}
	repository.Client = c
	store, err := oci.New(q.Dir)
	if err != nil {
		return err
	}
	_, err = oras.Copy(ctx, repository, q.Reference, store, "pulled", oras.DefaultCopyOptions)
	return err
}

// OrasDiscover lists what refers to a manifest, as oras discover and oras copy -r do.
func OrasDiscover(ctx context.Context, q Request) ([]ocispec.Descriptor, error) {
	repository, err := remote.NewRepository(q.prefixed() + "/" + q.Repository)
	if err != nil {
		return nil, err
	}
	repository.PlainHTTP = true
	desc, err := repository.Resolve(ctx, q.Reference)
	if err != nil {
		return nil, err
	}
	return registry.Referrers(ctx, repository, desc, "")
}
