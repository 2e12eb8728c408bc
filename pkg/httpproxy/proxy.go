// Package httpproxy is the HTTP proxy for clients that support no mirror for a registry, such as Docker's
// graph driver for all but Docker Hub: it sends the pulls of mirrored registries to the mirror, and all other
// requests to their destination.
//
// It never terminates the TLS of a host that the operator did not list. It connects to no port that is
// neither for the web nor listed, and never to loopback or link-local addresses or a cloud's metadata. It
// stores nothing of what it passes on. Start at [Proxy.ServeHTTP].
package httpproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config says what a Proxy works with. Mirror, Mirrored, Reach, Dial and Transport are
// required.
type Config struct {
	// Mirror answers pulls of mirrored registries; the request names its registry by NameHeader.
	Mirror http.Handler
	// NameHeader is the header that names the registry to the mirror. Names are all headers that could:
	// the proxy removes those of the client.
	NameHeader string
	Names      []string
	// Mirrored reports whether the mirror answers pulls of a registry. The host has its port if that is
	// not the usual one.
	Mirrored func(host string) bool
	// Reach returns such a registry's URL and transport, for requests that are no pull: logins, pushes.
	Reach func(host string) (base *url.URL, rt http.RoundTripper, err error)
	// Authority terminates the TLS of mirrored registries; without one the proxy tunnels their connections
	// like all others.
	Authority *Authority
	// Allow returns nil for another host that clients may reach, else an error for them. The host is in
	// lower case and without brackets. Nil allows none.
	Allow func(host string) error
	// AllowPort does the same for a port of an allowed host, by CONNECT (secure) or by a plain-text
	// request. Nil allows every port.
	AllowPort func(host string, port uint16, secure bool) error
	// Dial connects to an allowed host:port, unless its address is forbidden; Transport does the same for
	// plain-text requests.
	Dial      func(ctx context.Context, addr string) (net.Conn, error)
	Transport http.RoundTripper
	// TunnelsMax bounds the open tunnels; each costs two sockets and 64 KiB. Default 1024.
	TunnelsMax int
	// Idle closes a tunnel that carried no byte for so long. Default 10 minutes.
	Idle   time.Duration
	Logger *slog.Logger
}

// Proxy is an [http.Handler] for a listener of its own; [Proxy.Listener] and [Proxy.Inner] serve the requests
// in the TLS that it terminates.
type Proxy struct {
	cfg   Config
	inner *listener
	pass  *httputil.ReverseProxy
	plain *httputil.ReverseProxy
	slots chan struct{}
}

// New returns a proxy; it opens nothing.
func New(cfg Config) *Proxy {
	if cfg.TunnelsMax <= 0 {
		cfg.TunnelsMax = 1024
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 10 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Allow == nil {
		cfg.Allow = func(host string) error {
			return fmt.Errorf("this proxy connects only to the registries that it mirrors, and %s is none of them",
				host)
		}
	}
	if cfg.AllowPort == nil {
		cfg.AllowPort = func(string, uint16, bool) error { return nil }
	}
	p := &Proxy{cfg: cfg, inner: newListener(), slots: make(chan struct{}, cfg.TunnelsMax)}
	quiet := slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)
	p.pass = &httputil.ReverseProxy{
		Rewrite: rewritePass, ModifyResponse: rewriteLocation, Transport: passTransport{},
		ErrorHandler: writeBadGateway, ErrorLog: quiet, FlushInterval: -1,
	}
	p.plain = &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.Host = r.In.URL.Host },
		Transport: cfg.Transport, ErrorHandler: writeBadGateway, ErrorLog: quiet, FlushInterval: -1,
	}
	return p
}

