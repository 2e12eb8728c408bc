package arch

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGlossary(t *testing.T) {
	faults, err := tree(t).Glossary("docs/glossary.md", HotPath)
	require.NoError(t, err)
	none(t, faults)
	faults, err = tree(t).HotPathTypes("docs/life-of-a-pull.md", HotPath)
	require.NoError(t, err)
	none(t, faults)
}

func TestGlossaryFaults(t *testing.T) {
	const src = "package a\n\ntype (\n\tStore struct{}\n\tconn struct{}\n)\n\ntype Config struct{}\n\n" +
		"type StoreError struct{}\n"
	for _, row := range []struct{ name, text, want string }{
		{"a type", "| store | keeps pieces | `a.Store` |", ""},
		{"a missing type", "| store | keeps pieces | `pkg/a` |", "does not name `a.Store`"},
		{"a type of another package", "`b.Store`", "does not name `a.Store`"},
		{"a longer name", "`a.StoreKind`", "does not name `a.Store`"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t, "docs/glossary.md", row.text+"\n", "pkg/a/x.go", src, "pkg/a/x_test.go",
				"package a\n\ntype Fake struct{}\n")
			faults, err := tr.Glossary("docs/glossary.md", []string{"pkg/a"})
			require.NoError(t, err)
			expect(t, row.want, faults)
		})
	}
	t.Run("a package that is not in the tree", func(t *testing.T) {
		faults, err := fixture(t, "docs/glossary.md", "\n").Glossary("docs/glossary.md", []string{"pkg/a"})
		require.NoError(t, err)
		expect(t, "pkg/a is in arch.HotPath, but not in the tree", faults)
	})
	t.Run("no glossary", func(t *testing.T) {
		_, err := fixture(t, "pkg/a/x.go", src).Glossary("docs/glossary.md", []string{"pkg/a"})
		assert.ErrorContains(t, err, "reading the glossary")
	})
}

func TestHotPathTypeFaults(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"a type", "# Path\n\n```\nStore.Get → Store.put, on the other side\n```\n", ""},
		{"a type of no package", "# Path\n\n```\nStore.Get → Queue.Pop\n```\n", "Queue.Pop"},
		{"no line", "# Path\n", "no fenced block"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t, "docs/path.md", row.text, "pkg/a/x.go", "package a\n\ntype Store struct{}\n")
			faults, err := tr.HotPathTypes("docs/path.md", []string{"pkg/a"})
			require.NoError(t, err)
			expect(t, row.want, faults)
		})
	}
}
