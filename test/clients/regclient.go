package clients

import (
	"context"
	"time"

	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/ref"
)

// regclientPull copies like regctl, an index with all its platforms.
func regclientPull(ctx context.Context, q Request) error {
	const mirror = "mirror"
	host := func(name, hostname string) config.Host {
		return config.Host{Name: name, Hostname: hostname, TLS: config.TLSDisabled, User: q.User, Pass: q.Password,
			ReqPerSec: 1000, ReqConcurrent: 3}
	}
	registry, through := host(Registry, q.server()), host(mirror, q.Mirror)
	through.PathPrefix, through.Priority = Registry, 1
	registry.Mirrors, registry.Priority = []string{mirror}, 10
	if q.Server == "" {
		registry.PathPrefix = Registry
	}
	c := regclient.New(regclient.WithConfigHost(registry, through),
		regclient.WithRegOpts(reg.WithDelay(100*time.Millisecond, 5*time.Second)))
	from, err := ref.New(q.image(Registry))
	if err != nil {
		return err
	}
	to, err := ref.New("ocidir://" + q.Dir + ":pulled")
	if err != nil {
		return err
	}
	defer c.Close(ctx, to)
	return c.ImageCopy(ctx, from, to)
}
