// Package httporigin downloads files from any web server by one streaming GET.
//
// A body holds the file's own bytes from the requested offset on, or it ends in an error: the package checks
// how an origin treats Range, If-Range, length and encoding, and never trusts it. A secret goes to the host
// that it was given for and never to another one. Start at [Origin] for files, and at [Client] for other
// kinds of origin.
package httporigin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/source"
)

// Config of a client. The zero value suits origins on the internet and inside a company's network.
type Config struct {
	// CAFile holds certificate authorities (PEM) to trust in addition to the system's. It is read once.
	CAFile string
	// CertFile and KeyFile are this client's own certificate. They are read again at each handshake, so that
	// the certificate can be renewed without a restart.
	CertFile, KeyFile string
	// Proxy is the URL of a proxy, or "none". Empty takes HTTP_PROXY, HTTPS_PROXY and NO_PROXY from the
	// environment. It is secret because it may hold a password.
	Proxy secret.String

	// DialTimeout bounds connecting to one address, and the TLS handshake. Default 5 s.
	DialTimeout time.Duration
	// HeaderTimeout bounds the wait for an answer's headers. An origin that fetches the file from elsewhere
	// first may need long. Default 30 s.
	HeaderTimeout time.Duration
	// IdleTimeout bounds the wait for the next byte of a body. A body that brings less than [rateMin] in the
	// same time counts as silent, too. Only the time in which the client reads counts, so a slow reader does
	// not exhaust it. Default 30 s.
	IdleTimeout time.Duration
	// RedirectsMax is the number of redirects that a request follows. Default 10, as for clients in Go.
	RedirectsMax int
	// ConnectionsMax bounds the connections to one host, 0 for no bound. Each running download holds one.
	ConnectionsMax int

	// AllowAddrs are exceptions to the forbidden addresses: loopback, link-local, multicast and unspecified
	// ones, the metadata services of clouds, and every IPv6 address that leads to one of these through NAT64,
	// 6to4 or the like. A user that may name a URL can reach every address that is allowed here.
	AllowAddrs []netip.Prefix
	// AllowHosts are patterns of the hosts that may be asked, redirects included: see [hostmatch.Match]. Nil allows
	// every host, an empty list none.
	AllowHosts []string
	// Trusted are hosts (host:port) from the operator's configuration. They may have any address.
	Trusted []string
	// ServerName is the name that the certificates of the Trusted hosts must have, empty for the host's own. Pins are the
	// keys that these certificates may have; with any, the key alone decides, so every server that has the key counts as
	// the host. A redirect or a token service on another host is verified as usual.
	ServerName string
	Pins       []Pin

	// UserAgent is the User-Agent of requests that have none. Default "darter".
	UserAgent string

	// Observe, if set, is called after each request on the wire, redirects included, with the context of the request
	// and the status of its answer, 0 if none came. It must not wait.
	Observe func(ctx context.Context, status int)

	// AnyHeader forwards all headers of a file's request, also those that route it. Set it only in a program
	// that downloads for its own user. Otherwise see [sharing.Forwardable].
	AnyHeader bool
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.DialTimeout, 5*time.Second)
	def(&c.HeaderTimeout, 30*time.Second)
	def(&c.IdleTimeout, 30*time.Second)
	if c.RedirectsMax == 0 {
		c.RedirectsMax = 10
	}
	if c.UserAgent == "" {
		c.UserAgent = "darter"
	}
	return c
}

// headerMax bounds an answer's headers, in bytes.
const headerMax = 64 << 10

// Client sends requests with the checks of this package. Safe for concurrent use.
type Client struct {
	cfg       Config
	transport *places
	guard     *guard
}

