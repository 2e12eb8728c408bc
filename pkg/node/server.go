package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Limits of every HTTP server: a client that says nothing, or next to nothing, must not hold a
// connection for ever. There is no limit on writing: a slow pull may take hours.
const (
	handshakeTimeout = 5 * time.Second
	headerTimeout    = 10 * time.Second
	bodyTimeout      = 15 * time.Second
	idleTimeout      = 2 * time.Minute
	headerMax        = 64 << 10
)

// Server returns the part that serves a handler on a listener. When its context ends it
// takes no more requests and waits for those that run, at most the drain timeout; what runs
// then is cut: it is told 503, or its body ends short. No handler ends in an empty 200.
func (n *Node) Server(name string, l net.Listener, h http.Handler) Part {
	d := n.door
	if d == nil {
		d = newDoor(n.Log, nil)
	}
	return func(ctx context.Context) error {
		// Requests outlive ctx: they are what is drained.
		base, cut := context.WithCancelCause(context.WithoutCancel(ctx))
		defer cut(nil)
		srv := &http.Server{
			Handler: answered(d.hurry(l.Addr(), h)), ReadHeaderTimeout: d.header, ConnState: watchState, IdleTimeout: idleTimeout,
			MaxHeaderBytes: headerMax,
			ConnContext:    withHeld,
			BaseContext:    func(net.Listener) context.Context { return base },
			ErrorLog:       slog.NewLogLogger(n.Log.With("server", name).Handler(), slog.LevelDebug),
		}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(l) }()
		select {
		case err := <-ended:
			return fmt.Errorf("serving the %s on %s: %w", name, l.Addr(), err)
		case <-ctx.Done():
		}
		drain := time.Duration(n.drain.Load())
		limit, cancel := context.WithTimeout(base, drain)
		defer cancel()
		if err := srv.Shutdown(limit); err != nil {
			n.Log.Warn("requests were cut: they took longer than the drain", "server", name, "drain", drain)
			cut(errStopping)
			// Handlers that saw their context end may still write their last words.
			again, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := srv.Shutdown(again); err != nil {
				srv.Close()
			}
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the %s on %s: %w", name, l.Addr(), err)
		}
		return nil
	}
}

// MembersOnly refuses browsers. Where the cluster has no secret, nothing else keeps a web page from
// sending an announce or a withdrawal to a port of this machine; to all but mere reading a
// browser adds the page's origin.
func MembersOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
			http.Error(w, "this API is for members of the cluster, not for browsers", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// LocalOnly refuses requests whose Host is a name other than localhost: a web page that made
// its own name resolve to 127.0.0.1 (DNS rebinding) could else speak to an API that trusts
// the machine. What a page asks for under the right name it refuses as well; see [NoPages].
func LocalOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.Host
		if host, _, err := net.SplitHostPort(name); err == nil {
			name = host
		}
		_, err := netip.ParseAddr(strings.Trim(name, "[]"))
		if err != nil && !strings.EqualFold(name, "localhost") {
			http.Error(w, "this API is asked for by IP address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		NoPages(h).ServeHTTP(w, r)
	})
}
