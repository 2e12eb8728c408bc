// Package race makes tests smaller under the race detector, which slows them down some ten times.
//
// There a test looks for races, so that it has to meet each mechanism once; what it measures is
// measured without the detector. Start at [Some] and [Skip].
package race

import (
	"fmt"
	"testing"
)

// Some returns the named cases under the race detector and all of them without it. It panics
// where a name has no case.
func Some[C any](cases map[string]C, names ...string) map[string]C {
	some := make(map[string]C, len(names))
	for _, name := range names {
		c, ok := cases[name]
		if !ok {
			panic(fmt.Sprintf("no case %q", name))
		}
		some[name] = c
	}
	if Enabled {
		return some
	}
	return cases
}

// Skip skips the test under the race detector; why says where the detector sees the same code.
func Skip(t testing.TB, why string) {
	t.Helper()
	if Enabled {
		t.Skip("under the race detector: " + why)
	}
}
