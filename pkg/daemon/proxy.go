package daemon

import (
	"fmt"
	"slices"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/registryproxy"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/version"
)

// openProxy prepares the HTTP proxy if the settings turn it on.
func (d *Daemon) openProxy(cfg config.Dfdaemon) (err error) {
	d.through.Store(&cfg.Proxy)
	if cfg.Proxy.Listen == "" {
		return nil
	}
	if d.httpListen, err = d.node.Listen("proxy.listen", cfg.Proxy.Listen); err != nil {
		return err
	}
	out := httporigin.Config{Proxy: "none", UserAgent: "darter/" + version.Current()}
	for _, n := range cfg.Files.AllowAddresses {
		out.AllowAddrs = append(out.AllowAddrs, n.Prefix)
	}
	client, err := httporigin.NewClient(out)
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	settings := httpproxy.Config{
		Mirror: d.proxy, NameHeader: registryproxy.HeaderUpstream,
		Names:    []string{registryproxy.HeaderUpstream, registryproxy.HeaderUpstreamDragonfly},
		Mirrored: d.mirrored, Reach: d.node.Origins.Registries.Reach, Allow: d.tunnelled, AllowPort: d.tunnelledPort,
		Dial: client.Dial, Transport: client.Transport(), Logger: d.node.Log,
	}
	if cfg.Proxy.CA != "" {
		if settings.Authority, err = httpproxy.LoadAuthority(cfg.Proxy.CA, cfg.Proxy.CAKey); err != nil {
			return err
		}
	}
	d.http = httpproxy.New(settings)
	return nil
}

// mirrored reports whether the proxy sends the pulls of a registry to the mirror.
func (d *Daemon) mirrored(host string) bool {
	name, err := oci.ParseHost(host)
	if err != nil || !d.node.Origins.Registries.Listed(name) {
		return false
	}
	hosts := d.through.Load().Hosts
	if len(hosts) == 0 {
		return name != oci.DockerHub
	}
	return slices.ContainsFunc(hosts, func(h string) bool {
		listed, err := oci.ParseHost(h)
		return err == nil && listed == name
	})
}

// tunnelled returns nil for a host, other than a mirrored registry, to which the proxy may connect.
func (d *Daemon) tunnelled(host string) error {
	p := d.through.Load()
	if p.Tunnel == config.TunnelAny || p.Tunnel == config.TunnelListed && hostmatch.Match(p.TunnelHosts, host) {
		return nil
	}
	return fmt.Errorf("this proxy does not connect to %s; its operator can list it in proxy.tunnelHosts", host)
}

// tunnelledPort returns nil for a port to which the proxy may connect at such a host. Other ports than those of the
// web must be listed or belong to a registry in upstreams: otherwise clients could reach mail servers, databases or
// shells through the proxy.
func (d *Daemon) tunnelledPort(host string, port uint16, secure bool) error {
	if secure && port == 443 || !secure && port == 80 ||
		slices.Contains(d.through.Load().TunnelPorts, config.Port(port)) || d.node.Origins.Registries.At(host, port) {
		return nil
	}
	return fmt.Errorf(
		"this proxy does not connect to port %d of %s; its operator can list the port in proxy.tunnelPorts", port, host)
}
