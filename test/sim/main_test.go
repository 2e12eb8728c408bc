package sim_test

import (
	"os"
	"runtime"
	"testing"
)

// See the TestMain of package simnet.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
