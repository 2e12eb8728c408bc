package arch

import (
	"fmt"
	"go/ast"
	"path"
	"strconv"
	"strings"
)

// Layer is one row of the import table.
type Layer struct {
	Name string
	// Packages are directories, separated by blanks. Packages after a ";" may import those before it; otherwise
	// packages of one layer do not import each other.
	Packages string
	// Pure layers hold no goroutine, socket, lock, clock or file.
	Pure bool
	// Gin allows packages of the layer to use gin, in routes.go only.
	Gin bool
}

// Table is the import table of docs/architecture.md: a package imports only packages of the rows above its own.
// Packages under test/ may import every package, and only tests import them.
var Table = []Layer{
	{Name: "types", Pure: true,
		Packages: "pkg/hostmatch pkg/secret pkg/version; pkg/task pkg/host pkg/rendezvous; pkg/oci pkg/piece"},
	{Name: "policy", Pure: true, Packages: "pkg/scheduler pkg/owners pkg/peer/picker pkg/peer/policy pkg/sharing " +
		"pkg/preheat; pkg/preheat/rules; pkg/preheat/order"},
	{Name: "contracts", Pure: true, Packages: "pkg/api; pkg/source"},
	{Name: "adapters", Packages: "pkg/atomicfile pkg/lag; pkg/config pkg/ratelimit pkg/telemetry pkg/identity " +
		"pkg/piece/diskstore pkg/piece/memstore pkg/source/httporigin pkg/clientconf pkg/httpproxy pkg/apiclient; " +
		"pkg/source/registry pkg/cluster pkg/announce pkg/purge pkg/preheat/jobs pkg/peer/wire " +
		"pkg/peer/upload"},
	{Name: "engines", Packages: "pkg/access pkg/peer; pkg/registryproxy pkg/coordinator"},
	{Name: "assemblies", Gin: true,
		Packages: "pkg/httpserver pkg/portmux pkg/cli; pkg/node pkg/preheat/doors; pkg/supernode pkg/daemon pkg/doctor; pkg/dfget"},
	{Name: "programs", Packages: "cmd/supernode cmd/dfdaemon cmd/dfget"},
	{Name: "suites", Packages: "pkg/piece/storetest pkg/source/sourcetest"},
}

// place is the row of a package, and its group within the row.
type place struct{ row, group int }

func places(table []Layer) map[string]place {
	out := map[string]place{}
	for row, l := range table {
		for group, names := range strings.Split(l.Packages, ";") {
			for _, name := range strings.Fields(names) {
				out[name] = place{row, group}
			}
		}
	}
	return out
}

// below reports whether a package at p may be imported by one at importer.
func (p place) below(importer place) bool {
	return p.row < importer.row || p.row == importer.row && p.group < importer.group
}

// isTest reports whether a package is only for tests.
func isTest(dir string) bool { return dir == "test" || strings.HasPrefix(dir, "test/") }

// Imports finds imports that go up or sideways, and packages that are not in the table.
func (t *Tree) Imports(table []Layer) (faults []string) {
	where := places(table)
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) {
			continue
		}
		own, known := where[pkg.Dir]
		if !known {
			faults = append(faults,
				fmt.Sprintf("%s is in no layer: add it to its row of arch.Table (and of docs/architecture.md)",
					pkg.Dir))
			continue
		}
		for _, name := range sorted(pkg.Files) {
			imports(pkg.Files[name], func(spec *ast.ImportSpec, p string) {
				dir, ours := strings.CutPrefix(p, t.Module+"/")
				if !ours {
					return
				}
				other, known := where[dir]
				switch {
				case isTest(dir):
					faults = append(faults, fmt.Sprintf(
						"%s: %s imports %s: only tests import test packages; move shared code below pkg/", t.at(spec),
						pkg.Dir, dir))
				case known && !other.below(own):
					faults = append(faults, fmt.Sprintf("%s: %s (%s) imports %s (%s): imports go down only; define an "+
						"interface, or "+
						"move shared code down", t.at(spec), pkg.Dir, table[own.row].Name, dir, table[other.row].Name))
				}
			})
		}
	}
	return faults
}

// Absent finds packages in the table that are not in the tree.
func (t *Tree) Absent(table []Layer) (faults []string) {
	for _, l := range table {
		for _, name := range strings.Fields(strings.ReplaceAll(l.Packages, ";", " ")) {
			if p := t.Packages[name]; p == nil || len(p.Files) == 0 {
				faults = append(faults, fmt.Sprintf("%s is in row %q of arch.Table, but not in the tree: remove it",
					name, l.Name))
			}
		}
	}
	return faults
}

