// Package registry sends requests to registries: as a [source.Origin] of blobs and manifests, and for the
// mirror's other requests.
//
// It never asks a registry that the operator neither listed nor allowed, and sends a client's credentials
// to no other host. Start at [New], [Client.Open] and [Client.Do].
package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/task"
)

// Config of a client.
type Config struct {
	// Upstreams are the listed registries, by their names in image references ("docker.io",
	// "registry.test:5000").
	Upstreams map[string]Upstream
	// Default is how to ask every other registry; nil refuses them. With it, any client of the mirror can
	// make this node ask any host. It may hold neither URLs nor credentials.
	Default *Upstream
	// HTTP holds timeouts and bounds for all upstreams, and the loopback and link-local addresses that
	// redirects and token services may have. Its certificates, proxy and trusted hosts are not used: each
	// upstream has its own.
	HTTP httporigin.Config
	// Logger may be nil.
	Logger *slog.Logger
	// Observe, if set, is called after each request on the wire, redirects and logins included, with the listed upstream
	// (empty for another registry) and the status of the answer, 0 if none came. It must not block.
	Observe func(upstream string, purpose Purpose, status int)
}

// Purpose is what a request to a registry is for.
type Purpose string

// The purposes.
const (
	ForManifest Purpose = "manifest"
	ForBlob     Purpose = "blob"
	ForToken    Purpose = "token" // a login's: to the token service, or the ping that names it
	ForOther    Purpose = "other"
)

// purposeKey is the context key of a request's purpose.
type purposeKey struct{}

// withPurpose marks the requests of a context.
func withPurpose(ctx context.Context, p Purpose) context.Context {
	return context.WithValue(ctx, purposeKey{}, p)
}

// purposeOf is the purpose of a request to a path of the distribution API.
func purposeOf(path string) Purpose {
	switch {
	case strings.Contains(path, "/manifests/"):
		return ForManifest
	case strings.Contains(path, "/blobs/"):
		return ForBlob
	}
	return ForOther
}

// observed returns HTTP settings that report the requests of one upstream.
func (c Config) observed(upstream string) httporigin.Config {
	out := c.HTTP
	if c.Observe != nil {
		out.Observe = func(ctx context.Context, status int) {
			p, ok := ctx.Value(purposeKey{}).(Purpose)
			if !ok {
				p = ForOther
			}
			c.Observe(upstream, p, status)
		}
	}
	return out
}

// Upstream is how to ask one registry. The zero value asks https://NAME.
type Upstream struct {
	// URLs are addresses of the same registry, tried in order: the next one if there is no usable reply, or
	// a 502, 503 or 504. Credentials go to each of them. A path goes before the repository
	// ("https://harbor.test/hub-cache" for a proxy project); with a part v2 it is taken as it is
	// ("https://jfrog.test/artifactory/api/docker/hub/v2"). Empty means the upstream's own name.
	URLs []string
	// PlainHTTP speaks HTTP if URLs is empty: everyone on the network path can then read blobs and
	// credentials.
	PlainHTTP bool
	// CAFile holds further authorities (PEM); CertFile and KeyFile are the node's own
	// certificate.
	CAFile, CertFile, KeyFile string
	// ServerName is the name that the registry's certificate must have, empty for that of its URL. Pin is the SHA-256
	// of the certificate's public key (sha256//BASE64, several with ";" between): it replaces authority, name and
	// dates. Both are for the upstream's own URLs and not for redirects and token services on other hosts.
	ServerName, Pin string
	// Proxy as in [httporigin.Config].
	Proxy secret.String
	// Username and Password, or an IdentityToken (which docker login stores), are the node's own
	// credentials: every client without an Authorization of its own then pulls with them.
	Username                string
	Password, IdentityToken secret.String
	// DockerConfig is a file that holds such credentials instead: Docker's config.json, Podman's
	// auth.json, a Kubernetes pull secret. Its credential helpers are run. The file is read again when it
	// changes.
	DockerConfig string
	// Realms are hosts besides the registry's own whose token services get the node's credentials; those
	// of Docker Hub and gitlab.com are known. A registry cannot send the credentials to any other host.
	Realms []string
	// FirstByte is how long the registry may take to begin an answer: a proxy that scans or first fetches a blob needs
	// minutes. A shorter time gives up slow answers, a longer one waits longer for a registry that hangs. 0 is
	// HeaderTimeout of [Config].HTTP.
	FirstByte time.Duration
	// AllowPrivateRealm allows a token service at a private IP address that is not the registry's own.
	// Without it a registry cannot make this node ask such an address.
	AllowPrivateRealm bool
	// ForbidPlainRedirects refuses blobs that the registry redirects from https to http. They match their digest
	// and no credentials go there, but everyone on the network path can read them.
	ForbidPlainRedirects bool
	// Cluster gives local clients what the cluster holds of the registry while the registry does not answer.
	Cluster bool
}

