package node

import (
	"net/http"
	"net/url"

	"github.com/darter-io/darter/pkg/source/registry"
)

// OpenRegistries returns a client of the registries of these settings, for programs that check them without a node. It
// sends no request.
func OpenRegistries(cfg Config) (*registry.Client, error) { return newRegistries(cfg) }

// Reach says where a registry is and how it is spoken to; see [registry.Client.Reach].
func (r *Registries) Reach(name string) (*url.URL, http.RoundTripper, error) {
	return r.now.Load().Reach(name)
}

// At reports whether a listed registry is at a host and port; see [registry.Client.At].
func (r *Registries) At(host string, port uint16) bool { return r.now.Load().At(host, port) }
