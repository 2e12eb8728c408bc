package arch

import (
	"fmt"
	"go/ast"
	"regexp"
	"strings"
)

var (
	// rule matches the words that make a sentence a promise.
	rule = regexp.MustCompile(`(?i)\b(never|always|only|nothing|nobody|no|not|none|every|each|exactly|at most|at least|must|same|all|once|alone|whatever|as long as|as soon as)\b`)
	// start matches the sentence with the place to start reading.
	start = regexp.MustCompile(`(?is)\bstart\b[^.]*?\[\*?([A-Za-z][A-Za-z0-9_.]*)\]`)
)

// Promises finds package comments that are missing, duplicate, promise nothing, or do not say where to start reading.
func (t *Tree) Promises() (faults []string) {
	for _, pkg := range t.built() {
		var docs []string
		var files []string
		for _, name := range sorted(pkg.Files) {
			if d := pkg.Files[name].Doc; d != nil {
				docs = append(docs, d.Text())
				files = append(files, pkg.Dir+"/"+name)
			}
		}
		if len(docs) == 0 {
			faults = append(faults, fmt.Sprintf(
				"%s has no package comment: write its purpose, one rule that it never breaks, and where to start",
				pkg.Dir))
			continue
		}
		if len(docs) > 1 {
			faults = append(faults, fmt.Sprintf("%s has %d package comments (%s): keep one", pkg.Dir, len(docs),
				strings.Join(files, ", ")))
			continue
		}
		doc := docs[0]
		if pkg.Name != "main" && !strings.HasPrefix(doc, "Package "+pkg.Name+" ") {
			faults = append(faults, fmt.Sprintf("%s: let the package comment begin with %q", files[0],
				"Package "+pkg.Name+" "))
		}
		_, rest, _ := strings.Cut(doc, ".")
		if !rule.MatchString(doc) || strings.TrimSpace(rest) == "" {
			faults = append(faults, fmt.Sprintf(
				"%s: the package comment of %s promises nothing: add one rule that the package never breaks",
				files[0], pkg.Dir))
		}
		if pkg.Name == "main" || isTest(pkg.Dir) && !exports(pkg) {
			continue
		}
		m := start.FindStringSubmatch(doc)
		if m == nil {
			faults = append(faults, fmt.Sprintf("%s: the package comment of %s does not say where to start reading: "+
				"end it with \"Start at [Name].\"", files[0], pkg.Dir))
			continue
		}
		if ast.IsExported(m[1]) && !pkg.symbols()[m[1]] {
			faults = append(faults, fmt.Sprintf(
				"%s: the package comment of %s starts at [%s], which does not exist: correct the name", files[0],
				pkg.Dir, m[1]))
		}
	}
	return faults
}

// exports reports whether a package has an exported name.
func exports(pkg *Package) bool {
	for s := range pkg.symbols() {
		if ast.IsExported(s) {
			return true
		}
	}
	return false
}

// symbols returns the package's names: "Name" for declarations, "Type.Member" for methods and fields.
func (p *Package) symbols() map[string]bool {
	if p.names != nil {
		return p.names
	}
	out := map[string]bool{}
	p.names = out
	for _, f := range p.Files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					out[d.Name.Name] = true
				} else if r := receiver(d.Recv.List[0].Type); r != "" {
					out[r+"."+d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.ValueSpec:
						for _, n := range s.Names {
							out[n.Name] = true
						}
					case *ast.TypeSpec:
						out[s.Name.Name] = true
						members(out, s)
					}
				}
			}
		}
	}
	return out
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// members adds the named fields of a struct or the methods of an interface.
func members(out map[string]bool, s *ast.TypeSpec) {
	var list *ast.FieldList
	switch t := s.Type.(type) {
	case *ast.StructType:
		list = t.Fields
	case *ast.InterfaceType:
		list = t.Methods
	default:
		return
	}
	for _, f := range list.List {
		for _, n := range f.Names {
			out[s.Name.Name+"."+n.Name] = true
		}
	}
}
