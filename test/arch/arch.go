// Package arch checks the rules of the tree that a reader relies on: the direction of imports, pure policy code,
// mutexes under which no call waits, goroutines that end, API fields with a writer and a reader, package comments with
// a promise, types in the glossary, and documents that name only existing things.
//
// A check returns every fault as a sentence that says what to do. It reads only the given tree, so that tests can run
// it on small trees. Start at [Load] and [Table].
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

// Tree is the parsed source of a module.
type Tree struct {
	// Module is the module's path, from go.mod.
	Module string
	// Packages by directory, relative to the module's root.
	Packages map[string]*Package
	// Files are all files and directories that documents may name.
	Files map[string]bool

	fsys fs.FS
	fset *token.FileSet
}

// Package is the source of one directory.
type Package struct {
	Dir, Name string
	// Files are the built files, Tests the files that go test adds; both by name.
	Files, Tests map[string]*ast.File

	names map[string]bool // see symbols
}

// Load reads the tree of a module. It skips hidden directories (except .ci), testdata and the output of the build. The
// error names the file that cannot be read or parsed.
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

// built lists the packages with more than tests, sorted.
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

// at returns the position of a node as file:line.
func (t *Tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return p.Filename + ":" + strconv.Itoa(p.Line)
}

// imports calls visit with each import of a file.
func imports(f *ast.File, visit func(spec *ast.ImportSpec, importPath string)) {
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			visit(spec, p)
		}
	}
}

// sorted returns the names of a package's files, sorted, so that faults are in order.
func sorted(files map[string]*ast.File) []string {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
