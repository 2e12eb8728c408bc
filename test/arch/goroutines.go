package arch

import (
	"fmt"
	"go/ast"
)

// Waited are the functions outside of a type with Run or Close that may start a goroutine, with the reason: each
// waits for it by another way.
var Waited = map[string]string{
	"pkg/cli.Program.reload": "the function that it returns ends the goroutine and waits for it",
	"pkg/daemon.files.openTransfer": "it deletes what a failed open left; the client of the failure does not wait for " +
		"a disk",
	"pkg/dfget.newOwnDaemon": "ownDaemon.close waits for it, after the last download",
	"pkg/doctor.Examine":     "a disk that hangs must not keep a person waiting: the program ends without it",
}

// Goroutines finds go statements outside of the methods of a type with Run or Close, which waits for what it starts.
// waited names the exceptions, by package and function; one that is of no use any more is a fault, too.
func (t *Tree) Goroutines(waited map[string]string) (faults []string) {
	used := map[string]bool{}
	for _, pkg := range t.built() {
		if isTest(pkg.Dir) {
			continue
		}
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
				symbols := pkg.symbols()
				if owner != "" && (symbols[owner+".Run"] || symbols[owner+".Close"]) {
					continue
				}
				ast.Inspect(d, func(n ast.Node) bool {
					if _, starts := n.(*ast.GoStmt); !starts {
						return true
					}
					if used[key] = true; waited[key] == "" {
						faults = append(faults, fmt.Sprintf(
							"%s: %s starts a goroutine and its type has no Run or Close: let a type with one of them "+
								"start and await it, or use sync.WaitGroup.Go", t.at(n), key))
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
