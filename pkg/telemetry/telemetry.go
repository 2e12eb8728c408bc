// Package telemetry lets people watch a process: metrics, log lines, health, profiles.
//
// Nothing that it shows is secret, and no label has a value that a client or an origin
// could make up, so that no crowd of them makes a crowd of series. Every group of metrics
// may be nil: then it counts nothing. Start at [NewRegistry], [NewLogger] and [Admin].
// docs/metrics.md lists all metrics.
package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/darter-io/darter/pkg/version"
)

// NewRegistry makes the one registry of a process, with what every Go program tells (go_*,
// process_*) and darter_build_info.
func NewRegistry(b version.Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "darter_build_info", Help: "Always 1; its labels say what is running.",
	}, []string{"version", "commit", "go"})
	info.WithLabelValues(b.Version, b.Commit, b.Go).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info)
	return reg
}
