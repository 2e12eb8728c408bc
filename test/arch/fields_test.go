package arch

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPIFieldsHaveTwoSides(t *testing.T) {
	tr := tree(t)
	faults, err := tr.Fields("pkg/api", importing(t, tr), Unpaired)
	require.NoError(t, err)
	none(t, faults)
}

func TestFieldsFindsDeadOnes(t *testing.T) {
	const head = "package a\n\ntype Inner struct{ Deep int }\n\ntype T struct {\n\tInner\n\tF []int\n}\n\n" +
		"func use(...any) {}\n\n"
	const deep = "\tt.Deep = 1\n\tuse(t.Deep)\n\tuse(T{Inner: Inner{}})\n"
	for _, row := range []struct{ name, body, want string }{
		{"written and read", "t.F = nil; use(t.F)", ""},
		{"a literal", "use(T{F: nil}.F)", ""},
		{"a literal without names", "use(T{Inner{}, nil}.F)", ""},
		{"never written", "use(t.F)", "nothing writes T.F"},
		{"never read", "t.F = nil", "nothing reads T.F"},
		{"neither", "", "nothing writes or reads T.F"},
		{"extended and never read", "t.F = append(t.F, 1)", "nothing reads T.F"},
		{"an element is set", "t.F[0] = 1", "nothing reads T.F"},
		{"its address is taken", "use(&t.F)", ""},
		{"a conversion", "use(T(struct{ Inner; F []int }{}), t.F)", ""},
		{"another's field of that name", "var o struct{ F int }; o.F = 1; use(o.F)", "nothing writes or reads T.F"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := fixture(t, "pkg/a/a.go", head+"func try(t T) {\n"+deep+"\t"+row.body+"\n}\n", "pkg/a/a_test.go",
				"package a\n\nfunc test(t T) { t.F = nil; use(t.F) }\n")
			faults, err := tr.Fields("pkg/a", importing(t, tr), nil)
			require.NoError(t, err)
			expect(t, row.want, faults)
		})
	}
	t.Run("exceptions", func(t *testing.T) {
		tr := fixture(t, "pkg/a/a.go",
			"package a\n\ntype T struct{ F, G int }\n\nfunc try(t T) { t.F = t.G; t.G = 1 }\n")
		faults, err := tr.Fields("pkg/a", importing(t, tr), map[string]string{"T.F": "people read it"})
		require.NoError(t, err)
		require.Empty(t, faults)
		faults, err = tr.Fields("pkg/a", importing(t, tr),
			map[string]string{"T.F": "people read it", "T.G": "so", "T.H": "so"})
		require.NoError(t, err)
		require.Len(t, faults, 2, "an exception that nothing needs")
	})
}
