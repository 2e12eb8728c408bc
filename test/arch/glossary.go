package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// HotPath are the packages of the hot path of a pull (docs/life-of-a-pull.md), in its order. A reader of the path meets
// their exported types, so the glossary explains each of them.
var HotPath = []string{
	"pkg/registryproxy", "pkg/access", "pkg/task", "pkg/peer", "pkg/peer/policy", "pkg/owners", "pkg/announce", "pkg/api",
	"pkg/coordinator", "pkg/scheduler", "pkg/peer/picker", "pkg/peer/wire", "pkg/peer/upload", "pkg/piece",
	"pkg/piece/diskstore",
}

// hotPathStep matches one step of the hot path's line in a document: a type and its method.
var hotPathStep = regexp.MustCompile(`\b([A-Z][A-Za-z]*)\.[A-Za-z]+\b`)

// plain matches the exported types whose name says what they are: settings, errors and counters.
var plain = regexp.MustCompile(`(Config|Error|Stats)$`)

// Glossary finds exported types of the hot path's packages that a document does not name as `package.Type`. It leaves
// out settings, errors and counters.
func (t *Tree) Glossary(doc string, dirs []string) (faults []string, err error) {
	b, err := fs.ReadFile(t.fsys, doc)
	if err != nil {
		return nil, fmt.Errorf("reading the glossary: %w", err)
	}
	for _, dir := range dirs {
		pkg := t.Packages[dir]
		if pkg == nil || len(pkg.Files) == 0 {
			faults = append(faults, fmt.Sprintf("%s is in arch.HotPath, but not in the tree: correct the list", dir))
			continue
		}
		for _, name := range pkg.types() {
			word := pkg.Name + "." + name
			if !ast.IsExported(name) || plain.MatchString(name) || strings.Contains(string(b), "`"+word+"`") {
				continue
			}
			faults = append(faults, fmt.Sprintf("%s does not name `%s` of %s: add a row that says what it is",
				doc, word, dir))
		}
	}
	return faults, nil
}

// HotPathTypes finds types in the hot path's line, the first fenced block of a document, that no package of the hot
// path has.
func (t *Tree) HotPathTypes(doc string, dirs []string) (faults []string, err error) {
	b, err := fs.ReadFile(t.fsys, doc)
	if err != nil {
		return nil, fmt.Errorf("reading the hot path: %w", err)
	}
	_, rest, _ := strings.Cut(string(b), "\n```\n")
	line, _, found := strings.Cut(rest, "\n```\n")
	if !found {
		return []string{doc + " has no fenced block with the hot path: add it"}, nil
	}
	known := map[string]bool{}
	for _, dir := range dirs {
		if pkg := t.Packages[dir]; pkg != nil {
			for _, name := range pkg.types() {
				known[name] = true
			}
		}
	}
	for _, step := range hotPathStep.FindAllStringSubmatch(line, -1) {
		if !known[step[1]] {
			faults = append(faults,
				fmt.Sprintf("%s: no package of arch.HotPath has the type of %s: add its package", doc, step[0]))
		}
	}
	return faults, nil
}

// types lists the types that a package declares, sorted.
func (p *Package) types() (names []string) {
	for _, f := range p.Files {
		for _, d := range f.Decls {
			if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.TYPE {
				for _, s := range d.Specs {
					names = append(names, s.(*ast.TypeSpec).Name.Name)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}