// NewClient builds a client and opens no connection. The error names the file or setting that cannot be used.
func NewClient(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	c := &Client{cfg: cfg, guard: &guard{allow: cfg.AllowAddrs, hosts: cfg.AllowHosts, trusted: map[string]bool{}}}
	for _, h := range cfg.Trusted {
		c.guard.trusted[strings.ToLower(h)] = true
	}
	tlsConfig, err := tlsConfigOf(cfg)
	if err != nil {
		return nil, err
	}
	proxy, err := proxyFunc(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	one := &http.Transport{
		Proxy:                  c.guard.watchProxy(proxy),
		OnProxyConnectResponse: checkConnect,
		DialContext:            c.guard.dialer(cfg.DialTimeout),
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    cfg.DialTimeout,
		ResponseHeaderTimeout:  cfg.HeaderTimeout,
		MaxResponseHeaderBytes: headerMax,
		MaxIdleConnsPerHost:    16,
		MaxConnsPerHost:        cfg.ConnectionsMax,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true,
		ReadBufferSize:         64 << 10,
	}
	c.transport = &places{trusted: c.guard.trusted}
	if cfg.ServerName != "" || len(cfg.Pins) > 0 {
		own := one.Clone()
		own.TLSClientConfig = pinned(tlsConfig, cfg.ServerName, cfg.Pins)
		c.transport.own = newVersions(cfg.Observe, own)
	}
	c.transport.rest = newVersions(cfg.Observe, one)
	return c, nil
}

func tlsConfigOf(cfg Config) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the certificate authorities of origins: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf(
				"reading the certificate authorities of origins: %s holds no certificate in PEM form", cfg.CAFile)
		}
		out.RootCAs = pool
	}
	if cfg.CertFile != "" || cfg.KeyFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("reading the client certificate %s: %w", cfg.CertFile, err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return out, nil
}

// ProxyError reports that a proxy refused to connect to a host.
type ProxyError struct {
	Proxy, Host string // host:port each, without the proxy's password
	Status      int    // the proxy's answer to CONNECT
}

func (e *ProxyError) Error() string {
	return fmt.Sprintf("the proxy %s refuses to connect to %s: %d %s",
		e.Proxy, e.Host, e.Status, http.StatusText(e.Status))
}

// checkConnect turns a proxy's refusal of CONNECT into a *[ProxyError]; net/http would report only the
// status text.
func checkConnect(_ context.Context, proxy *url.URL, req *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return &ProxyError{Proxy: hostPort(proxy), Host: req.Host, Status: res.StatusCode}
}

func proxyFunc(setting secret.String) (func(*url.URL) (*url.URL, error), error) {
	switch s := setting.Reveal(); s {
	case "":
		return httpproxy.FromEnvironment().ProxyFunc(), nil
	case "none":
		return func(*url.URL) (*url.URL, error) { return nil, nil }, nil
	default:
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5") {
			return nil, errors.New(`the proxy for origins must be "none" or an http, https or socks5 URL`)
		}
		return func(*url.URL) (*url.URL, error) { return u, nil }, nil
	}
}

// CloseIdleConnections closes the connections that no request uses.
func (c *Client) CloseIdleConnections() { c.transport.closeIdle() }

// UserAgent is the User-Agent of requests that have none.
func (c *Client) UserAgent() string { return c.cfg.UserAgent }

// Transport returns the client's own transport, for a [Request.RoundTripper] to wrap. It checks addresses but
// follows no redirects.
func (c *Client) Transport() http.RoundTripper { return c.transport }

// WithoutCertificate returns such a transport that sends no client certificate and keeps no connection.
func (c *Client) WithoutCertificate() http.RoundTripper {
	return c.transport.without()
}

// Dial connects to a host:port with the client's checks of addresses, without TLS and without a proxy.
func (c *Client) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return c.transport.rest.one.DialContext(ctx, "tcp", addr)
}

// HostError reports a host that is not in [Config].AllowHosts.
type HostError struct{ Host string }

func (e *HostError) Error() string {
	return fmt.Sprintf("host %s is not in the list of allowed hosts", e.Host)
}

// AddrError reports a host with a forbidden address. Addr is the zero Addr if the host is a number that
// programs read in more than one way.
type AddrError struct {
	Host string
	Addr netip.Addr
}