// ServeHTTP answers a request in proxy form: CONNECT, or one for an absolute URL.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		if host := hostOf(r.URL.Host, "80"); p.cfg.Mirrored(host) {
			p.registry(w, r, host)
			return
		}
		name, port, err := authority(r.URL.Host, "80")
		if err != nil || r.URL.User != nil {
			http.Error(w, "the URL has no valid host and port: send http://HOST/ or http://HOST:PORT/ without a user",
				http.StatusBadRequest)
			return
		}
		if err := p.allow(name, port, false); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		p.plain.ServeHTTP(w, r)
	default:
		http.Error(w, "this is an HTTP proxy: set it as HTTP_PROXY and HTTPS_PROXY of the client",
			http.StatusBadRequest)
	}
}

// Inner answers the requests in the TLS that the proxy terminates.
func (p *Proxy) Inner() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host, "443")
		if !p.cfg.Mirrored(host) {
			http.Error(w, "this connection serves only mirrored registries", http.StatusMisdirectedRequest)
			return
		}
		p.registry(w, r, host)
	})
}

// Listener accepts the connections whose TLS the proxy terminates, for a server of [Proxy.Inner].
func (p *Proxy) Listener() net.Listener { return p.inner }

// registry answers a request for a mirrored registry: the mirror answers a pull, and the registry itself any
// other request.
func (p *Proxy) registry(w http.ResponseWriter, r *http.Request, host string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/v2/") ||
		strings.Contains(r.URL.Path, "/blobs/uploads/") {
		base, rt, err := p.cfg.Reach(host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		to := passTo{base: base, rt: rt, from: url.URL{Scheme: schemeOf(r), Host: r.Host}}
		p.pass.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), passKey{}, to)))
		return
	}
	// The client sends its headers to the registry, not to the mirror.
	out := r.Clone(r.Context())
	for _, name := range p.cfg.Names {
		out.Header.Del(name)
	}
	out.Header.Set(p.cfg.NameHeader, host)
	for name := range out.Header {
		if strings.HasPrefix(name, "Proxy-") {
			out.Header.Del(name)
		}
	}
	if q := out.URL.Query(); q.Has("ns") {
		q.Del("ns")
		out.URL.RawQuery = q.Encode()
	}
	out.URL.Scheme, out.URL.Host, out.RequestURI = "", "", out.URL.RequestURI()
	p.cfg.Mirror.ServeHTTP(w, out)
}

// passTo is the registry that a request is passed on to.
type passTo struct {
	base *url.URL
	rt   http.RoundTripper
	from url.URL // the registry's URL as the client knows it
}

