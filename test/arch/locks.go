package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
)

// Guarded are the packages whose mutexes [Tree.Locks] checks: every pull of a node depends on them.
var Guarded = []string{"pkg/ratelimit", "pkg/piece/memstore", "pkg/announce", "pkg/peer/upload", "pkg/peer",
	"pkg/coordinator"}

// waiting are mutexes under which calls may wait on purpose, with the reason why they do not lead back.
var waiting = map[string]string{
	"pkg/peer making": "one goroutine has the store make a replica; no reader of the proof needs it",
}

// outside are packages whose functions may wait or call back.
var outside = []string{"os", "os/exec", "net", "net/http", "io", "log/slog", "syscall"}

// quiet are methods of interfaces, and functions of outside packages, that neither wait nor call back.
var quiet = map[string]bool{
	"error.Error": true, "context.Context.Done": true, "context.Context.Err": true, "net.SplitHostPort": true,
	"hash.Hash.Sum": true,
}

// Locks finds calls under a mutex that may wait or lead back: calls that take the same mutex, and calls of interfaces,
// function values, logs, connections, files and channels. It follows calls within a package in source order. A function
// literal counts at its call; one that is passed on counts as called later, without the mutex.
func (t *Tree) Locks(dirs []string, imports types.Importer) (faults []string, err error) {
	for _, dir := range dirs {
		pkg := t.Packages[dir]
		if pkg == nil {
			return nil, fmt.Errorf("package %s of arch.Guarded is not in the tree", dir)
		}
		l := &locks{tree: t, info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{},
			Selections: map[*ast.SelectorExpr]*types.Selection{}, Types: map[ast.Expr]types.TypeAndValue{}},
			funcs: map[*types.Func]*behaviour{}}
		var files []*ast.File
		for _, name := range sorted(pkg.Files) {
			files = append(files, pkg.Files[name])
		}
		conf := types.Config{Importer: imports}
		if l.pkg, err = conf.Check(t.Module+"/"+dir, t.fset, files, l.info); err != nil {
			return nil, fmt.Errorf("checking the types of %s: %w", dir, err)
		}
		faults = append(faults, l.check(files)...)
	}
	slices.Sort(faults)
	return slices.Compact(faults), nil
}

// locks is the check of one package.
type locks struct {
	tree  *Tree
	pkg   *types.Package
	info  *types.Info
	funcs map[*types.Func]*behaviour
	// report records a fault; it is nil until all functions are known.
	report func(string)
}

// behaviour holds the effects of a function for its caller: the mutexes that it takes, and an operation that may wait
// or lead back, or "".
type behaviour struct {
	body  *ast.BlockStmt
	takes map[*types.Var]bool
	waits string
}

// held is the set of mutexes held at a statement.
type held map[*types.Var]bool

func (l *locks) check(files []*ast.File) (faults []string) {
	for _, f := range files {
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Body != nil {
				l.funcs[l.info.Defs[fn.Name].(*types.Func)] = &behaviour{body: fn.Body, takes: map[*types.Var]bool{}}
			}
		}
	}
	for changed := true; changed; {
		changed = false
		for _, b := range l.funcs {
			before, waited := len(b.takes), b.waits
			l.walk(b.body, held{}, b)
			changed = changed || len(b.takes) != before || (b.waits == "") != (waited == "")
		}
	}
	l.report = func(fault string) { faults = append(faults, fault) }
	for _, b := range l.funcs {
		l.walk(b.body, held{}, nil)
		// A function literal that is called later starts without a mutex.
		ast.Inspect(b.body, func(n ast.Node) bool {
			if lit, ok := n.(*ast.FuncLit); ok {
				l.walk(lit.Body, held{}, nil)
			}
			return true
		})
	}
	return faults
}

