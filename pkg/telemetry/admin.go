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

// readyMax bounds all checks of one request together.
const readyMax = 2 * time.Second

// Ready is the set of checks that a process must pass to be ready. The zero value has none and is ready. Safe for
// concurrent use.
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

// Add adds a named check. Its error says what is missing; /readyz shows it to everyone. The check must return when its
// context ends.
func (r *Ready) Add(name string, ask func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, check{name, ask})
}

// Missing runs every check, in the order of Add, and returns those that failed.
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

// ServeHTTP responds with 200 if nothing is missing, else with 503. The body has a line for each check.
func (r *Ready) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	missing, passed := r.ask(req.Context())
	writeReady(w, missing, passed)
}

func writeReady(w http.ResponseWriter, missing []Missing, passed []string) {
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
		_, _ = io.WriteString(w, "ready\n")
	}
}

// Admin returns the handler for operators:
//
//	/healthz       200 while the process responds
//	/readyz        200, or 503 with the missing parts
//	/metrics       Prometheus
//	/debug/pprof/  profiles
//
// It has no authentication and profiles cost CPU: serve it on a loopback address only.
func Admin(reg *prometheus.Registry, ready *Ready, b version.Build, l *slog.Logger) http.Handler {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	mux := readOnly(reg, ready, l)
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

// Health returns the handler for programs of other machines: /healthz, /readyz and /metrics of [Admin], and nothing
// else. Strangers may ask it, and checks write to the disk, so it answers with checks that are up to a second old.
func Health(reg *prometheus.Registry, ready *Ready, l *slog.Logger) http.Handler {
	return readOnly(reg, &recent{ready: ready, turn: make(chan struct{}, 1)}, l)
}

// readOnly returns the paths that Admin and Health have in common.
func readOnly(reg *prometheus.Registry, ready http.Handler, l *slog.Logger) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /readyz", ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(l.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
	}))
	return mux
}

// recentMax is how old the checks of an answer of [Health] may be.
const recentMax = time.Second

// recent answers for a Ready and runs its checks once in recentMax.
type recent struct {
	ready *Ready
	// turn has room for the one request that uses the fields below; the others wait for it, or for their clients.
	turn    chan struct{}
	at      time.Time // of the last checks; zero if there were none
	missing []Missing
	passed  []string
}

func (r *recent) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case r.turn <- struct{}{}:
	case <-req.Context().Done():
		http.Error(w, "the checks took too long", http.StatusServiceUnavailable)
		return
	}
	if r.at.IsZero() || time.Since(r.at) >= recentMax {
		// A client that leaves must not make the answer of the next one.
		r.missing, r.passed = r.ready.ask(context.WithoutCancel(req.Context()))
		r.at = time.Now()
	}
	missing, passed := r.missing, r.passed
	<-r.turn
	writeReady(w, missing, passed)
}