func schemeOf(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

type passKey struct{}

// rewritePass sends a request to the registry's own address.
func rewritePass(r *httputil.ProxyRequest) {
	to := r.In.Context().Value(passKey{}).(passTo)
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.base.Scheme, to.base.Host, to.base.Host
	if rest, ok := strings.CutPrefix(r.In.URL.Path, "/v2/"); ok && to.base.Path != "" && rest != "" {
		r.Out.URL.Path, r.Out.URL.RawPath = "/v2/"+strings.Trim(to.base.Path, "/")+"/"+rest, ""
	}
}

// rewriteLocation keeps a client on the proxy: a registry names its own address in its responses, for
// instance the URL of an upload.
func rewriteLocation(res *http.Response) error {
	to, ok := res.Request.Context().Value(passKey{}).(passTo)
	at, err := res.Location()
	if !ok || err != nil || at.Host != to.base.Host {
		return nil
	}
	at.Scheme, at.Host = to.from.Scheme, to.from.Host
	if inner := "/v2/" + strings.Trim(to.base.Path, "/") + "/"; to.base.Path != "" &&
		strings.HasPrefix(at.Path, inner) {
		at.Path, at.RawPath = "/v2/"+strings.TrimPrefix(at.Path, inner), ""
	}
	res.Header.Set("Location", at.String())
	return nil
}

type passTransport struct{}

func (passTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	to, ok := r.Context().Value(passKey{}).(passTo)
	if !ok {
		return nil, errors.New("the request has no registry to go to")
	}
	return to.rt.RoundTrip(r)
}

func writeBadGateway(w http.ResponseWriter, r *http.Request, err error) {
	http.Error(w, fmt.Sprintf("asking %s: %v", r.URL.Host, err), http.StatusBadGateway)
}

// connect answers CONNECT: it terminates the TLS of a mirrored registry, and tunnels to any other host.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	// The request's target and not its Host, which is another field (RFC 9110 §9.3.6, §7.2).
	target := r.URL.Host
	if r.RequestURI != "" {
		target = r.RequestURI
	}
	name, port, err := authority(target, "")
	if err != nil {
		http.Error(w, "the target of CONNECT must be HOST:PORT (RFC 9110 §9.3.6)", http.StatusBadRequest)
		return
	}
	to := net.JoinHostPort(name, strconv.Itoa(int(port)))
	if p.cfg.Authority != nil && p.cfg.Mirrored(hostOf(to, "443")) {
		certificate, err := p.cfg.Authority.For(name)
		if err == nil {
			p.terminate(w, certificate)
			return
		}
		// A tunnel to the registry is better than an error.
		p.cfg.Logger.Warn("a registry is not mirrored in proxy mode", "host", name, "error", err)
	}
	if err := p.allow(name, port, true); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	default:
		http.Error(w, fmt.Sprintf("%d tunnels are open, which is the most that this proxy allows; try again later",
			p.cfg.TunnelsMax), http.StatusServiceUnavailable)
		return
	}
	there, err := p.cfg.Dial(r.Context(), to)
	if err != nil {
		http.Error(w, fmt.Sprintf("connecting to %s: %v", to, err), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, err := hijack(w)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer here.Close()
	// The server's drain no longer covers this connection: close it when the daemon ends.
	defer context.AfterFunc(r.Context(), func() { here.Close(); there.Close() })()
	tunnel(here, there, p.cfg.Idle)
}

// terminate passes a client's connection to the inner server, under TLS in the host's name.
func (p *Proxy) terminate(w http.ResponseWriter, certificate *tls.Certificate) {
	conn, err := hijack(w)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// HTTP/1.1 alone, as towards the mirror itself.
	p.inner.deliver(tls.Server(conn, &tls.Config{
		Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}))
}

// allow returns nil for a host and port that clients may reach.
func (p *Proxy) allow(host string, port uint16, secure bool) error {
	if err := p.cfg.Allow(host); err != nil {
		return err
	}
	return p.cfg.AllowPort(host, port, secure)
}

// errAuthority reports that a text is no host and port.
var errAuthority = errors.New("no host and port")

// authority parses host:port (RFC 9110 §7.1, RFC 3986 §3.2) into a host in lower case and without brackets,
// and a port of 1 to 65535 in digits. A text without a port has the usual one, and is an error if that is
// empty. A user, a zone or a path is an error.
func authority(text, usual string) (host string, port uint16, err error) {
	if strings.ContainsAny(text, "@/?#%\\ \t") {
		return "", 0, errAuthority
	}
	host, number, err := net.SplitHostPort(text)
	if err != nil && usual != "" {
		host, number, err = net.SplitHostPort(text + ":" + usual)
	}
	if err != nil || host == "" || number == "" || strings.Trim(number, "0123456789") != "" {
		return "", 0, errAuthority
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return "", 0, errAuthority
	}
	_, notIP := netip.ParseAddr(host)
	if notIP != nil && (strings.Contains(host, ":") || strings.HasPrefix(text, "[")) {
		return "", 0, errAuthority
	}
	return strings.ToLower(host), uint16(n), nil
}

// hostOf is a host without its port if that is the usual one.
func hostOf(hostport, usual string) string {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil || port != usual {
		return strings.ToLower(hostport)
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return strings.ToLower(host)
}

// listener delivers connections to a server.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) deliver(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		c.Close()
	}
}

// Accept implements [net.Listener].
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements [net.Listener].
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "behind the proxy", Net: "pipe"} }