// walk follows statements in order and returns the mutexes held after them. It records their effects in b, or, if b is
// nil, reports their effects under a mutex.
func (l *locks) walk(n ast.Node, h held, b *behaviour) held {
	switch s := n.(type) {
	case nil:
	case *ast.BlockStmt:
		if s == nil {
			return h
		}
		for _, stmt := range s.List {
			h = l.walk(stmt, h, b)
		}
	case *ast.IfStmt:
		h = l.walkAll(h, b, s.Init, s.Cond)
		return l.branches(h, b, s.Else == nil, s.Body, s.Else)
	case *ast.ForStmt:
		h = l.walkAll(h, b, s.Init, s.Cond)
		return l.branches(h, b, true, s.Body)
	case *ast.RangeStmt:
		h = l.walkAll(h, b, s.X)
		return l.branches(h, b, true, s.Body)
	case *ast.SwitchStmt:
		h = l.walkAll(h, b, s.Init, s.Tag)
		return l.clauses(h, b, s.Body)
	case *ast.TypeSwitchStmt:
		return l.clauses(h, b, s.Body)
	case *ast.SelectStmt:
		ready := slices.ContainsFunc(s.Body.List, func(c ast.Stmt) bool { return c.(*ast.CommClause).Comm == nil })
		if !ready {
			l.does(s, h, b, "waits in a select")
		}
		return l.clauses(h, b, s.Body)
	case *ast.LabeledStmt:
		return l.walk(s.Stmt, h, b)
	case *ast.DeferStmt:
		if mutex, _ := l.mutex(s.Call); mutex != nil {
			return h // held to the end
		}
		if lit, ok := s.Call.Fun.(*ast.FuncLit); ok {
			return l.walk(lit.Body, h, b)
		}
		l.expr(s.Call, h, b)
	case *ast.GoStmt:
		return l.walkAll(h, b, exprs(s.Call.Args)...)
	case *ast.SendStmt:
		l.does(s, h, b, "sends to a channel")
	case *ast.ExprStmt:
		if mutex, takes := l.mutexOf(s.X); mutex != nil {
			h = maps.Clone(h)
			if !takes {
				delete(h, mutex)
				return h
			}
			if b != nil {
				b.takes[mutex] = true
			}
			if h[mutex] {
				l.does(s, h, b, "takes "+mutex.Name()+" again")
			}
			h[mutex] = true
			return h
		}
		l.expr(s.X, h, b)
	default:
		l.expr(n, h, b)
	}
	return h
}

func exprs(list []ast.Expr) (out []ast.Node) {
	for _, e := range list {
		out = append(out, e)
	}
	return out
}

func (l *locks) walkAll(h held, b *behaviour, nodes ...ast.Node) held {
	for _, n := range nodes {
		if n != nil {
			h = l.walk(n, h, b)
		}
	}
	return h
}

// branches returns the mutexes that may be held after one of several branches: those of all branches that do not leave
// the block.
func (l *locks) branches(h held, b *behaviour, mayPass bool, ways ...ast.Stmt) held {
	after := held{}
	if mayPass {
		maps.Copy(after, h)
	}
	for _, way := range ways {
		if way == nil {
			continue
		}
		end := l.walk(way, maps.Clone(h), b)
		if !leads(way) {
			maps.Copy(after, end)
		}
	}
	return after
}

func (l *locks) clauses(h held, b *behaviour, body *ast.BlockStmt) held {
	var ways []ast.Stmt
	all := false
	for _, c := range body.List {
		switch c := c.(type) {
		case *ast.CaseClause:
			all = all || c.List == nil
			l.walkAll(h, b, exprs(c.List)...)
			ways = append(ways, &ast.BlockStmt{List: c.Body})
		case *ast.CommClause:
			all = true
			ways = append(ways, &ast.BlockStmt{List: c.Body})
		}
	}
	return l.branches(h, b, !all, ways...)
}

// leads reports whether a branch leaves the block at its end.
func leads(s ast.Stmt) bool {
	block, ok := s.(*ast.BlockStmt)
	if !ok || len(block.List) == 0 {
		return false
	}
	switch last := block.List[len(block.List)-1].(type) {
	case *ast.ReturnStmt, *ast.BranchStmt:
		return true
	case *ast.ExprStmt:
		call, ok := last.X.(*ast.CallExpr)
		if !ok {
			return false
		}
		name, ok := call.Fun.(*ast.Ident)
		return ok && name.Name == "panic"
	}
	return false
}

