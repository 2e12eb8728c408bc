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

// proxyCA is the command that makes an authority for the proxy mode.
func proxyCA(cfg *config.Dfdaemon) cli.Command {
	return cli.Command{
		Use: "proxy-ca", Short: "Make the authority with which the proxy mode looks into the TLS of registries",
		Long: `Proxy-ca writes a certificate and its key to the files that proxy.ca and proxy.caKey name. It may
speak for the registries in proxy.hosts (or all of upstreams but docker.io) and for no other host. Clients that
are to pull through the proxy have to trust the certificate; docs/clients.md tells how.`,
		Keep: []string{"proxy-ca", "proxy-ca-key", "proxy-hosts", "upstreams"},
		Run: func(_ context.Context, _ []string, stdout io.Writer) error {
			if cfg.Proxy.CA == "" {
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
			fmt.Fprintf(stdout, "wrote %s and its key %s, good for five years and these registries: %v\n", cfg.Proxy.CA,
				cfg.Proxy.CAKey, names)
			for _, h := range hosts {
				fmt.Fprintf(stdout, "for Docker: mkdir -p /etc/docker/certs.d/%s && cp %s "+
					"/etc/docker/certs.d/%s/ca.crt\n", h, cfg.Proxy.CA, h)
			}
			return nil
		},
	}
}
