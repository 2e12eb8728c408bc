package arch

import (
	"fmt"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	mdLink   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	mdCode   = regexp.MustCompile("`([^`\n]+)`")
	mdFence  = regexp.MustCompile("(?m)^ *```")
	treePath = regexp.MustCompile(`(^|[^A-Za-z0-9_./:-])((?:\./)?(?:pkg|cmd|docs|test|deploy|\.ci)/[A-Za-z0-9_./-]*)`)
	rootFile = regexp.MustCompile(`^[A-Za-z0-9_-]+\.(?:go|md|sh|yaml|yml|toml|mod|sum|json)$`)
	makeRule = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):`)
	makeCall = regexp.MustCompile(`(?:^|[\s(;&])make +([a-z][a-z0-9-]*)`)
	program  = regexp.MustCompile(`(^|[^A-Za-z0-9_./-])bin/([a-z0-9-]+)`)
	// symbol is pkg.Name, pkg.Type.Member or Type.Member.
	symbol = regexp.MustCompile(
		`^\*?([A-Za-z][A-Za-z0-9]*)\.([A-Za-z][A-Za-z0-9_]*)(?:\.([A-Za-z][A-Za-z0-9_]*))?(?:\(\))?$`)
)

// Documents lists the Markdown files in the module's root and under docs/.
func (t *Tree) Documents() []string {
	var out []string
	for f := range t.Files {
		if strings.HasSuffix(f, ".md") && (!strings.Contains(f, "/") || strings.HasPrefix(f, "docs/")) {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return out
}

// References finds things that documents mention and the tree lacks: files and packages, links and their headings,
// names in the code, make targets, programs.
func (t *Tree) References() (faults []string, err error) {
	targets := map[string]bool{}
	if b, err := fs.ReadFile(t.fsys, "Makefile"); err == nil {
		for _, m := range makeRule.FindAllStringSubmatch(string(b), -1) {
			targets[m[1]] = true
		}
	}
	for _, doc := range t.Documents() {
		b, err := fs.ReadFile(t.fsys, doc)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", doc, err)
		}
		fenced := false
		for i, line := range strings.Split(string(b), "\n") {
			if mdFence.MatchString(line) {
				fenced = !fenced
				continue
			}
			for _, what := range t.line(doc, line, fenced, targets) {
				faults = append(faults, fmt.Sprintf("%s:%d: %s", doc, i+1, what))
			}
		}
	}
	return faults, nil
}

// line finds the faults of one line of a document.
func (t *Tree) line(doc, line string, fenced bool, targets map[string]bool) (faults []string) {
	for _, m := range treePath.FindAllStringSubmatch(line, -1) {
		p := strings.TrimRight(m[2], "./-") // a sentence's full stop, "/..."
		if !t.Files[strings.TrimPrefix(p, "./")] {
			faults = append(faults, fmt.Sprintf("%s is not in the tree: correct the path or delete the sentence", p))
		}
	}
	for _, m := range program.FindAllStringSubmatch(line, -1) {
		if !t.Files["cmd/"+m[2]] {
			faults = append(faults, fmt.Sprintf("bin/%s is built from no package of cmd/: name an existing program",
				m[2]))
		}
	}
	codes := mdCode.FindAllStringSubmatch(line, -1)
	if fenced {
		codes = [][]string{{line, line}}
	} else {
		for _, m := range mdLink.FindAllStringSubmatch(mdCode.ReplaceAllString(line, ""), -1) {
			if what := t.link(doc, m[1]); what != "" {
				faults = append(faults, what)
			}
		}
	}
	for _, c := range codes {
		for _, m := range makeCall.FindAllStringSubmatch(c[1], -1) {
			if !targets[m[1]] {
				faults = append(faults,
					fmt.Sprintf("make %s is no target of the Makefile: name one of the list that make prints", m[1]))
			}
		}
		if fenced {
			continue
		}
		for word := range strings.FieldsSeq(c[1]) {
			word = strings.Trim(word, ",;:()→")
			if rootFile.MatchString(word) {
				if !t.named(word) {
					faults = append(faults,
						fmt.Sprintf("no file of the tree is called %s: correct the name or delete the sentence", word))
				}
				continue
			}
			if what := t.symbol(word); what != "" {
				faults = append(faults, what)
			}
		}
	}
	return faults
}

// named reports whether a file of the tree has that name.
func (t *Tree) named(base string) bool {
	for f := range t.Files {
		if path.Base(f) == base {
			return true
		}
	}
	return false
}

// link returns the fault of a link's target, or "".
func (t *Tree) link(doc, target string) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	file, heading, _ := strings.Cut(target, "#")
	file = path.Join(path.Dir(doc), file)
	if strings.HasPrefix(target, "#") {
		file = doc
	}
	if !t.Files[file] {
		return fmt.Sprintf("the link to %s leads nowhere: correct it", target)
	}
	if heading == "" {
		return ""
	}
	b, err := fs.ReadFile(t.fsys, file)
	if err != nil {
		return fmt.Sprintf("the target of the link to %s cannot be read: %v", target, err)
	}
	for l := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(l, "#") && anchor(strings.TrimLeft(l, "# ")) == heading {
			return ""
		}
	}
	return fmt.Sprintf("the link to %s leads to no heading of %s: correct it", target, file)
}

// anchor returns the name of a heading in a link.
func anchor(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r > 127:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// symbol returns the fault of a word that looks like a name in the code, or "". It does not look up names of packages
// from other modules.
func (t *Tree) symbol(word string) string {
	m := symbol.FindStringSubmatch(word)
	if m == nil {
		return ""
	}
	upper := func(s string) bool { return s[0] >= 'A' && s[0] <= 'Z' }
	if upper(m[1]) {
		// Type.Member of any package. A type that no package has is another text: "HTTP.1".
		if m[3] != "" {
			return ""
		}
		typed := false
		for _, p := range t.Packages {
			s := p.symbols()
			typed = typed || s[m[1]]
			if s[m[1]+"."+m[2]] {
				return ""
			}
		}
		if typed || upper(m[2]) {
			return fmt.Sprintf("%s is not in the code: correct the name or delete the sentence", word)
		}
		return ""
	}
	if !upper(m[2]) {
		return ""
	}
	want := m[2]
	if m[3] != "" {
		want += "." + m[3]
	}
	ours := false
	for _, p := range t.Packages {
		if p.Name == m[1] {
			ours = true
			if p.symbols()[want] {
				return ""
			}
		}
	}
	if !ours && t.imported(m[1]) {
		return ""
	}
	return fmt.Sprintf("%s is not in the code: correct the name or delete the sentence", word)
}

// imported reports whether a package of that name comes from another module.
func (t *Tree) imported(name string) bool {
	for _, pkg := range t.Packages {
		for _, files := range []map[string]*ast.File{pkg.Files, pkg.Tests} {
			for _, f := range files {
				found := false
				imports(f, func(_ *ast.ImportSpec, p string) {
					found = found || localName(p) == name && !strings.HasPrefix(p, t.Module)
				})
				if found {
					return true
				}
			}
		}
	}
	return false
}

// Mapped finds packages of pkg/ and cmd/ that a document does not name.
func (t *Tree) Mapped(doc string) (faults []string, err error) {
	b, err := fs.ReadFile(t.fsys, doc)
	if err != nil {
		return nil, fmt.Errorf("reading the map of the tree: %w", err)
	}
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) {
			continue
		}
		if !regexp.MustCompile("`" + regexp.QuoteMeta(pkg.Dir) + "`").Match(b) {
			faults = append(faults, fmt.Sprintf("%s does not name `%s`: describe the package there", doc, pkg.Dir))
		}
	}
	return faults, nil
}

// Layered finds rows of the import table that a document does not show exactly: a table row with the layer's name and
// its packages, each in backquotes.
func (t *Tree) Layered(doc string, table []Layer) (faults []string, err error) {
	b, err := fs.ReadFile(t.fsys, doc)
	if err != nil {
		return nil, fmt.Errorf("reading the import table of %s: %w", doc, err)
	}
	for _, l := range table {
		var groups []string
		for group := range strings.SplitSeq(l.Packages, ";") {
			var names []string
			for name := range strings.FieldsSeq(group) {
				names = append(names, "`"+name+"`")
			}
			groups = append(groups, strings.Join(names, " "))
		}
		row := "| " + l.Name + " | " + strings.Join(groups, "; ") + " |"
		if !strings.Contains("\n"+string(b), "\n"+row+"\n") {
			faults = append(faults, fmt.Sprintf("%s lacks this row of arch.Table, or has another version of it:\n%s",
				doc, row))
		}
	}
	return faults, nil
}
