// Package cli runs the scripts of the programs' command lines.
//
// A script never touches files outside its own directory, and uses free ports: $ADDR1 to $ADDR3. Start at [Run].
package cli

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/test/programs"
)

// Run runs the scripts in testdata. Environment variables are those of every script, as
// "NAME=value".
func Run(t *testing.T, environment ...string) {
	readers := map[*testscript.TestScript]*http.Response{}
	var mu sync.Mutex
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
			e.Vars = append(e.Vars, environment...)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("DARTER_NODE_DATA_DIR", e.WorkDir+"/data")
			e.Setenv("DARTER_CACHE_QUOTA", "64MiB")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"signal": Signal,
			"reader": func(ts *testscript.TestScript, neg bool, args []string) {
				mu.Lock()
				defer mu.Unlock()
				reader(ts, neg, args, readers)
			},
		},
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

// reader is the command "reader begin URL", which reads the first bytes of a body and no more,
// "reader end", which reads the rest, and "reader cut", which finds that the body ends short.
func reader(ts *testscript.TestScript, neg bool, args []string, running map[*testscript.TestScript]*http.Response) {
	if neg || len(args) == 0 || (args[0] == "begin") != (len(args) == 2) {
		ts.Fatalf("usage: reader begin URL | reader end | reader cut")
	}
	if args[0] == "begin" {
		tr := &http.Transport{DisableKeepAlives: true}
		req, err := http.NewRequest(http.MethodGet, args[1], nil)
		ts.Check(err)
		res, err := tr.RoundTrip(req)
		ts.Check(err)
		if res.StatusCode != http.StatusOK {
			ts.Fatalf("%s: %s", args[1], res.Status)
		}
		_, err = io.CopyN(io.Discard, res.Body, 1024)
		ts.Check(err)
		running[ts] = res
		return
	}
	res := running[ts]
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	switch {
	case args[0] == "end" && (err != nil || n != res.ContentLength-1024):
		ts.Fatalf("read %d bytes more of %d: %v", n, res.ContentLength, err)
	case args[0] == "cut" && err == nil:
		ts.Fatalf("the body did not end short: %d bytes more", n)
	}
}
