package peer

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestEveryEventIsHandled compares the types that describe themselves as events with the cases of
// [Download.handle].
func TestEveryEventIsHandled(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "events.go", nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	var described, handled []string
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv != nil && n.Name.Name == "String" {
				if of, ok := n.Recv.List[0].Type.(*ast.Ident); ok {
					described = append(described, of.Name)
				}
			}
		case *ast.CaseClause:
			for _, of := range n.List {
				if name, ok := of.(*ast.Ident); ok {
					handled = append(handled, name.Name)
				}
			}
		}
		return true
	})
	slices.Sort(described)
	slices.Sort(handled)
	assert.Greater(t, len(handled), 20)
	assert.Equal(t, described, handled)
}
