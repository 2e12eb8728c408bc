package arch

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var own = sync.OnceValues(func() (*Tree, error) { return Load(os.DirFS("../..")) })

// tree is this module's own.
func tree(t *testing.T) *Tree {
	t.Helper()
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

func TestImportsGoDownOnly(t *testing.T) { none(t, tree(t).Imports(Table)) }

func TestDecidingCodeIsPure(t *testing.T) { none(t, tree(t).Purity(Table)) }

func TestGinStaysInRoutes(t *testing.T) { none(t, tree(t).Gin(Table)) }

func TestEveryPackageCommentPromisesSomething(t *testing.T) { none(t, tree(t).Promises()) }

func TestDocumentsSpeakOfWhatIsThere(t *testing.T) {
	faults, err := tree(t).References()
	require.NoError(t, err)
	none(t, faults)
}

func TestEveryPackageIsOnTheMap(t *testing.T) {
	faults, err := tree(t).Mapped("docs/architecture.md")
	require.NoError(t, err)
	none(t, faults)
}

func TestTheTableIsTheOneInTheDocuments(t *testing.T) {
	none(t, tree(t).Absent(Table))
	faults, err := tree(t).Layered("docs/architecture.md", Table)
	require.NoError(t, err)
	none(t, faults)
}
