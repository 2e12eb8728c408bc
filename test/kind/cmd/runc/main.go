// Command runc starts the real runc on machines where root lacks CAP_SYS_RESOURCE: it takes that capability, limits and
// negative OOM scores out of the configuration of a container, which runc could not set. It never adds a right.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// realRunc is the program of Debian's package.
const realRunc = "/usr/sbin/runc"

func main() {
	args := os.Args[1:]
	bundle, _ := flag(args, "--bundle", "-b")
	if slices.Contains(args, "create") || slices.Contains(args, "run") {
		weaken(filepath.Join(bundle, "config.json"), func(spec map[string]any) map[string]any {
			process, _ := spec["process"].(map[string]any)
			return process
		})
	}
	if file, ok := flag(args, "--process", "-p"); ok {
		weaken(file, func(process map[string]any) map[string]any { return process })
	}
	err := syscall.Exec(realRunc, append([]string{realRunc}, args...), os.Environ())
	fmt.Fprintf(os.Stderr, "starting %s: %v\n", realRunc, err)
	os.Exit(127)
}

// flag returns the value of a flag.
func flag(args []string, long, short string) (string, bool) {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, long+"="); ok {
			return v, true
		}
		if (a == long || a == short) && i+1 < len(args) {
			return args[i+1], true
		}
	}
	return "", false
}

// weaken changes the process in a JSON file. Where it cannot, runc says what is wrong.
func weaken(file string, find func(map[string]any) map[string]any) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	var spec map[string]any
	if json.Unmarshal(b, &spec) != nil {
		return
	}
	process := find(spec)
	if process == nil {
		return
	}
	if sets, ok := process["capabilities"].(map[string]any); ok {
		for name, set := range sets {
			list, _ := set.([]any)
			sets[name] = slices.DeleteFunc(list, func(c any) bool { return c == "CAP_SYS_RESOURCE" })
		}
	}
	if score, ok := process["oomScoreAdj"].(float64); ok && score < 0 {
		process["oomScoreAdj"] = 0
	}
	delete(process, "rlimits")
	if b, err = json.Marshal(spec); err == nil {
		_ = os.WriteFile(file, b, 0o600)
	}
}
