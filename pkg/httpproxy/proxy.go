// Package httpproxy is the HTTP proxy for clients that know no mirror for a registry, which
// is Docker's graph driver for all but Docker Hub: what they ask of a registry that is
// mirrored goes to the mirror, all else where they wanted it.
//
// It ends the TLS of no host but those it was told to, leads to no port that is not for the web
// or listed, opens no way to loopback and
// link-local addresses or to a cloud's metadata, and what it does not serve itself it passes on without
// keeping any of it. Start at [Proxy.ServeHTTP].
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
	// Mirror answers pulls of registries that are mirrored; the request names its registry
	// by NameHeader.
	Mirror http.Handler
	// NameHeader is the header by which the mirror is told the registry, Names all headers
	// by which it could be: those of the client are taken off.
	NameHeader string
	Names      []string
	// Mirrored reports whether a host, with its port where that is not the usual one, is a
	// registry whose pulls the mirror answers.
	Mirrored func(host string) bool
	// Reach says where such a registry is and how it is spoken to, for what is no pull:
	// logins, pushes.
	Reach func(host string) (base *url.URL, rt http.RoundTripper, err error)
	// Authority ends the TLS of mirrored registries; without one their connections are
	// tunnelled like all others.
	Authority *Authority
	// Allow returns nil for another host that clients may be brought to, else an error for
	// them. The host is in lower case and without brackets. Nil allows none.
	Allow func(host string) error
	// AllowPort does so for a port of an allowed host, by CONNECT (secure) or by a request in
	// the clear. Nil allows every port.
	AllowPort func(host string, port uint16, secure bool) error
	// Dial connects to a host:port that Allow let through, unless its address forbids it;
	// Transport does so for requests in the clear.
	Dial      func(ctx context.Context, addr string) (net.Conn, error)
	Transport http.RoundTripper
	// TunnelsMax is how many tunnels may be open at once; each costs two sockets and 64 KiB.
	// Default 1024.
	TunnelsMax int
	// Idle ends a tunnel through which nothing went for so long. Default 10 minutes.
	Idle   time.Duration
	Logger *slog.Logger
}

// Proxy is an [http.Handler] for a listener of its own; [Proxy.Listener] and [Proxy.Inner]
// serve what comes out of the TLS that it ends.
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
			return fmt.Errorf("this proxy leads to no host but the registries that it mirrors, and %s is none", host)
		}
	}
	if cfg.AllowPort == nil {
		cfg.AllowPort = func(string, uint16, bool) error { return nil }
	}
	p := &Proxy{cfg: cfg, inner: newListener(), slots: make(chan struct{}, cfg.TunnelsMax)}
	quiet := slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)
	p.pass = &httputil.ReverseProxy{Rewrite: rewritePass, ModifyResponse: rewriteLocation, Transport: passTransport{}, ErrorHandler: refusePassed, ErrorLog: quiet, FlushInterval: -1}
	p.plain = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = r.In.URL.Host }, Transport: cfg.Transport, ErrorHandler: refusePassed,
		ErrorLog: quiet, FlushInterval: -1,
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
			http.Error(w, "the URL names no host and port that a proxy leads to: http://HOST or http://HOST:PORT is wanted, without a user", http.StatusBadRequest)
			return
		}
		if err := p.allow(name, port, false); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		p.plain.ServeHTTP(w, r)
	default:
		http.Error(w, "this is an HTTP proxy: name it in HTTP_PROXY and HTTPS_PROXY of the client", http.StatusBadRequest)
	}
}

// Inner answers requests that came out of TLS.
func (p *Proxy) Inner() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostOf(r.Host, "443")
		if !p.cfg.Mirrored(host) {
			http.Error(w, "this connection leads to the registries that are mirrored alone", http.StatusMisdirectedRequest)
			return
		}
		p.registry(w, r, host)
	})
}

// Listener gives the connections whose TLS the proxy ends, for a server of [Proxy.Inner].
func (p *Proxy) Listener() net.Listener { return p.inner }

// registry answers a request for a registry that is mirrored: a pull by the mirror, all else
// by the registry itself.
func (p *Proxy) registry(w http.ResponseWriter, r *http.Request, host string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/v2/") || strings.Contains(r.URL.Path, "/blobs/uploads/") {
		base, rt, err := p.cfg.Reach(host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		p.pass.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), passKey{}, passTo{base: base, rt: rt, from: url.URL{Scheme: schemeOf(r), Host: r.Host}})))
		return
	}
	// What the client may have said to the mirror was meant for the registry.
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

