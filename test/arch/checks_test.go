package arch

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fixture returns a small tree: pairs of a file name and its text.
func fixture(t *testing.T, files ...string) *Tree {
	t.Helper()
	m := fstest.MapFS{"go.mod": {Data: []byte("module m.test/m\n\ngo 1.26\n")}}
	for i := 0; i < len(files); i += 2 {
		m[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	tr, err := Load(m)
	require.NoError(t, err)
	return tr
}

var small = []Layer{
	{Name: "types", Pure: true, Packages: "pkg/a; pkg/b"},
	{Name: "adapters", Packages: "pkg/c pkg/d"},
	{Name: "assemblies", Gin: true, Packages: "pkg/e"},
}

func TestImportFaults(t *testing.T) {
	for _, row := range []struct{ name, dir, imports, want string }{
		{"down", "pkg/c", "pkg/a", ""},
		{"down two rows", "pkg/e", "pkg/b", ""},
		{"back over a semicolon", "pkg/b", "pkg/a", ""},
		{"forth over a semicolon", "pkg/a", "pkg/b", "imports go down only"},
		{"up", "pkg/b", "pkg/c", "pkg/b (types) imports pkg/c (adapters)"},
		{"sideways", "pkg/c", "pkg/d", "pkg/c (adapters) imports pkg/d (adapters)"},
		{"from the tests", "pkg/c", "test/lab", "only tests import test packages"},
		{"unknown package", "pkg/new", "pkg/a", "pkg/new is in no layer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t, row.dir+"/x.go", "package x\n\nimport _ \"m.test/m/"+row.imports+"\"\n")
			expect(t, row.want, tr.Imports(small))
		})
	}
}

func TestTestsMayImportEverything(t *testing.T) {
	tr := fixture(t,
		"pkg/a/x.go", "package a\n",
		"pkg/a/x_test.go", "package a\n\nimport _ \"m.test/m/pkg/e\"\n",
		"test/lab/x.go", "package lab\n\nimport _ \"m.test/m/pkg/e\"\n")
	assert.Empty(t, tr.Imports(small))
}

func TestAbsentFaults(t *testing.T) {
	tr := fixture(t, "pkg/a/x.go", "package a\n", "pkg/b/x.go", "package b\n", "pkg/c/x.go", "package c\n",
		"pkg/d/x_test.go", "package d\n")
	assert.Len(t, tr.Absent(small), 2, "pkg/d has only tests, pkg/e nothing")
}

func TestPurityFaults(t *testing.T) {
	for _, row := range []struct{ name, imports, body, want string }{
		{"a duration", `"time"`, `var _ = 3 * time.Second`, ""},
		{"a time taken as argument", `"time"`, `func f(now time.Time) bool { return now.After(time.Time{}) }`, ""},
		{"a field called Now", `"time"`, `var x struct{ Now time.Time }; var _ = x.Now`, ""},
		{"the clock", `"time"`, `var _ = time.Now()`, "uses time.Now"},
		{"the clock as a value", `"time"`, `var _ = time.Now`, "uses time.Now"},
		{"the clock by another name", `clock "time"`, `var _ = clock.Since`, "uses clock.Since"},
		{"a timer", `"time"`, `var _ = time.After`, "uses time.After"},
		{"a lock", `"sync"`, `var _ sync.Mutex`, "imports sync"},
		{"an atomic", `"sync/atomic"`, `var _ atomic.Int64`, "imports sync/atomic"},
		{"a file", `"os"`, `var _ = os.Open`, "uses os.Open"},
		{"an error of os", `"os"`, `var _ = os.ErrNotExist`, ""},
		{"a socket", `"net"`, `var _ = net.Dial`, "uses net.Dial"},
		{"joining an address", `"net"`, `var _ = net.JoinHostPort`, ""},
		{"a client", `"net/http"`, `var _ = http.Get`, "uses http.Get"},
		{"a status", `"net/http"`, `var _ = http.StatusOK`, ""},
		{"a goroutine", `"fmt"`, `func f() { go fmt.Println() }`, "starts a goroutine"},
		{"unseeded randomness", `"math/rand/v2"`, `var _ = rand.IntN(3)`, "uses rand.IntN"},
		{"seeded randomness", `"math/rand/v2"`, `var _ = rand.New(rand.NewPCG(1, 2)).IntN(3)`, ""},
		{"a dot import", `. "time"`, `var _ = Now()`, "imports time"},
		{"an errgroup", `"golang.org/x/sync/errgroup"`, `var _ errgroup.Group`, "imports golang.org/x/sync/errgroup"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t, "pkg/a/x.go", "package a\n\nimport "+row.imports+"\n\n"+row.body+"\n")
			expect(t, row.want, tr.Purity(small))
			assert.Empty(t, fixture(t, "pkg/c/x.go",
				"package c\n\nimport "+row.imports+"\n\n"+row.body+"\n").Purity(small),
				"adapters need not be pure")
		})
	}
}