func (e *AddrError) Error() string {
	if !e.Addr.IsValid() {
		return fmt.Sprintf("host %s is an ambiguous form of an address; write it as 192.0.2.1 or [2001:db8::1]", e.Host)
	}
	return fmt.Sprintf("host %s has the address %s, which is local to this machine or its network and is not allowed",
		e.Host, e.Addr)
}

// RedirectError reports a redirect that is not followed. Another attempt would get the same redirect.
type RedirectError struct{ Reason string }

func (e *RedirectError) Error() string { return e.Reason }

// guard refuses forbidden hosts and addresses.
type guard struct {
	allow   []netip.Prefix
	hosts   []string
	trusted map[string]bool
	proxies sync.Map // host:port of each proxy in use
}

func (g *guard) check(host string, addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	candidates := append([]netip.Addr{addr}, embedded(addr)...)
	for _, p := range g.allow {
		if p.Contains(addr) {
			return nil
		}
	}
	for _, a := range candidates {
		allowed := slices.ContainsFunc(g.allow, func(p netip.Prefix) bool { return p.Contains(a) })
		if forbidden(a) && !allowed {
			return &AddrError{Host: host, Addr: addr}
		}
	}
	return nil
}

// checkURL makes the checks that need no resolver, since a proxy resolves names itself.
func (g *guard) checkURL(u *url.URL) error {
	if g.trusted[hostPort(u)] {
		return nil
	}
	host := strings.ToLower(u.Hostname())
	if !g.hostAllowed(host) {
		return &HostError{Host: host}
	}
	addr, err := literal(host)
	if err != nil {
		return &AddrError{Host: u.Hostname()}
	}
	if !addr.IsValid() {
		return nil
	}
	return g.check(u.Hostname(), addr)
}

func (g *guard) hostAllowed(host string) bool {
	return g.hosts == nil || hostmatch.Match(g.hosts, host)
}

func (g *guard) watchProxy(choose func(*url.URL) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(req *http.Request) (*url.URL, error) {
		u, err := choose(req.URL)
		if u == nil || err != nil {
			return u, err
		}
		// The dialer sees only the proxy's address.
		if err := g.checkURL(req.URL); err != nil {
			return nil, err
		}
		g.proxies.Store(hostPort(u), true)
		return u, nil
	}
}

// dialer checks each address after its resolution, so that no name and no redirect leads to a forbidden one.
func (g *guard) dialer(timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := &net.Dialer{Timeout: timeout, KeepAlive: 15 * time.Second}
		d.ControlContext = func(_ context.Context, _, _ string, raw syscall.RawConn) error { return endDead(raw) }
		_, proxy := g.proxies.Load(strings.ToLower(addr))
		if !proxy && !g.trusted[strings.ToLower(addr)] {
			d.ControlContext = func(_ context.Context, _, resolved string, raw syscall.RawConn) error {
				ap, err := netip.ParseAddrPort(resolved)
				if err != nil {
					return fmt.Errorf("dialing %s: unreadable address %q", addr, resolved)
				}
				host, _, _ := net.SplitHostPort(addr)
				if err := g.check(host, ap.Addr()); err != nil {
					return err
				}
				return endDead(raw)
			}
		}
		return d.DialContext(ctx, network, addr)
	}
}

// deadAfter is how long an origin's machine may leave sent bytes unacknowledged. Without it, a connection that a router
// forgot would look like a slow origin, for as long as HeaderTimeout.
const deadAfter = 30 * time.Second

// endDead has the kernel end a connection whose other end is gone (TCP_USER_TIMEOUT, tcp(7)).
func endDead(raw syscall.RawConn) (err error) {
	failed := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
	return errors.Join(failed, err)
}

// hostPort returns a URL's host with its port, lower case.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "https":
			port = "443"
		case "socks5":
			port = "1080"
		default:
			port = "80"
		}
	}
	return strings.ToLower(net.JoinHostPort(u.Hostname(), port))
}

