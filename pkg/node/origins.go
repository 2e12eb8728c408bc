package node

import (
	"fmt"
	"net/netip"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/task"
)

// Origins are the places outside the cluster that this node may ask.
type Origins struct {
	// Source brings content of every kind, for the engine.
	Source source.Origin
	// Files answers what a file is, Registries what a client of the mirror may have.
	Files      *httporigin.Origin
	Registries *registry.Client
}

func newOrigins(cfg Config) (o *Origins, err error) {
	o = &Origins{}
	common := httporigin.Config{AllowAddrs: prefixes(cfg.Files.AllowAddresses), UserAgent: "darter/" + config.Version()}
	r := registry.Config{Upstreams: map[string]registry.Upstream{}, HTTP: common, Logger: cfg.Logger}
	for _, u := range cfg.Origins.Upstreams {
		up := registry.Upstream{
			URLs: u.URLs, PlainHTTP: u.PlainHTTP, CAFile: u.CA, CertFile: u.ClientCert, KeyFile: u.ClientKey, Proxy: proxy(u.Proxy),
			Username: u.Username, AllowPrivateRealm: u.AllowPrivateRealm,
		}
		if u.PasswordFile != "" {
			if up.Password, err = config.ReadSecretFile(u.PasswordFile); err != nil {
				return nil, fmt.Errorf("upstreams: password of %s: %w", u.Host, err)
			}
		}
		r.Upstreams[u.Host] = up
	}
	if cfg.Origins.AllowUnlisted {
		r.Default = &registry.Upstream{}
	}
	if o.Registries, err = registry.New(r); err != nil {
		return nil, fmt.Errorf("upstreams: %w", err)
	}
	files := common
	files.CAFile, files.Proxy = cfg.Files.CA, proxy(cfg.Files.Proxy)
	if o.Files, err = httporigin.New(files); err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	o.Source = source.Mux{task.Plain: o.Files, task.Blob: o.Registries, task.Manifest: o.Registries}
	return o, nil
}

func (o *Origins) close() {
	o.Files.CloseIdleConnections()
	o.Registries.CloseIdleConnections()
}

// proxy is a setting in the words of httporigin.
func proxy(s secret.String) secret.String {
	if s == "none" {
		return "direct"
	}
	return s
}

func prefixes(list []config.Network) (out []netip.Prefix) {
	for _, n := range list {
		out = append(out, n.Prefix)
	}
	return out
}
