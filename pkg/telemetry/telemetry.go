// Package telemetry lets people watch a process: metrics, log lines, health, profiles.
//
// Nothing that it shows is secret, and no label has a value that a client or an origin
// could make up, so that no crowd of them makes a crowd of series. Every group of metrics
// may be nil: then it counts nothing. Start at [NewRegistry], [NewLogger] and [Admin].
// docs/metrics.md lists all metrics.
package telemetry

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build says what program this is.
type Build struct {
	// Version is the module's version, "(devel)" where it was built without one.
	Version string
	// Commit is twelve digits of the commit that it was built from, empty if unknown.
	Commit string
	// Modified says that the tree had changes beside that commit.
	Modified bool
	// Go is the version of the toolchain.
	Go string
}

// ReadBuild reads what the toolchain noted in this program.
func ReadBuild() Build {
	b := Build{Version: "(devel)", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// String is one line for people: "v1.2.3, commit 0123456789ab (modified), go1.26.0".
func (b Build) String() string {
	var s strings.Builder
	s.WriteString(b.Version)
	if b.Commit != "" {
		fmt.Fprintf(&s, ", commit %s", b.Commit)
		if b.Modified {
			s.WriteString(" (modified)")
		}
	}
	fmt.Fprintf(&s, ", %s", b.Go)
	return s.String()
}

// NewRegistry makes the one registry of a process, with what every Go program tells (go_*,
// process_*) and darter_build_info.
func NewRegistry(b Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "darter_build_info", Help: "Always 1; its labels say what is running.",
	}, []string{"version", "commit", "go"})
	info.WithLabelValues(b.Version, b.Commit, b.Go).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), info)
	return reg
}