func (u Upstream) hasCredentials() bool {
	return u.Username != "" || !u.Password.IsZero() || !u.IdentityToken.IsZero() || u.DockerConfig != ""
}

// UpstreamError reports that the operator does not allow a registry. It unwraps to a [source.StatusError] of
// 403, for clients.
type UpstreamError struct{ Upstream string }

func (e *UpstreamError) Error() string {
	return fmt.Sprintf("registry %.100q is not listed in this node's upstreams; its operator can add it", e.Upstream)
}

// Unwrap returns the error in a registry's format.
func (e *UpstreamError) Unwrap() error {
	return &source.StatusError{
		Method: http.MethodGet, Status: http.StatusForbidden, Header: http.Header{"Content-Type": {"application/json"}},
		Body: fmt.Appendf(nil, `{"errors":[{"code":"DENIED","message":%q}]}`, e.Error()),
	}
}

// upstream is a registry and how to ask it.
type upstream struct {
	Upstream
	name   string
	bases  []*url.URL
	client *httporigin.Client
	docker *dockerConfig // nil without one
	// inner sends the requests of its sessions; nil for the client's own transport.
	inner http.RoundTripper
}

// knownRealms are the token services of public registries on other hosts than the registry's.
var knownRealms = map[string]string{oci.DockerHub: "auth.docker.io", "registry.gitlab.com": "gitlab.com"}

func newUpstream(name string, u Upstream, cfg httporigin.Config) (*upstream, error) {
	out := &upstream{Upstream: u, name: name}
	if realm, ok := knownRealms[name]; ok {
		out.Realms = append(slices.Clone(u.Realms), realm)
	}
	if u.DockerConfig != "" {
		if u.Username != "" || !u.Password.IsZero() || !u.IdentityToken.IsZero() {
			return nil, errors.New("it has both a Docker configuration and a credential; remove one of them")
		}
		out.docker = &dockerConfig{path: u.DockerConfig}
		if err := out.docker.load(); err != nil {
			return nil, fmt.Errorf("reading its Docker configuration: %w", err)
		}
	}
	cfg.CAFile, cfg.CertFile, cfg.KeyFile, cfg.Proxy, cfg.Trusted = u.CAFile, u.CertFile, u.KeyFile, u.Proxy, nil
	var err error
	if cfg.Pins, err = httporigin.ParsePins(u.Pin); err != nil {
		return nil, fmt.Errorf("pin: %w", err)
	}
	cfg.ServerName = u.ServerName
	cfg.HeaderTimeout = cmp.Or(u.FirstByte, cfg.HeaderTimeout)
	out.FirstByte = cfg.HeaderTimeout
	for _, s := range u.URLs {
		b, err := url.Parse(s)
		if err != nil || (b.Scheme != "http" && b.Scheme != "https") || b.Host == "" || b.User != nil || b.RawQuery != "" {
			return nil, errors.New("one of its URLs is not an http or https URL, or has a user or a query")
		}
		b.Path = strings.Trim(b.Path, "/")
		if b.Path != "" {
			if _, err := oci.ParseRepository(name, b.Path); err != nil {
				return nil, fmt.Errorf("the path of %s: %w", secret.PrintableURL(b), err)
			}
		}
		out.bases = append(out.bases, b)
	}
	if len(out.bases) == 0 && name != "" {
		out.bases = []*url.URL{u.base(name)}
	}
	for _, b := range out.bases {
		port := b.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443"}[b.Scheme]
		}
		cfg.Trusted = append(cfg.Trusted, net.JoinHostPort(b.Hostname(), port))
	}
	client, err := httporigin.NewClient(cfg)
	out.client = client
	return out, err
}

