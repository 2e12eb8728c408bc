package rules_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/preheat/rules"
)

func TestCheckGlob(t *testing.T) {
	for _, good := range []string{"**", "a.test/*", "a.test/{b,c}/**", "v[0-9]*"} {
		assert.NoError(t, rules.CheckGlob(good))
	}
	for _, bad := range []string{"", "a[", "{a", `a\`} {
		assert.ErrorContains(t, rules.CheckGlob(bad), "is no glob", bad)
	}
}

func TestMatch(t *testing.T) {
	all := rules.Rules{{Images: []string{"a.test/x"}, Zones: []string{"first"}},
		{Images: []string{"b.test/*", "a.test/**"}, Tags: []string{"v*", "latest"}, Zones: []string{"second"}}}
	for image, want := range map[string]string{
		"a.test/x:v1": "first", "a.test/x:other": "first", "a.test/x/y:v1": "second", "b.test/y:latest": "second",
		"b.test/y/z:v1": "", "a.test/y:1": "", "c.test/x:v1": "",
	} {
		name, tag, _ := strings.Cut(image, ":")
		rule, ok := all.Match(name, tag)
		assert.Equal(t, want != "", ok, image)
		assert.Equal(t, want, strings.Join(rule.Zones, ""), image)
	}
}
