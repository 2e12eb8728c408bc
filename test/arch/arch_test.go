package arch

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/race"
)

var own = sync.OnceValues(func() (*Tree, error) { return Load(os.DirFS("../..")) })

// tree returns this module's tree.
func tree(t *testing.T) *Tree {
	t.Helper()
	race.Skip(t, "it reads source files, in one goroutine; the tests on small trees call the same checks")
	tr, err := own()
	require.NoError(t, err)
	require.Equal(t, "github.com/darter-io/darter", tr.Module)
	require.NotEmpty(t, tr.Packages["pkg/piece"], "the tree was not read")
	return tr
}

func none(t *testing.T, faults []string) {
	t.Helper()
	if len(faults) > 0 {
		t.Errorf("%d faults:\n%s", len(faults), strings.Join(faults, "\n"))
	}
}

func TestImports(t *testing.T) { none(t, tree(t).Imports(Table)) }

func TestPurity(t *testing.T) { none(t, tree(t).Purity(Table)) }

func TestGin(t *testing.T) { none(t, tree(t).Gin(Table)) }

func TestPackageComments(t *testing.T) { none(t, tree(t).Promises()) }

func TestReferences(t *testing.T) {
	faults, err := tree(t).References()
	require.NoError(t, err)
	none(t, faults)
}

func TestMapped(t *testing.T) {
	faults, err := tree(t).Mapped("docs/architecture.md")
	require.NoError(t, err)
	none(t, faults)
}

func TestTableIsDocumented(t *testing.T) {
	none(t, tree(t).Absent(Table))
	faults, err := tree(t).Layered("docs/architecture.md", Table)
	require.NoError(t, err)
	none(t, faults)
}
