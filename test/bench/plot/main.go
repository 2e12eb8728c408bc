package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/darter-io/darter/test/results"
)

func main() {
	in := flag.String("in", "out/bench.json", "what make bench measured")
	out := flag.String("out", "docs/makespan.svg", "where the chart goes")
	flag.Parse()
	if err := draw(*in, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func draw(in, out string) error {
	b, err := os.ReadFile(in)
	if err != nil {
		return fmt.Errorf("reading what was measured (run make bench first): %w", err)
	}
	var file results.File
	if err := json.Unmarshal(b, &file); err != nil {
		return fmt.Errorf("reading what was measured: %s: %w", in, err)
	}
	var chart bytes.Buffer
	if err := Makespan(&chart, file.Results); err != nil {
		return err
	}
	return os.WriteFile(out, chart.Bytes(), 0o644)
}