// Request is one request to an origin.
type Request struct {
	// Method is GET (also if empty) or HEAD.
	Method string
	URL    *url.URL
	// Header goes to the URL's own host (scheme, name and port). A redirect to another host carries only those of it
	// that hold no secret: see crossHostHeaders. Accept-Encoding is always identity.
	Header http.Header
	// RoundTripper sends requests to the URL's own host, for instance with a token; nil for the client's
	// transport.
	RoundTripper http.RoundTripper
	// Challenged returns the transport that repeats a request after a redirect: another host, at, answered it with 401.
	// Nil keeps the answer. Do calls it once and uses the transport for this host only. May be nil.
	Challenged func(ctx context.Context, at *url.URL, res *http.Response) http.RoundTripper
	// AllowPlain follows a redirect from https to http, for bytes that a digest protects. Everyone on the network
	// path can then read them; see [Unencrypted].
	AllowPlain bool
}

// crossHostHeaders are the headers that a redirect carries to another host: they hold no secret, and the other host
// needs them to choose the bytes, and how old these may be.
var crossHostHeaders = []string{
	"Accept", "Accept-Language", "Cache-Control", "Pragma", "User-Agent", "Range", "If-Range",
}

// Do sends a request, follows redirects, and returns the last answer with any status; the caller closes its
// body. Errors name the method and the printable URL and hold no secret.
//
// A host that a redirect led to must not ask for credentials: Do removes its WWW-Authenticate and turns its
// 401 into a 403, unless [Request].Challenged helps. See [CrossedHosts].
func (c *Client) Do(ctx context.Context, r Request) (*http.Response, error) {
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	fail := func(u *url.URL, err error) error {
		return fmt.Errorf("%s %s: %w", method, secret.PrintableURL(u), scrub(err))
	}
	at, foreign, plain, asked := r.URL, false, false, false
	for hop := 0; ; hop++ {
		if (at.Scheme != "http" && at.Scheme != "https") || at.Host == "" {
			return nil, fail(at, errors.New("not an http or https URL"))
		}
		if err := c.guard.checkURL(at); err != nil {
			return nil, fail(at, err)
		}
		req, rt := c.newRequest(ctx, r, method, at, foreign)
		res, err := rt.RoundTrip(req)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, fail(at, err)
		}
		if foreign && !asked && res.StatusCode == http.StatusUnauthorized && r.Challenged != nil {
			asked = true
			if again := r.Challenged(ctx, at, res); again != nil {
				c.drain(res)
				if res, err = again.RoundTrip(req.Clone(req.Context())); err != nil {
					return nil, fail(at, err)
				}
			}
		}
		location := res.Header.Get("Location")
		if !redirects(res.StatusCode) || location == "" {
			if foreign {
				res.Header.Del("Www-Authenticate")
				if res.StatusCode == http.StatusUnauthorized {
					res.StatusCode, res.Status = http.StatusForbidden, "403 Forbidden"
				}
			}
			if plain {
				req = req.WithContext(context.WithValue(req.Context(), unencrypted{}, true))
			}
			res.Request = req
			return res, nil
		}
		next, err := at.Parse(location)
		c.drain(res)
		if err == nil && at.Scheme == "https" && next.Scheme == "http" && strings.EqualFold(next.Host, at.Host) {
			next.Scheme = "https" // a server can be unaware of the proxy that encrypts for it
		}
		switch {
		case err != nil:
			return nil, fail(at, &RedirectError{fmt.Sprintf("%d with an unreadable Location", res.StatusCode)})
		case hop >= c.cfg.RedirectsMax:
			return nil, fail(at, &RedirectError{fmt.Sprintf("more than %d redirects", c.cfg.RedirectsMax)})
		case at.Scheme == "https" && next.Scheme == "http" && !r.AllowPlain:
			return nil, fail(at,
				&RedirectError{fmt.Sprintf("redirect to %s, which is not encrypted", secret.PrintableURL(next))})
		case next.Scheme != "http" && next.Scheme != "https" || next.Host == "":
			return nil, fail(at,
				&RedirectError{fmt.Sprintf("redirect to %s, which is not an http or https URL", secret.PrintableURL(next))})
		}
		// After a redirect to another host the request never carries the secrets again, even if that host
		// redirects back: the other host chose the URL of the way back.
		foreign = foreign || next.Scheme != r.URL.Scheme || hostPort(next) != hostPort(r.URL)
		plain = plain || r.URL.Scheme == "https" && next.Scheme == "http"
		next.User, next.Fragment = nil, ""
		at = next
	}
}

