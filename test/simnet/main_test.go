package simnet

import (
	"os"
	"runtime"
	"testing"
)

// One processor plays a bubble in half of the CPU time that two need, and in no more time: two spend theirs on the
// locks of the runtime. TestACrowdEndsThoughAHostDies plays on all processors.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
