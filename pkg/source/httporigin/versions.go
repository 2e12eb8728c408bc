package httporigin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// onlyTwoMax bounds the remembered hosts; a forgotten one costs one more handshake.
const onlyTwoMax = 1024

// versions sends requests by HTTP/1.1: one connection per body, no shared flow control, and half the CPU per byte of
// HTTP/2. It uses HTTP/2 for hosts that speak nothing else. Safe for concurrent use.
type versions struct {
	one, two *http.Transport
	observe  func(ctx context.Context, status int) // can be nil

	// mu is held to look up and change, never during a request.
	mu sync.Mutex
	// onlyTwo are such hosts, by host:port.
	onlyTwo map[string]bool
}

func newVersions(observe func(context.Context, int), one *http.Transport) *versions {
	v := &versions{observe: observe, one: one, two: one.Clone(), onlyTwo: map[string]bool{}}
	one.Protocols, v.two.Protocols = new(http.Protocols), new(http.Protocols)
	one.Protocols.SetHTTP1(true)
	// A host of HTTP/2 alone can refuse this offer in the handshake.
	one.TLSClientConfig.NextProtos = []string{"http/1.1"}
	v.two.Protocols.SetHTTP2(true)
	// Without pings, a connection whose host is gone would take every request until the kernel gives it up.
	v.two.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second}
	return v
}

// RoundTrip implements [http.RoundTripper].
func (v *versions) RoundTrip(req *http.Request) (*http.Response, error) {
	host := hostPort(req.URL)
	v.mu.Lock()
	two := v.onlyTwo[host]
	v.mu.Unlock()
	if two {
		return v.send(v.two, req)
	}
	res, err := v.send(v.one, req)
	if !wantsTwo(req, res, err) {
		return res, err
	}
	again, failed := v.send(v.two, req)
	if failed != nil {
		return res, err // no better
	}
	if err == nil {
		res.Body.Close()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.onlyTwo) >= onlyTwoMax {
		clear(v.onlyTwo)
	}
	v.onlyTwo[host] = true
	return again, nil
}

// send sends a request once and reports it.
func (v *versions) send(by *http.Transport, req *http.Request) (*http.Response, error) {
	res, err := by.RoundTrip(req)
	if v.observe != nil {
		status := 0
		if err == nil {
			status = res.StatusCode
		}
		v.observe(req.Context(), status)
	}
	return res, err
}

// wantsTwo reports whether a host refused HTTP/1.1 for its version, in the handshake or by a status. A request with
// a body cannot be sent twice.
func wantsTwo(req *http.Request, res *http.Response, err error) bool {
	if req.URL.Scheme != "https" || req.Body != nil && req.Body != http.NoBody {
		return false
	}
	if err != nil {
		// crypto/tls has no exported type for an alert of the other side over TCP: its text is the alert's name
		// (RFC 7301 §3.2).
		var op *net.OpError
		alert := errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Error(), "no application protocol")
		return alert || strings.Contains(err.Error(), noHTTP1)
	}
	return res.StatusCode == http.StatusHTTPVersionNotSupported || res.StatusCode == http.StatusUpgradeRequired
}

// noHTTP1 is how net/http begins to report an answer that is not one of HTTP/1.1, such as the first frame of HTTP/2. It
// has no exported type either.
const noHTTP1 = "malformed HTTP "

func (v *versions) closeIdle() {
	v.one.CloseIdleConnections()
	v.two.CloseIdleConnections()
}