func TestGinFaults(t *testing.T) {
	src := "package x\n\nimport _ \"github.com/gin-gonic/gin\"\n"
	expect(t, "", fixture(t, "pkg/e/routes.go", src).Gin(small))
	expect(t, "gin is only for the routes.go", fixture(t, "pkg/e/server.go", src).Gin(small))
	expect(t, "gin is only for the routes.go", fixture(t, "pkg/c/routes.go", src).Gin(small))
}

func TestPromiseFaults(t *testing.T) {
	for _, row := range []struct{ name, src, want string }{
		{"good", "// Package a holds pieces.\n//\n// It never lies. Start at [Open].\npackage a\n\nfunc Open() {}\n",
			""},
		{"start at a method", "// Package a holds pieces.\n//\n// It never lies. Start at [Store.Get].\npackage a\n\n" +
			"type Store struct{}\n\nfunc (s *Store) Get() {}\n", ""},
		{"none", "package a\n", "has no package comment"},
		{"not its name", "// Holds pieces, never more. Start at [Open].\npackage a\n\nfunc Open() {}\n",
			`begin with "Package a "`},
		{"no rule", "// Package a holds pieces. Start at [Open].\npackage a\n\nfunc Open() {}\n", "promises nothing"},
		{"one sentence", "// Package a never holds pieces.\npackage a\n", "promises nothing"},
		{"no start", "// Package a holds pieces. It never lies.\npackage a\n\nfunc Open() {}\n", "where to start"},
		{"start at nothing", "// Package a holds pieces. It never lies. Start at [Close].\npackage a\n\nfunc Open() " +
			"{}\n", "[Close], which does not exist"},
	} {
		t.Run(row.name, func(t *testing.T) {
			faults := fixture(t, "pkg/a/x.go", row.src).Promises()
			if row.want == "" {
				assert.Empty(t, faults)
				return
			}
			assert.Contains(t, strings.Join(faults, "\n"), row.want)
		})
	}
	two := fixture(t, "pkg/a/x.go", "// Package a is one. Never two.\npackage a\n", "pkg/a/y.go",
		"// Package a is two. Never one.\npackage a\n")
	expect(t, "has 2 package comments", two.Promises())
}

