package clients

import (
	"context"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// cranePull pulls like crane, which has no mirrors: the mirror is part of the name.
func cranePull(ctx context.Context, q Request) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	options := []crane.Option{
		crane.WithContext(ctx), crane.Insecure, crane.WithTransport(transport),
		crane.WithPlatform(&v1.Platform{OS: "linux", Architecture: "amd64"}),
	}
	if q.User != "" {
		options = append(options, crane.WithAuth(&authn.Basic{Username: q.User, Password: q.Password}))
	}
	img, err := crane.Pull(q.image(q.prefixed()), options...)
	if err != nil {
		return err
	}
	return crane.SaveOCI(img, q.Dir)
}
