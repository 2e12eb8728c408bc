// Package arch guards what a reader of the tree relies on: who imports whom, deciding code
// that is pure, mutexes under which nothing waits, package comments that promise something, and
// documents that speak of what is there.
//
// A check returns every fault it finds as a sentence that says what to do, and reads only the
// tree it is given, so that each is tested on a small tree of its own. Start at [Load] and
// [Table].
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tree is a module's source, parsed.
type Tree struct {
	// Module is the module's path, from go.mod.
	Module string
	// Packages by directory, relative to the module's root.
	Packages map[string]*Package
	// Files are all files and directories that docs may speak of.
	Files map[string]bool

	fsys fs.FS
	fset *token.FileSet
}

// Package is the source of one directory.
type Package struct {
	Dir, Name string
	// Files are those that are built, Tests those that go test adds; both by file name.
	Files, Tests map[string]*ast.File

	names map[string]bool // see symbols
}

// Load reads the tree of a module. Hidden directories (but .ci), testdata and what the build
// writes are left out. The error names the file that could not be read or parsed.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{Packages: map[string]*Package{}, Files: map[string]bool{}, fsys: fsys, fset: token.NewFileSet()}
	mod, err := fs.ReadFile(fsys, "go.mod")
	if err != nil {
		return nil, fmt.Errorf("reading the module's name: %w", err)
	}
	first, _, _ := strings.Cut(string(mod), "\n")
	t.Module = strings.TrimSpace(strings.TrimPrefix(first, "module"))

	err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(p)
		if d.IsDir() && p != "." {
			if (strings.HasPrefix(base, ".") && base != ".ci") || p == "bin" || p == "out" {
				return fs.SkipDir
			}
		}
		t.Files[p] = true
		if d.IsDir() && base == "testdata" {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(t.fset, p, src, parser.ParseComments)
		if err != nil {
			return err
		}
		t.add(p, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading the tree: %w", err)
	}
	return t, nil
}

func (t *Tree) add(p string, f *ast.File) {
	dir := path.Dir(p)
	pkg := t.Packages[dir]
	if pkg == nil {
		pkg = &Package{Dir: dir, Files: map[string]*ast.File{}, Tests: map[string]*ast.File{}}
		t.Packages[dir] = pkg
	}
	if strings.HasSuffix(p, "_test.go") {
		pkg.Tests[path.Base(p)] = f
		return
	}
	pkg.Name = f.Name.Name
	pkg.Files[path.Base(p)] = f
}

// built lists the packages that have more than tests, in order.
func (t *Tree) built() []*Package {
	var out []*Package
	for _, p := range t.Packages {
		if len(p.Files) > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *Package) int { return strings.Compare(a.Dir, b.Dir) })
	return out
}

// at says where a node is, as file:line.
func (t *Tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return p.Filename + ":" + strconv.Itoa(p.Line)
}

// imports calls f with each import of a file.
func imports(f *ast.File, visit func(spec *ast.ImportSpec, importPath string)) {
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			visit(spec, p)
		}
	}
}

// sorted returns the names of a package's files in order, so that faults come in order.
func sorted(files map[string]*ast.File) []string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
