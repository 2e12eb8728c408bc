package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/oci"
)

// proxyCA is the command that creates a certificate authority for the HTTP proxy.
func proxyCA(cfg *config.Dfdaemon) cli.Command {
	return cli.Command{
		Use:   "proxy-ca",
		Short: "Create the certificate authority with which the proxy intercepts the TLS of registries",
		Long: `Proxy-ca writes a certificate and its key to the files that proxy.ca and proxy.caKey name. It is valid
only for the registries in proxy.hosts (default: all of upstreams except docker.io). Clients that pull
through the proxy must trust the certificate; docs/clients.md describes how.`,
		// The registries are named here before they are in the daemon's own settings.
		Lenient: true,
		Keep:    []string{"proxy-ca", "proxy-ca-key", "proxy-hosts", "upstreams"},
		Run: func(_ context.Context, _ []string, stdout io.Writer) error {
			if cfg.Proxy.CA == "" || cfg.Proxy.CAKey == "" {
				return cli.Usage(errors.New("name the two files with --proxy-ca and --proxy-ca-key"))
			}
			hosts := cfg.Proxy.Hosts
			if len(hosts) == 0 {
				for _, u := range cfg.Upstreams {
					if host, err := oci.ParseHost(u.Host); err == nil && host != oci.DockerHub {
						hosts = append(hosts, host)
					}
				}
			}
			var names []string
			for _, h := range hosts {
				host, err := oci.ParseHost(h)
				if err != nil {
					return err
				}
				if name, _, err := net.SplitHostPort(host); err == nil {
					host = name
				}
				names = append(names, host)
			}
			cert, key, err := httpproxy.NewAuthority(names, time.Now())
			if err != nil {
				return err
			}
			if err := httpproxy.WriteAuthority(cfg.Proxy.CA, cfg.Proxy.CAKey, cert, key); err != nil {
				return err
			}
			fmt.Fprintf(stdout, "wrote %s and its key %s, valid for five years and these registries: %v\n",
				cfg.Proxy.CA, cfg.Proxy.CAKey, names)
			for _, h := range hosts {
				fmt.Fprintf(stdout, "for Docker: mkdir -p /etc/docker/certs.d/%s && cp %s "+
					"/etc/docker/certs.d/%s/ca.crt\n", h, cfg.Proxy.CA, h)
			}
			return nil
		},
	}
}
