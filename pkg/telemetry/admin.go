package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/darter-io/darter/pkg/version"
)

// readyMax bounds all checks of one question together.
const readyMax = 2 * time.Second

// Ready is the set of what must be there before a process does its work. The zero value is
// an empty set, which misses nothing. Safe for concurrent use.
type Ready struct {
	// mu is held to add a check or copy them, never while one runs.
	mu     sync.Mutex
	checks []check
}

type check struct {
	name string
	ask  func(context.Context) error
}

// Missing is a check that failed.
type Missing struct {
	Name string
	Err  error
}

// Add adds a named check; its error says what is missing, in words that a stranger may
// read. It must return when its context ends.
func (r *Ready) Add(name string, ask func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, check{name, ask})
}

// Missing asks every check, in the order they were added.
func (r *Ready) Missing(ctx context.Context) (missing []Missing) {
	missing, _ = r.ask(ctx)
	return missing
}

func (r *Ready) ask(ctx context.Context) (missing []Missing, passed []string) {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	r.mu.Lock()
	checks := r.checks[:len(r.checks):len(r.checks)]
	r.mu.Unlock()
	for _, c := range checks {
		if err := c.ask(ctx); err != nil {
			missing = append(missing, Missing{c.name, err})
		} else {
			passed = append(passed, c.name)
		}
	}
	return missing, passed
}

// ServeHTTP answers 200 when nothing is missing and 503 otherwise; the body has a line for
// each check.
func (r *Ready) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	missing, passed := r.ask(req.Context())
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if len(missing) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for _, m := range missing {
		fmt.Fprintf(w, "missing %s: %s\n", m.Name, safeError(m.Err))
	}
	for _, name := range passed {
		fmt.Fprintf(w, "ok %s\n", name)
	}
	if len(missing) == 0 {
		io.WriteString(w, "ready\n")
	}
}

// Admin answers an operator's questions on an address of its own:
//
//	/healthz       200 as long as the process answers at all
//	/readyz        200, or 503 and what is missing
//	/metrics       Prometheus
//	/debug/pprof/  profiles
//
// It knows no passwords and profiles cost CPU, so it belongs on a loopback address.
func Admin(reg *prometheus.Registry, ready *Ready, b version.Build, l *slog.Logger) http.Handler {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /readyz", ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(l.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	}))
	// Importing net/http/pprof also registers on http.DefaultServeMux, which nothing here serves.
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "darter %s\n\n/healthz\n/readyz\n/metrics\n/debug/pprof/\n", b)
	})
	return mux
}
