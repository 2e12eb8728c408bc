package arch

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/token"
	"go/types"
	"io"
	"path"
	"slices"
	"strings"
)

const (
	forPeople = "people and their scripts read it in the JSON of an operator's API"
	forLater  = "a later version tells by it how to read the rest"
)

// Unpaired are the fields of pkg/api that have no writer or no reader in this module, and the
// reason. [Tree.Fields] also finds an entry that is no longer needed.
var Unpaired = map[string]string{
	"Assignment.Task":       "answers stand in the order of the entries; people and tests see by it that they do",
	"HostStatus.Seen":       forPeople,
	"HostStatus.Tasks":      forPeople,
	"Neighbour.Reason":      "people who look at the wire read it, and the tests of choosing neighbours",
	"PurgeProgress.Version": forLater,
	"PurgeResult.Task":      forPeople,
	"Status.Clock":          forPeople,
	"Status.Standbys":       forPeople,
	"TaskStatus.Have":       forPeople,
	"TaskStatus.LastRead":   forPeople,
	"TaskStatus.Length":     forPeople,
	"TaskStatus.Pieces":     forPeople,
}

// Fields finds fields of the structs of a package that nothing outside of tests writes, or nothing reads: a
// field that has only one side is dead protocol. Encoding and decoding JSON is neither. Writers are
// assignments, literals, conversions and addresses; an assignment that only extends a field does not read it.
func (t *Tree) Fields(dir string, imports types.Importer, unpaired map[string]string) (faults []string, err error) {
	if t.Packages[dir] == nil {
		return nil, fmt.Errorf("package %s, whose fields are checked, is not there", dir)
	}
	f := &fields{path: t.Module + "/" + dir, names: map[types.Object]string{}, at: map[string]token.Pos{},
		written: map[string]bool{}, read: map[string]bool{}}
	here := build.Default // reads files of this system only, from the tree
	here.BuildTags, here.JoinPath = []string{"nomsgpack"}, path.Join
	here.OpenFile = func(name string) (io.ReadCloser, error) { return t.fsys.Open(name) }
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) || pkg.Dir != dir && !pkg.imports(f.path) {
			continue
		}
		var files []*ast.File
		for _, name := range sorted(pkg.Files) {
			if ok, err := here.MatchFile(pkg.Dir, name); err != nil {
				return nil, fmt.Errorf("reading the build constraints of %s: %w", name, err)
			} else if ok {
				files = append(files, pkg.Files[name])
			}
		}
		f.info = &types.Info{Uses: map[*ast.Ident]types.Object{}, Selections: map[*ast.SelectorExpr]*types.Selection{},
			Types: map[ast.Expr]types.TypeAndValue{}}
		conf := types.Config{Importer: imports}
		checked, err := conf.Check(t.Module+"/"+pkg.Dir, t.fset, files, f.info)
		if err != nil {
			return nil, fmt.Errorf("checking the types of %s: %w", pkg.Dir, err)
		}
		if pkg.Dir == dir {
			f.declare(checked, true)
		}
		for _, p := range checked.Imports() {
			if p.Path() == f.path {
				f.declare(p, false)
			}
		}
		for _, file := range files {
			f.file(file)
		}
	}
	for name, pos := range f.at {
		var lacks []string
		if !f.written[name] {
			lacks = append(lacks, "writes")
		}
		if !f.read[name] {
			lacks = append(lacks, "reads")
		}
		reason := unpaired[name]
		switch {
		case len(lacks) > 0 && reason == "":
			faults = append(faults, fmt.Sprintf("%s: nothing %s %s: remove it, or give the reason in arch.Unpaired",
				t.fset.Position(pos), strings.Join(lacks, " or "), name))
		case len(lacks) == 0 && reason != "":
			faults = append(faults, fmt.Sprintf("%s: %s has a writer and a reader: take it out of arch.Unpaired",
				t.fset.Position(pos), name))
		}
	}
	for name := range unpaired {
		if f.at[name] == token.NoPos {
			faults = append(faults, name+" is in arch.Unpaired and not in the code: take it out")
		}
	}
	slices.Sort(faults)
	return faults, nil
}

// imports reports whether a file of the package imports a path.
func (p *Package) imports(path string) (found bool) {
	for _, file := range p.Files {
		imports(file, func(_ *ast.ImportSpec, p string) { found = found || p == path })
	}
	return found
}