// agent is the User-Agent of a request on behalf of a client; client is the client's own, empty if it has none.
func (u *upstream) agent(client string) string {
	if client = source.CleanAgent(client); client == "" {
		return u.client.UserAgent()
	}
	return u.client.UserAgent() + " (" + client + ")"
}

func (u Upstream) base(name string) *url.URL {
	scheme := "https"
	if u.PlainHTTP {
		scheme = "http"
	}
	return &url.URL{Scheme: scheme, Host: oci.Endpoint(name)}
}

// New builds a client and sends nothing. The error names the upstream and the setting.
func New(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, listed: map[string]*upstream{}, sessions: map[sessionKey]*session{}, labels: map[task.ID]bool{}}
	for name, u := range cfg.Upstreams {
		host, err := oci.ParseHost(name)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", name, err)
		}
		if _, twice := c.listed[host]; twice {
			return nil, fmt.Errorf("upstream %s is listed twice, under two of its names", host)
		}
		if c.listed[host], err = newUpstream(host, u, cfg.observed(host)); err != nil {
			return nil, fmt.Errorf("upstream %s: %w", host, err)
		}
	}
	if cfg.Default != nil {
		if len(cfg.Default.URLs) > 0 || cfg.Default.hasCredentials() {
			return nil, errors.New("the settings for registries that are not listed may hold neither URLs nor credentials, " +
				"because any host would get them")
		}
		var err error
		if c.others, err = newUpstream("", *cfg.Default, cfg.observed("")); err != nil {
			return nil, fmt.Errorf("registries that are not listed: %w", err)
		}
	}
	return c, nil
}

// Allow returns nil for a registry that this node may ask, else an *[UpstreamError] or the fault of its
// name.
func (c *Client) Allow(name string) error {
	_, err := c.upstream(name)
	return err
}

// Listed reports whether the operator listed a registry and so trusts its replies. A registry that is only allowed may
// belong to anyone.
func (c *Client) Listed(name string) bool {
	host, err := oci.ParseHost(name)
	return err == nil && c.listed[host] != nil
}

// Credentialed reports whether this node sends its own credentials to a registry if a client brings none; a
// certificate is one. The registry's reply is then for this node alone.
func (c *Client) Credentialed(name string) bool {
	u, err := c.upstream(name)
	if err != nil {
		return false
	}
	if u.docker != nil && u.CertFile == "" {
		return u.docker.concerns(u.name)
	}
	return u.hasCredentials() || u.CertFile != ""
}

// FirstByte is how long a registry may take to begin an answer, 0 for a registry that this node may not ask.
func (c *Client) FirstByte(name string) time.Duration {
	u, err := c.upstream(name)
	if err != nil {
		return 0
	}
	return u.FirstByte
}

// Cluster reports whether the operator gives local clients what the cluster holds of a registry while the registry does
// not answer. It is false for a registry that is not listed.
func (c *Client) Cluster(name string) bool {
	host, err := oci.ParseHost(name)
	return err == nil && c.listed[host] != nil && c.listed[host].Cluster
}

// Upstreams lists the names of the registries that the operator listed.
func (c *Client) Upstreams() []string {
	out := make([]string, 0, len(c.listed))
	for name := range c.listed {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// CloseIdleConnections ends the connections that no request uses.
func (c *Client) CloseIdleConnections() {
	for _, u := range c.listed {
		u.client.CloseIdleConnections()
	}
	if c.others != nil {
		c.others.client.CloseIdleConnections()
	}
}

// Close kills the credential helpers that run, waits for them, and closes idle connections. Requests after it
// get no credential from a helper.
func (c *Client) Close() {
	for _, u := range c.listed {
		if u.docker != nil {
			u.docker.helpers.close()
		}
	}
	c.CloseIdleConnections()
}