// expr checks the calls in an expression or a simple statement.
func (l *locks) expr(n ast.Node, h held, b *behaviour) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch e := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.UnaryExpr:
			if e.Op == token.ARROW {
				l.does(e, h, b, "waits for a channel")
			}
		case *ast.CallExpr:
			if lit, ok := e.Fun.(*ast.FuncLit); ok {
				l.walk(lit.Body, h, b)
			}
			l.call(e, h, b)
		}
		return true
	})
}

// call checks one call.
func (l *locks) call(c *ast.CallExpr, h held, b *behaviour) {
	var object types.Object
	switch fun := ast.Unparen(c.Fun).(type) {
	case *ast.Ident:
		object = l.info.Uses[fun]
	case *ast.SelectorExpr:
		object = l.info.Uses[fun.Sel]
	}
	switch f := object.(type) {
	case *types.Func:
		f = f.Origin()
		if known := l.funcs[f]; known != nil {
			for m := range known.takes {
				if b != nil {
					b.takes[m] = true
				}
				if h[m] {
					l.does(c, h, b, "calls "+f.Name()+", which takes "+m.Name()+" again")
				}
			}
			if known.waits != "" {
				l.does(c, h, b, "calls "+f.Name()+", which "+known.waits)
			}
			return
		}
		if what := stranger(f); what != "" {
			l.does(c, h, b, "calls "+what)
		}
	case *types.Var:
		if _, isFunc := f.Type().Underlying().(*types.Signature); isFunc && (f.IsField() || f.Parent() == nil) {
			l.does(c, h, b, "calls the function in "+f.Name())
		}
	}
}

// stranger returns the name of a function of another package, or of an interface, that may wait or call back, else "".
func stranger(f *types.Func) string {
	name := f.Name()
	path := ""
	if f.Pkg() != nil {
		path = f.Pkg().Path()
	}
	receiver := f.Signature().Recv()
	if receiver == nil {
		if slices.Contains(outside, path) && !quiet[path+"."+name] {
			return path + "." + name
		}
		if path == "time" && name == "Sleep" {
			return "time.Sleep"
		}
		return ""
	}
	of := receiver.Type()
	text := types.TypeString(of, func(p *types.Package) string { return p.Path() })
	full := strings.TrimPrefix(text, "*") + "." + name
	switch {
	case quiet[full] || quiet[text+"."+name]:
		return ""
	case types.IsInterface(of):
		return full
	case full == "sync.WaitGroup.Wait", strings.HasPrefix(full, "log/slog.Logger.") && name != "Enabled",
		strings.HasPrefix(text, "*os."), strings.HasPrefix(text, "*net/http."):
		return full
	}
	return ""
}

// does records an effect of a function, or reports it under a mutex.
func (l *locks) does(n ast.Node, h held, b *behaviour, what string) {
	if b != nil {
		if b.waits == "" && !strings.Contains(what, "takes") {
			b.waits = what
		}
		return
	}
	for m := range h {
		if waiting[strings.TrimPrefix(l.pkg.Path(), l.tree.Module+"/")+" "+m.Name()] != "" {
			continue
		}
		l.report(fmt.Sprintf("%s: under %s it %s: decide under the mutex and act without it", l.tree.at(n),
			m.Name(), what))
	}
}

// mutexOf calls mutex for an expression that is a call.
func (l *locks) mutexOf(e ast.Expr) (m *types.Var, takes bool) {
	if c, ok := e.(*ast.CallExpr); ok {
		return l.mutex(c)
	}
	return nil, false
}

// mutex returns the mutex that a call locks or unlocks, or nil.
func (l *locks) mutex(c *ast.CallExpr) (m *types.Var, takes bool) {
	method, ok := c.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil, false
	}
	f, ok := l.info.Uses[method.Sel].(*types.Func)
	if !ok || f.Pkg() == nil || f.Pkg().Path() != "sync" {
		return nil, false
	}
	switch f.Name() {
	case "Lock", "RLock":
		takes = true
	case "Unlock", "RUnlock":
	default:
		return nil, false
	}
	switch x := ast.Unparen(method.X).(type) {
	case *ast.Ident:
		m, _ = l.info.Uses[x].(*types.Var)
	case *ast.SelectorExpr:
		m, _ = l.info.Uses[x.Sel].(*types.Var)
	}
	return m, takes
}
