package cli

import (
	"log/slog"
	"math"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// limitMemory has the garbage collector keep the process below nine tenths of the memory that provider allows, so that
// it works harder before the kernel ends the process. The variable GOMEMLIMIT overrides that, and AUTOMEMLIMIT sets
// another share, or "off".
func limitMemory(logger *slog.Logger, provider memlimit.Provider) {
	before := debug.SetMemoryLimit(-1)
	limit, err := memlimit.Set(memlimit.WithProvider(provider))
	switch {
	case err != nil:
		logger.Warn("the memory limit of the cgroup is not known: set GOMEMLIMIT if there is one", "error", err)
	case limit != before && limit != math.MaxInt64:
		logger.Info("memory is limited", "bytes", limit)
	}
}
