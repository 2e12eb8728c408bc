package arch

import (
	"fmt"
	"go/ast"
)

// Waited are the functions that may start a goroutine or a timer although their type has no Run or Close, or although
// nothing in their package waits for it, with the reason.
var Waited = map[string]string{
	"pkg/cli.Main":                       "the timer ends the program at a second signal; nothing waits for it",
	"pkg/cli.Program.build":              "a start that hangs must not keep the process: it ends without it",
	"pkg/cli.Program.reload":             "the function that it returns ends the goroutine and waits for it",
	"pkg/dfget.newOwnDaemon":             "ownDaemon.close waits for it, after the last download",
	"pkg/doctor.Examine":                 "a disk that hangs must not keep a person waiting: the program ends without it",
	"pkg/piece/diskstore.openTask.write": "the timer only adds the task to the queue, which a closed store refuses",
	"cmd/dfget.run":                      "the timer ends the program at a second signal; nothing waits for it",
}

// Goroutines finds goroutines and timers that nothing awaits: a go statement outside of the methods of a type with Run
// or Close; a call of Go (sync.WaitGroup, errgroup.Group) on a group for which the package never calls Wait; and a
// timer of AfterFunc that the caller drops, so that nothing can stop it. waited names the exceptions, by package and
// function; one that is of no use any more is a fault, too.
func (t *Tree) Goroutines(waited map[string]string) (faults []string) {
	used := map[string]bool{}
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) {
			continue
		}
		symbols, awaited := pkg.symbols(), pkg.awaited()
		for _, name := range sorted(pkg.Files) {
			for _, d := range pkg.Files[name].Decls {
				owner, key := "", pkg.Dir
				if f, ok := d.(*ast.FuncDecl); ok {
					if f.Recv != nil {
						owner = receiver(f.Recv.List[0].Type)
						key += "." + owner
					}
					key += "." + f.Name.Name
				}
				ends := owner != "" && (symbols[owner+".Run"] || symbols[owner+".Close"])
				ast.Inspect(d, func(n ast.Node) bool {
					what := starts(n, ends, awaited)
					if what == "" {
						return true
					}
					if used[key] = true; waited[key] == "" {
						faults = append(faults, fmt.Sprintf("%s: %s starts %s", t.at(n), key, what))
					}
					return true
				})
			}
		}
	}
	for key := range waited {
		if !used[key] {
			faults = append(faults, key+" is in arch.Waited and starts no goroutine: take it out")
		}
	}
	return faults
}

// starts describes the goroutine or timer that a node starts and nothing awaits; it is empty for other nodes. ends says
// that the node is in a method of a type with Run or Close, awaited for which groups the package calls Wait.
func starts(n ast.Node, ends bool, awaited map[string]bool) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		if !ends {
			return "a goroutine and its type has no Run or Close: let a type with one of them start and await it, " +
				"or use sync.WaitGroup.Go"
		}
	case *ast.CallExpr:
		f, ok := n.Fun.(*ast.SelectorExpr)
		if ok && f.Sel.Name == "Go" && len(n.Args) == 1 && !awaited[lastName(f.X)] {
			return fmt.Sprintf("a goroutine in the group %s, and the package never calls %[1]s.Wait: call it",
				lastName(f.X))
		}
	case *ast.ExprStmt:
		call, ok := n.X.(*ast.CallExpr)
		if !ok {
			return ""
		}
		if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "AfterFunc" {
			return "a timer that nothing can stop: keep the result of AfterFunc and stop the timer"
		}
	}
	return ""
}

// awaited are the last names of all expressions on which the package calls Wait: wg for d.wg.Wait().
func (p *Package) awaited() map[string]bool {
	names := map[string]bool{}
	for _, f := range p.Files {
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Wait" && len(call.Args) == 0 {
					names[lastName(f.X)] = true
				}
			}
			return true
		})
	}
	return names
}

// lastName is the last name of a chain of selectors.
func lastName(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	}
	return ""
}
