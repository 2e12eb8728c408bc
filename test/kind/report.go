package kind

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// row is one measured scenario.
type row struct {
	Name string `json:"name"`
	// Nodes that pulled.
	Nodes int `json:"nodes"`
	// New are the bytes that no node of the cluster had.
	New int64 `json:"newBytes"`
	// Front are the bytes of bodies that the registry sent, and Kernel those of its packets (-1: not counted).
	Front  int64 `json:"frontBytes"`
	Kernel int64 `json:"kernelBytes"`
	// Ratio is Front for each new byte; for a scenario without new bytes it is 0.
	Ratio float64 `json:"ratio"`
	// Limit is the highest ratio that passes; 0 if the scenario has another rule.
	Limit   float64 `json:"limit,omitempty"`
	Seconds float64 `json:"seconds"`
	Note    string  `json:"note,omitempty"`
}

// report is the content of the output file.
type report struct {
	Kubernetes string `json:"kubernetes"`
	Containerd string `json:"containerd"`
	Nodes      int    `json:"nodes"`
	Rows       []row  `json:"scenarios"`
}

// table is the report as text.
func (r report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d nodes\n", r.Kubernetes, r.Containerd, r.Nodes)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "scenario\tnodes\tnew bytes\tregistry sent\tpackets\tcopies\tlimit\tseconds\t")
	for _, s := range r.Rows {
		limit, packets, copies := "", "-", "-"
		if s.Limit > 0 {
			limit = fmt.Sprintf("%.2f", s.Limit)
		}
		if s.Kernel >= 0 {
			packets = fmt.Sprint(s.Kernel)
		}
		if s.New > 0 {
			copies = fmt.Sprintf("%.4f", s.Ratio)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%.1f\t\n", s.Name, s.Nodes, s.New, s.Front, packets, copies, limit,
			s.Seconds)
	}
	_ = w.Flush()
	return b.String()
}

// write writes the report as JSON.
func (r report) write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
