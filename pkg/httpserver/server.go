// Package httpserver keeps HTTP servers safe: it bounds connections, handshakes, headers and slow bodies, ends every
// request with an answer, drains at the end, and refuses browsers where an API is for programs.
//
// No request ends in an empty 200, and silent clients never block a client that sends a request. Start at [Server.Run]
// and [Limiter].
package httpserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Limits of every HTTP server: a client that sends nothing, or next to nothing, must not hold a connection
// forever. Writing has no limit: a slow pull may take hours.
const (
	handshakeTimeout = 5 * time.Second
	headerTimeout    = 10 * time.Second
	bodyTimeout      = 15 * time.Second
	idleTimeout      = 2 * time.Minute
	headerMax        = 64 << 10
)

// Server serves a handler on a listener.
type Server struct {
	// Name is its name in errors and logs.
	Name     string
	Listener net.Listener
	Handler  http.Handler
	// Limiter is the Listener's.
	Limiter *Limiter
	// Drain returns how long running requests may take at the end.
	Drain func() time.Duration
	// Refuses keeps the port open while running requests end, and answers new ones with 503, for clients that would take
	// a closed port for a failure. Otherwise the port closes at once.
	Refuses bool
	Logger  *slog.Logger
	// Stale reports whether a connection should end after its current request; nil ends none.
	Stale func(net.Conn) bool
}

// Run serves until ctx ends. Then it takes no more requests (see Refuses) and waits for those that run, at most for the
// drain timeout. It cuts the rest: their clients get a 503, or a body that ends short.
func (s Server) Run(ctx context.Context) error {
	// Requests do not end with ctx, because the drain waits for them.
	base, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var g gate
	srv := &http.Server{
		Handler:           g.guard(s.endStale(s.Limiter.boundBodies(s.Listener.Addr(), s.Handler))),
		ReadHeaderTimeout: s.Limiter.header,
		ConnState:         watchState, IdleTimeout: idleTimeout, MaxHeaderBytes: headerMax, ConnContext: s.withConn,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(s.Logger.With("server", s.Name).Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(s.Listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving the %s on %s: %w", s.Name, s.Listener.Addr(), err)
	case <-ctx.Done():
	}
	drain := s.Drain()
	limit, cancel := context.WithTimeout(base, drain)
	defer cancel()
	if s.Refuses {
		select {
		case <-g.close():
		case <-limit.Done():
		}
	}
	if err := srv.Shutdown(limit); err != nil {
		s.Logger.Warn("requests were cut: they took longer than the drain", "server", s.Name, "drain", drain)
		cut(errStopping)
		// Handlers whose context ended may still write the end of their responses.
		again, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := srv.Shutdown(again); err != nil {
			srv.Close()
		}
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the %s on %s: %w", s.Name, s.Listener.Addr(), err)
	}
	return nil
}

// endStale closes stale connections after their request. A client then opens a new one, and no request fails.
func (s Server) endStale(h http.Handler) http.Handler {
	if s.Stale == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(staleKey{}).(net.Conn); ok && s.Stale(c) {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

type staleKey struct{}

// withConn stores a request's connection in its context.
func (s Server) withConn(ctx context.Context, c net.Conn) context.Context {
	ctx = withConn(ctx, c)
	if s.Stale == nil {
		return ctx
	}
	return context.WithValue(ctx, staleKey{}, c)
}