// fields is the check of one package's fields, by "Type.Field".
type fields struct {
	path          string
	info          *types.Info // of the package that uses them
	names         map[types.Object]string
	at            map[string]token.Pos
	written, read map[string]bool
}

// declare takes in the fields of all structs of the package; own says that it was read from source.
func (f *fields) declare(pkg *types.Package, own bool) {
	for _, name := range pkg.Scope().Names() {
		s := structOf(pkg.Scope().Lookup(name))
		if s == nil {
			continue
		}
		for i := range s.NumFields() {
			full := name + "." + s.Field(i).Name()
			f.names[s.Field(i)] = full
			if own {
				f.at[full] = s.Field(i).Pos()
			}
		}
	}
}

func structOf(o types.Object) *types.Struct {
	if _, ok := o.(*types.TypeName); !ok {
		return nil
	}
	s, _ := o.Type().Underlying().(*types.Struct)
	return s
}

// file notes what a file reads and writes.
func (f *fields) file(file *ast.File) {
	targets := map[*ast.Ident]bool{} // that are written and not read
	ignored := map[*ast.Ident]bool{} // that an assignment to the same field reads
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				field := f.target(left, targets)
				if field == "" || len(n.Rhs) != len(n.Lhs) {
					continue
				}
				ast.Inspect(n.Rhs[i], func(n ast.Node) bool {
					if id, ok := n.(*ast.Ident); ok && f.names[f.info.Uses[id]] == field {
						ignored[id] = true
					}
					return true
				})
			}
		case *ast.IncDecStmt:
			f.target(n.X, targets)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				if sel, ok := ast.Unparen(n.X).(*ast.SelectorExpr); ok {
					f.written[f.names[f.info.Uses[sel.Sel]]] = true
				}
			}
		case *ast.CompositeLit:
			f.literal(n, targets)
		case *ast.CallExpr:
			if tv := f.info.Types[n.Fun]; tv.IsType() {
				f.whole(tv.Type, f.written)
				f.whole(f.info.Types[n.Args[0]].Type, f.read)
			}
		case *ast.SelectorExpr:
			f.promoted(n)
		}
		return true
	})
	ast.Inspect(file, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if !ok || ignored[id] {
			return true
		}
		if name := f.names[f.info.Uses[id]]; name != "" && targets[id] {
			f.written[name] = true
		} else if name != "" {
			f.read[name] = true
		}
		return true
	})
}

// target notes the fields along the way to what an assignment writes, and returns the last one.
func (f *fields) target(e ast.Expr, targets map[*ast.Ident]bool) (field string) {
	for {
		switch x := e.(type) {
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			targets[x.Sel] = true
			if name := f.names[f.info.Uses[x.Sel]]; field == "" {
				field = name
			}
			e = x.X
		default:
			return field
		}
	}
}

// literal notes the fields that a literal sets.
func (f *fields) literal(lit *ast.CompositeLit, targets map[*ast.Ident]bool) {
	for _, element := range lit.Elts {
		pair, ok := element.(*ast.KeyValueExpr)
		if !ok {
			f.whole(f.info.Types[lit].Type, f.written)
			return
		}
		if id, ok := pair.Key.(*ast.Ident); ok {
			targets[id] = true
		}
	}
}

// whole notes all fields of a struct.
func (f *fields) whole(t types.Type, into map[string]bool) {
	if t == nil {
		return
	}
	if s, ok := t.Underlying().(*types.Struct); ok {
		for i := range s.NumFields() {
			into[f.names[s.Field(i)]] = true
		}
	}
}

// promoted notes the embedded fields that a selector passes through.
func (f *fields) promoted(sel *ast.SelectorExpr) {
	s := f.info.Selections[sel]
	if s == nil || len(s.Index()) < 2 {
		return
	}
	t := s.Recv()
	for _, i := range s.Index()[:len(s.Index())-1] {
		if p, ok := t.Underlying().(*types.Pointer); ok {
			t = p.Elem()
		}
		st, ok := t.Underlying().(*types.Struct)
		if !ok {
			return
		}
		f.read[f.names[st.Field(i)]] = true
		t = st.Field(i).Type()
	}
}