// passTo is where a request is passed on to.
type passTo struct {
	base *url.URL
	rt   http.RoundTripper
	from url.URL // what the client calls it
}

func schemeOf(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

type passKey struct{}

// rewritePass turns a request to the registry's own address.
func rewritePass(r *httputil.ProxyRequest) {
	to := r.In.Context().Value(passKey{}).(passTo)
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.base.Scheme, to.base.Host, to.base.Host
	if rest, ok := strings.CutPrefix(r.In.URL.Path, "/v2/"); ok && to.base.Path != "" && rest != "" {
		r.Out.URL.Path, r.Out.URL.RawPath = "/v2/"+strings.Trim(to.base.Path, "/")+"/"+rest, ""
	}
}

// rewriteLocation keeps a client on the way that it came: a registry with another address
// names that in its answers, for instance where to upload to.
func rewriteLocation(res *http.Response) error {
	to, ok := res.Request.Context().Value(passKey{}).(passTo)
	at, err := res.Location()
	if !ok || err != nil || at.Host != to.base.Host {
		return nil
	}
	at.Scheme, at.Host = to.from.Scheme, to.from.Host
	if inner := "/v2/" + strings.Trim(to.base.Path, "/") + "/"; to.base.Path != "" && strings.HasPrefix(at.Path, inner) {
		at.Path, at.RawPath = "/v2/"+strings.TrimPrefix(at.Path, inner), ""
	}
	res.Header.Set("Location", at.String())
	return nil
}

type passTransport struct{}

func (passTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	to, ok := r.Context().Value(passKey{}).(passTo)
	if !ok {
		return nil, errors.New("a request that nobody passed on")
	}
	return to.rt.RoundTrip(r)
}

func refusePassed(w http.ResponseWriter, r *http.Request, err error) {
	http.Error(w, fmt.Sprintf("asking %s: %v", r.URL.Host, err), http.StatusBadGateway)
}

// connect opens a way to a host and port: into the mirror, or to the host.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	// The request's target and not its Host, which is another field (RFC 9110 §9.3.6, §7.2).
	target := r.URL.Host
	if r.RequestURI != "" {
		target = r.RequestURI
	}
	name, port, err := authority(target, "")
	if err != nil {
		http.Error(w, "CONNECT wants HOST:PORT and nothing else (RFC 9110 §9.3.6)", http.StatusBadRequest)
		return
	}
	to := net.JoinHostPort(name, strconv.Itoa(int(port)))
	if p.cfg.Authority != nil && p.cfg.Mirrored(hostOf(to, "443")) {
		certificate, err := p.cfg.Authority.For(name)
		if err == nil {
			p.terminate(w, certificate)
			return
		}
		// The registry itself is better than an error.
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
		http.Error(w, fmt.Sprintf("%d tunnels are open, and no more may be", p.cfg.TunnelsMax), http.StatusServiceUnavailable)
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
	// Cut when the daemon ends: the server's own drain does not know of it any more.
	defer context.AfterFunc(r.Context(), func() { here.Close(); there.Close() })()
	tunnel(here, there, p.cfg.Idle)
}

// terminate gives a client's connection to the inner server, behind TLS in the host's name.
func (p *Proxy) terminate(w http.ResponseWriter, certificate *tls.Certificate) {
	conn, err := hijack(w)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// HTTP/1.1 alone, as towards the mirror itself.
	p.inner.give(tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}))
}

// allow returns nil for a host and port that clients may be brought to.
func (p *Proxy) allow(host string, port uint16, secure bool) error {
	if err := p.cfg.Allow(host); err != nil {
		return err
	}
	return p.cfg.AllowPort(host, port, secure)
}

// errAuthority tells that a text names no host and port.
var errAuthority = errors.New("no host and port")

// authority reads host:port (RFC 9110 §7.1, RFC 3986 §3.2) into a host in lower case and without
// brackets, and a port of 1 to 65535 in digits; usual is meant where there is none, or nothing else
// is if that is empty. A user, a zone or a path is no part of it.
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
	if _, notIP := netip.ParseAddr(host); strings.Contains(host, ":") && notIP != nil || strings.HasPrefix(text, "[") && notIP != nil {
		return "", 0, errAuthority
	}
	return strings.ToLower(host), uint16(n), nil
}

// hostOf writes a host without the port that is usual for its scheme.
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

// listener hands connections on to a server.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) give(c net.Conn) {
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
