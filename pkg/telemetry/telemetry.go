// Package telemetry shows a process to its operators: metrics, log lines, health, profiles.
//
// It never shows a secret, and no label takes a value from a client or an origin, so that they cannot create series.
// Every group of metrics may be nil; it then counts nothing. Start at [NewRegistry], [NewLogger], [Admin]
// and [Health].
// docs/metrics.md lists all metrics.
package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/darter-io/darter/pkg/version"
)

// NewRegistry returns the metrics registry of a process, with the metrics of every Go program (go_*, process_*) and
// darter_build_info.
func NewRegistry(b version.Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "darter_build_info", Help: "Always 1; its labels say what is running.",
	}, []string{"version", "commit", "go"})
	info.WithLabelValues(b.Version, b.Commit, b.Go).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info)
	return reg
}
