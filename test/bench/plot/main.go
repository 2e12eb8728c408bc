package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/darter-io/darter/test/results"
)

func main() {
	in := flag.String("in", "out/bench.json", "what make bench measured")
	out := flag.String("out", "docs", "directory for the charts")
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
	for name, chart := range map[string]func(io.Writer, []results.Result) error{"makespan.svg": Makespan,
		"targets.svg": Targets} {
		var b bytes.Buffer
		if err := chart(&b, file.Results); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