// Gin finds uses of gin outside of the assemblies' routes.go. Gin's writer hides sendfile, so the byte path must not
// use it.
func (t *Tree) Gin(table []Layer) (faults []string) {
	where := places(table)
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) {
			continue
		}
		for _, name := range sorted(pkg.Files) {
			imports(pkg.Files[name], func(spec *ast.ImportSpec, p string) {
				if p != "github.com/gin-gonic/gin" && !strings.HasPrefix(p, "github.com/gin-gonic/gin/") {
					return
				}
				at, known := where[pkg.Dir]
				if name != "routes.go" || !known || !table[at.row].Gin {
					faults = append(faults,
						fmt.Sprintf("%s: gin is only for the routes.go of an assembly; use a plain http.Handler here",
							t.at(spec)))
				}
			})
		}
	}
	return faults
}

// harmless lists the names that pure code may use of packages with goroutines, sockets, locks, clocks, files or
// unseeded randomness; a final "*" matches any ending. All names of unlisted packages are allowed, and no name of a
// package with an empty list.
var harmless = map[string]string{
	"context":       "Context Canceled DeadlineExceeded Cause",
	"io/ioutil":     "",
	"log":           "",
	"math/rand":     "New NewSource Rand Source Source64",
	"math/rand/v2":  "New NewPCG NewChaCha8 Rand Source PCG ChaCha8",
	"net":           "JoinHostPort SplitHostPort ParseIP IP",
	"net/http":      "Header Status* Method* CanonicalHeaderKey ParseTime",
	"net/rpc":       "",
	"os":            "Err*",
	"os/exec":       "",
	"os/signal":     "",
	"path/filepath": "",
	"sync":          "",
	"sync/atomic":   "",
	"syscall":       "",
	"testing":       "",
	"time": "Time Duration Month Weekday Location UTC Unix UnixMilli UnixMicro Date Parse ParseDuration Nanosecond " +
		"Microsecond Millisecond Second Minute Hour RFC* Date* Layout",
	"golang.org/x/*":  "",
	"github.com/gin*": "",
}

// matches reports whether name is one of the blank-separated patterns.
func matches(patterns, name string) bool {
	for _, p := range strings.Fields(patterns) {
		if prefix, open := strings.CutSuffix(p, "*"); p == name || open && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// usable returns the names of an imported package that pure code may use.
func usable(importPath string) (names string, limited bool) {
	for pattern, names := range harmless {
		if matches(pattern, importPath) {
			return names, true
		}
	}
	return "", false
}

// Purity finds goroutines, sockets, locks, clocks, files and unseeded randomness in pure layers.
func (t *Tree) Purity(table []Layer) (faults []string) {
	where := places(table)
	for _, pkg := range t.built() {
		at, known := where[pkg.Dir]
		if !known || !table[at.row].Pure {
			continue
		}
		for _, name := range sorted(pkg.Files) {
			faults = append(faults, t.purity(pkg.Dir, pkg.Files[name])...)
		}
	}
	return faults
}

func (t *Tree) purity(dir string, f *ast.File) (faults []string) {
	limited := map[string]string{} // package name in this file → its usable names
	imports(f, func(spec *ast.ImportSpec, p string) {
		names, isLimited := usable(p)
		if !isLimited {
			return
		}
		local := localName(p)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if names == "" || local == "." || local == "_" {
			faults = append(faults, fmt.Sprintf("%s: %s imports %s: pure code holds no goroutine, socket, lock, clock "+
				"or file; take its result as an argument", t.at(spec), dir, p))
			return
		}
		limited[local] = names
	})
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			faults = append(faults,
				fmt.Sprintf("%s: %s starts a goroutine: return a decision and let the caller act on it", t.at(n), dir))
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			if names := limited[x.Name]; names != "" && !matches(names, n.Sel.Name) {
				faults = append(faults, fmt.Sprintf("%s: %s uses %s.%s: pure code takes time, randomness and I/O as "+
					"arguments", t.at(n), dir, x.Name, n.Sel.Name))
			}
		}
		return true
	})
	return faults
}

// localName returns the default name of an import: the last element of its path, or the one before a version.
func localName(importPath string) string {
	last := path.Base(importPath)
	if v, ok := strings.CutPrefix(last, "v"); ok {
		if _, err := strconv.Atoi(v); err == nil {
			return path.Base(path.Dir(importPath))
		}
	}
	return last
}
