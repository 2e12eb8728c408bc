// Package cli runs the scripts of the programs' command lines.
//
// A script never touches what lies outside its own directory, and its ports are free ones:
// $ADDR1 to $ADDR3. Start at [Run].
package cli

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/test/programs"
)

// Run runs the scripts in testdata.
func Run(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			addrs, err := programs.FreeAddrs(3)
			if err != nil {
				return err
			}
			for i, a := range addrs {
				e.Setenv(fmt.Sprintf("ADDR%d", i+1), a)
			}
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("DARTER_NODE_DATA_DIR", e.WorkDir+"/data")
			e.Setenv("DARTER_CACHE_QUOTA", "64MiB")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"signal": Signal},
	})
}

// Signal is the command "signal HUP|INT|TERM": it sends a signal to the program that runs in
// the background.
func Signal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM}
	running := ts.BackgroundCmds()
	if neg || len(args) != 1 || signals[args[0]] == nil || len(running) != 1 {
		ts.Fatalf("usage: signal HUP|INT|TERM, with one program in the background")
	}
	if err := running[0].Process.Signal(signals[args[0]]); err != nil {
		ts.Fatalf("signal %s: %v", args[0], err)
	}
}

// Size is the command "size FILE N": it waits until a file has at least N bytes.
func Size(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: size FILE N")
	}
	want, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		info, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil && info.Size() >= want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not grow to %d bytes: %v, %v", args[0], want, info, err)
		}
	}
}
