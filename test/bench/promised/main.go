// Command promised prints the promises about swarms with the figures of `make bench`.
//
// It measures nothing and never judges by more than the figures in out/bench.json: what is not
// there is said to be not measured. Start at [bench.Promises].
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/darter-io/darter/test/bench"
	"github.com/darter-io/darter/test/results"
)

func main() {
	in := flag.String("in", "out/bench.json", "what make bench measured")
	flag.Parse()
	if err := print(*in); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func print(in string) error {
	b, err := os.ReadFile(in)
	if err != nil {
		return fmt.Errorf("reading what was measured (run make bench first): %w", err)
	}
	var file results.File
	if err := json.Unmarshal(b, &file); err != nil {
		return fmt.Errorf("reading what was measured: %s: %w", in, err)
	}
	return bench.PrintPromises(os.Stdout, &file)
}
