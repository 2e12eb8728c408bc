// Package results writes what a demo, a bench or a system test measured as data, so that two
// runs can be laid side by side.
//
// A scenario and a metric never change their names from release to release, and every value
// has a unit. Start at [File].
package results

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Result is one figure.
type Result struct {
	// Scenario is what was done: "demo/5-nodes".
	Scenario string `json:"scenario"`
	// Metric is what was measured: "registry_egress_ratio".
	Metric string  `json:"metric"`
	Value  float64 `json:"value"`
	// Unit is bytes, seconds, ratio, …
	Unit string `json:"unit"`
	// Target is what the value must reach; nil where nothing is promised.
	Target *float64 `json:"target,omitempty"`
	// Better is "lower" or "higher".
	Better string `json:"better"`
}

// File is what one run leaves behind.
type File struct {
	// Commit of the tree, with "+dirty" when files differ from it; empty outside of git.
	Commit  string   `json:"commit"`
	Go      string   `json:"go"`
	CPU     string   `json:"cpu"`
	Results []Result `json:"results"`
}

// New is an empty file that says where and of what it was measured.
func New() *File {
	return &File{Commit: commit(), Go: runtime.Version(), CPU: cpu()}
}

// Lower adds a figure that is better when lower.
func (f *File) Lower(scenario, metric string, value float64, unit string) {
	f.Results = append(f.Results, Result{Scenario: scenario, Metric: metric, Value: value, Unit: unit, Better: "lower"})
}

// Higher adds a figure that is better when higher.
func (f *File) Higher(scenario, metric string, value float64, unit string) {
	f.Results = append(f.Results, Result{Scenario: scenario, Metric: metric, Value: value, Unit: unit, Better: "higher"})
}

// Promised adds a figure that must not be above its target.
func (f *File) Promised(scenario, metric string, value float64, unit string, target float64) {
	f.Results = append(f.Results, Result{Scenario: scenario, Metric: metric, Value: value, Unit: unit, Target: &target, Better: "lower"})
}

// Write writes the file as JSON, whole or not at all, and makes its directory.
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

// cpu names the processor and how many of its threads there are.
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