func TestReferenceFaults(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"a package", "see `pkg/a`", ""},
		{"a package at a sentence's end", "It is in pkg/a.", ""},
		{"a pattern", "run `go test ./pkg/...`", ""},
		{"a missing package", "see `pkg/b`", "pkg/b is not in the tree"},
		{"a missing package in plain text", "It is in pkg/b.", "pkg/b is not in the tree"},
		{"a missing package in a block", "```\ngo test ./pkg/b\n```", "./pkg/b is not in the tree"},
		{"another's path", "see https://host.test/pkg/b and /usr/pkg/b", ""},
		{"a file", "see `x.go`", ""},
		{"a missing file", "see `y.go`", "no file of the tree is called y.go"},
		{"a function", "`a.Open`", ""},
		{"a call", "`a.Open()`", ""},
		{"a method", "`a.Store.Get`", ""},
		{"a field", "`a.Store.Size`", ""},
		{"a method of an interface", "`a.Getter.Get`", ""},
		{"a missing function", "`a.Close`", "a.Close is not in the code"},
		{"a missing method", "`a.Store.Put`", "a.Store.Put is not in the code"},
		{"a package nobody has", "`b.Open`", "b.Open is not in the code"},
		{"a package from elsewhere", "`fmt.Stringer`", ""},
		{"a type and its method", "`Store.Get → Getter.Get`", ""},
		{"a type and a method it lacks", "`Store.Get → Store.run`", "Store.run is not in the code"},
		{"a target", "`make test`", ""},
		{"a target among words", "`sudo make test`", ""},
		{"a missing target", "`make money`", "make money is no target"},
		{"a missing target in a block", "```\nmake money\n```", "make money is no target"},
		{"making in plain text", "We make money.", ""},
		{"a program", "`bin/x --help`", ""},
		{"a missing program", "`bin/y --help`", "bin/y is built from no package"},
		{"a link", "[other](other.md)", ""},
		{"a link to a heading", "[other](other.md#two-words-here)", ""},
		{"a link to a heading of its own", "# Own\n[o](#own)", ""},
		{"a link to a missing heading", "[other](other.md#three)", "leads to no heading"},
		{"a link to nowhere", "[other](nowhere.md)", "leads nowhere"},
		{"a link out", "[other](https://nowhere.test/x.md)", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t,
				"Makefile", "test: ## tests\n\tgo test\n",
				"cmd/x/main.go", "package main\n",
				"docs/other.md", "## Two words, here\n",
				"pkg/a/x.go", "package a\n\nimport \"fmt\"\n\nfunc Open() { fmt.Println() }\n\ntype Store struct{ "+
					"Size int }\n\nfunc (s *Store) Get() {}\n\ntype Getter interface{ Get() }\n",
				"docs/d.md", row.text)
			faults, err := tr.References()
			require.NoError(t, err)
			expect(t, row.want, faults)
		})
	}
}

func TestMappedFaults(t *testing.T) {
	tr := fixture(t, "docs/map.md", "`pkg/ab`", "pkg/a/x.go", "package a\n", "pkg/ab/x.go", "package ab\n",
		"test/t/x.go", "package t\n")
	faults, err := tr.Mapped("docs/map.md")
	require.NoError(t, err)
	expect(t, "does not name `pkg/a`", faults)
}

func TestLayeredFaults(t *testing.T) {
	const good = "| types | `pkg/a`; `pkg/b` |\n| adapters | `pkg/c` `pkg/d` |\n| assemblies | `pkg/e` |\n"
	for _, row := range []struct{ name, text, want string }{
		{"the same", "# Map\n\n" + good, ""},
		{"a package less", strings.Replace(good, " `pkg/d`", "", 1), "| adapters | `pkg/c` `pkg/d` |"},
		{"another order", strings.Replace(good, "`pkg/a`; `pkg/b`", "`pkg/b`; `pkg/a`", 1),
			"| types | `pkg/a`; `pkg/b` |"},
		{"a row less", strings.Replace(good, "| assemblies | `pkg/e` |\n", "", 1), "| assemblies | `pkg/e` |"},
	} {
		t.Run(row.name, func(t *testing.T) {
			faults, err := fixture(t, "docs/map.md", row.text).Layered("docs/map.md", small)
			require.NoError(t, err)
			expect(t, row.want, faults)
		})
	}
}

// expect requires exactly one fault with the text, or none if it is empty.
func expect(t *testing.T, want string, faults []string) {
	t.Helper()
	if want == "" {
		assert.Empty(t, faults)
		return
	}
	if assert.Len(t, faults, 1) {
		assert.Contains(t, faults[0], want)
	}
}