// newRequest builds the HTTP request for one hop, and returns the transport that sends it. A foreign hop, to another
// host than r's own, carries no secrets and uses the plain transport.
func (c *Client) newRequest(
	ctx context.Context, r Request, method string, at *url.URL, foreign bool,
) (*http.Request, http.RoundTripper) {
	req := (&http.Request{
		Method: method, URL: at, Header: http.Header{}, Host: at.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	var rt http.RoundTripper = c.transport
	if foreign {
		req = req.WithContext(context.WithValue(ctx, crossedHosts{}, true))
		for _, k := range crossHostHeaders {
			if v := r.Header.Values(k); len(v) > 0 {
				req.Header[k] = v
			}
		}
	} else {
		req.Header = r.Header.Clone()
		if req.Header == nil {
			req.Header = http.Header{}
		}
		if h := req.Header.Get("Host"); h != "" {
			req.Host = h
			req.Header.Del("Host")
		}
		if r.RoundTripper != nil {
			rt = r.RoundTripper
		}
	}
	req.Header.Set("Accept-Encoding", "identity")
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", c.cfg.UserAgent)
	}
	return req, rt
}

// CrossedHosts reports whether a redirect led the request of an answer to another host.
func CrossedHosts(res *http.Response) bool { return res.Request.Context().Value(crossedHosts{}) != nil }

// Unencrypted reports whether any redirect led the request of an answer from https to http: anyone on the network
// path may have written the answer, or chosen the https URL from where it came in the end.
func Unencrypted(res *http.Response) bool {
	return res.Request != nil && res.Request.Context().Value(unencrypted{}) != nil
}

// crossedHosts and unencrypted are the context keys of such requests.
type (
	crossedHosts struct{}
	unencrypted  struct{}
)

// Ask is Do with a body that ends in an error if the origin falls silent.
func (c *Client) Ask(ctx context.Context, r Request) (*http.Response, error) {
	ctx, abort := context.WithCancelCause(ctx)
	res, err := c.Do(ctx, r)
	if err != nil {
		abort(nil)
		return nil, err
	}
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	res.Body = c.newBody(ctx, abort, res.Body, method, r.URL)
	return res, nil
}

func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// drainMax bounds the bytes that are read of an unused body, so that its connection can be reused.
const drainMax = 4 << 10

func (c *Client) drain(res *http.Response) {
	if res.ContentLength >= 0 && res.ContentLength <= drainMax {
		stop := time.AfterFunc(c.cfg.DialTimeout, func() { res.Body.Close() })
		_, _ = io.CopyN(io.Discard, res.Body, res.ContentLength+1)
		stop.Stop()
	}
	res.Body.Close()
}

// scrub removes the URL from an error of net/http, since its query may hold a signature, and makes every
// timeout an [os.ErrDeadlineExceeded].
func scrub(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() &&
		!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: %w", err, os.ErrDeadlineExceeded)
	}
	return err
}

// statusError reads an error answer into a [source.StatusError] and closes it. abort cancels ctx, under which
// the answer came.
func (c *Client) statusError(
	ctx context.Context, abort context.CancelCauseFunc, res *http.Response, method string, u *url.URL,
) error {
	b := c.newBody(ctx, abort, res.Body, method, u)
	defer b.Close()
	head, err := io.ReadAll(io.LimitReader(b, api.FailureMax))
	if err != nil {
		head = nil // a cut body may be invalid JSON
	}
	return &source.StatusError{
		Method: method, URL: secret.PrintableURL(u), Status: res.StatusCode, Header: res.Header, Body: head,
	}
}
