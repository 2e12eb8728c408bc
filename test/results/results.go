// Package results writes the figures of a demo, a benchmark or a system test as data, so that two runs can be compared.
//
// Scenarios and metrics never change their names between releases, and every value has a unit. Several programs may
// write one file, each its own scenarios: see [File.Merge]. Start at [File].
package results

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Result is one figure.
type Result struct {
	// Scenario is for example "demo/5-nodes".
	Scenario string `json:"scenario"`
	// Metric is for example "registry_egress_ratio".
	Metric string  `json:"metric"`
	Value  float64 `json:"value"`
	// Unit is bytes, seconds, ratio, …
	Unit string `json:"unit"`
	// Target is the bound that the value must meet; nil for none.
	Target *float64 `json:"target,omitempty"`
	// Better is "lower" or "higher".
	Better string `json:"better"`
	// Min and Max bound the figures of Runs runs, and Value is their median; nil and 0 for a single run.
	Min  *float64 `json:"min,omitempty"`
	Max  *float64 `json:"max,omitempty"`
	Runs int      `json:"runs,omitempty"`
}

// Median returns the median of repeated runs; lower is better. It panics without values.
func Median(scenario, metric string, values []float64, unit string) Result {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Result{
		Scenario: scenario, Metric: metric, Value: (v[(n-1)/2] + v[n/2]) / 2, Unit: unit, Better: "lower",
		Min: &v[0], Max: &v[n-1], Runs: n,
	}
}

// AtMost returns the result with a target that its value must not exceed.
func (r Result) AtMost(target float64) Result {
	r.Target = &target
	return r
}

// AtLeast returns the result with a target that its value must reach; higher is better.
func (r Result) AtLeast(target float64) Result {
	r.Target, r.Better = &target, "higher"
	return r
}

// Missed reports whether the value misses its target.
func (r Result) Missed() bool {
	return r.Target != nil && (r.Better == "higher" && r.Value < *r.Target || r.Better != "higher" &&
		r.Value > *r.Target)
}

// File holds the results of one run.
type File struct {
	// Commit of the tree, with "+dirty" if files differ from it; empty outside of git.
	Commit  string   `json:"commit"`
	Go      string   `json:"go"`
	CPU     string   `json:"cpu"`
	Results []Result `json:"results"`
}

// New returns an empty file with commit, Go version and CPU.
func New() *File {
	return &File{Commit: commit(), Go: runtime.Version(), CPU: cpu()}
}

// Add adds figures.
func (f *File) Add(r ...Result) { f.Results = append(f.Results, r...) }

// Lower adds a figure; lower is better.
func (f *File) Lower(scenario, metric string, value float64, unit string) {
	f.Results = append(f.Results, Result{Scenario: scenario, Metric: metric, Value: value, Unit: unit, Better: "lower"})
}

// Higher adds a figure; higher is better.
func (f *File) Higher(scenario, metric string, value float64, unit string) {
	f.Results = append(f.Results, Result{
		Scenario: scenario, Metric: metric, Value: value, Unit: unit, Better: "higher",
	})
}

// Promised adds a figure that must not exceed its target.
func (f *File) Promised(scenario, metric string, value float64, unit string, target float64) {
	f.Results = append(f.Results, Result{
		Scenario: scenario, Metric: metric, Value: value, Unit: unit, Target: &target, Better: "lower",
	})
}

// Merge adds the figures of other scenarios from the file at path. It ignores figures of another commit or machine,
// which are not comparable. A missing file is no error.
func (f *File) Merge(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading earlier results: %w", err)
	}
	var old File
	if err := json.Unmarshal(b, &old); err != nil {
		return fmt.Errorf("reading earlier results of %s: %w", path, err)
	}
	if old.Commit != f.Commit || old.CPU != f.CPU || old.Go != f.Go {
		return nil
	}
	own := map[string]bool{}
	for _, r := range f.Results {
		own[r.Scenario] = true
	}
	kept := slices.DeleteFunc(old.Results, func(r Result) bool { return own[r.Scenario] })
	f.Results = append(kept, f.Results...)
	return nil
}

// Print writes the figures as a table for people, and marks missed targets.
func (f *File) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "scenario\tmetric\tvalue\tunit\tmin – max\ttarget\t")
	for _, r := range f.Results {
		spread, target, mark := "", "", ""
		if r.Min != nil && r.Max != nil {
			spread = fmt.Sprintf("%s – %s (%d runs)", number(*r.Min), number(*r.Max), r.Runs)
		}
		if r.Target != nil {
			target = "≤ " + number(*r.Target)
			if r.Better == "higher" {
				target = "≥ " + number(*r.Target)
			}
			mark = "ok"
			if r.Missed() {
				mark = "missed"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Scenario, r.Metric, number(r.Value), r.Unit, spread,
			target, mark)
	}
	fmt.Fprintf(t, "\ncommit %s, %s, %s\n", f.Commit, f.Go, f.CPU)
	return t.Flush()
}

// number formats a value with the digits that a reader needs.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 10000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

// Write writes the file as JSON, completely or not at all, and creates its directory.
func (f *File) Write(path string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	if err := os.WriteFile(path+".part", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	if err := os.Rename(path+".part", path); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return ""
	}
	c := strings.TrimSpace(string(out))
	if exec.Command("git", "diff", "--quiet", "HEAD").Run() != nil {
		c += "+dirty"
	}
	return c
}

// cpu returns the number of threads and the model of the processor.
func cpu() string {
	model := runtime.GOARCH
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), model)
}
