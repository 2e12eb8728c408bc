package order_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/order"
	"github.com/darter-io/darter/pkg/preheat/rules"
)

func TestRules(t *testing.T) {
	all := rules.Rules{
		{Images: []string{"harbor.example.com/shop/tmp-*"}, Scope: rules.ScopeNone},
		{Images: []string{"harbor.example.com/shop/**"}, Tags: []string{"v*", "release-?"}, Zones: []string{"a", "b"},
			Platforms: []string{"linux/amd64"}},
		{Images: []string{"**/base/*", "docker.io/library/{nginx,redis}"}, Scope: preheat.AllSeeds},
	}
	for _, row := range []struct {
		image, tag string
		want       preheat.ScopeKind // empty for no job
		zones      string
	}{
		{"harbor.example.com/shop/web", "v1.2", preheat.AllNodes, "a b"},
		{"harbor.example.com/shop/deep/er/web", "release-7", preheat.AllNodes, "a b"},
		{"harbor.example.com/shop/web", "release-17", "", ""},
		{"harbor.example.com/shop/web", "nightly", "", ""},
		{"harbor.example.com/shop/tmp-1", "v1", "", ""},
		{"harbor.example.com/shopping/web", "v1", "", ""},
		{"evil.test/harbor.example.com/shop/web", "v1", "", ""},
		{"registry.test:5000/base/go", "latest", preheat.AllSeeds, ""},
		{"registry.test:5000/base/deep/go", "latest", "", ""},
		{"registry.test:5000/base/go", "sha256-" + strings.Repeat("a", 64) + ".sig", "", ""},
		{"registry.test:5000/base/go", "sha256-" + strings.Repeat("a", 64), "", ""},
		{"docker.io/library/redis", "7", preheat.AllSeeds, ""},
		{"docker.io/library/postgres", "7", "", ""},
	} {
		t.Run(row.image+":"+row.tag, func(t *testing.T) {
			host, repository, _ := strings.Cut(row.image, "/")
			o := order.Order{Registry: host, Repository: repository, Tag: row.tag, Digest: digest}
			spec, ignored := order.Decide(o, order.Push, all, preheat.OneSeed)
			if row.want == "" {
				assert.NotEmpty(t, ignored)
				assert.Zero(t, spec)
				return
			}
			require.Empty(t, ignored)
			require.NoError(t, spec.Validate())
			assert.Equal(t, row.want, spec.Scope.Kind)
			assert.Equal(t, row.zones, strings.Join(spec.Scope.Zones, " "))
			assert.Equal(t, row.image+":"+row.tag+"@"+digest, spec.Reference, "the job is for the bytes that were pushed")
		})
	}
	_, ignored := order.Decide(order.Order{Registry: "a.test", Repository: "b", Tag: "c"}, order.Push, nil,
		preheat.AllNodes)
	assert.Equal(t, "no rule matches", ignored)
	_, ignored = order.Decide(order.Order{Registry: "registry.test:5000", Repository: "base/go", Tag: "1"}, order.Push, all,
		preheat.AllNodes)
	assert.Equal(t, "pushed without a digest", ignored)
}

func TestOrdersOfAPolicy(t *testing.T) {
	all := rules.Rules{
		{Images: []string{"a.test/none"}, Scope: rules.ScopeNone},
		{Images: []string{"a.test/**"}, Scope: preheat.AllNodes, Zones: []string{"z"}, Platforms: []string{"linux/amd64"}},
	}
	decide := func(o order.Order) preheat.Spec {
		spec, ignored := order.Decide(o, order.Policy, all, preheat.AllSeeds)
		require.Empty(t, ignored, "Harbor's policy selected the image")
		require.NoError(t, spec.Validate())
		return spec
	}
	o := order.Order{Registry: "b.test", Repository: "x", Tag: "1", Authorization: "Bearer t"}
	spec := decide(o)
	assert.Equal(t, preheat.Scope{Kind: preheat.AllSeeds}, spec.Scope, "no rule: the fallback")
	assert.Equal(t, "Bearer t", spec.Headers["Authorization"].Reveal())
	o.Scope = preheat.OneSeed
	assert.Equal(t, preheat.OneSeed, decide(o).Scope.Kind, "its own scope")
	o.Registry = "a.test"
	assert.Equal(t, preheat.Scope{Kind: preheat.OneSeed}, decide(o).Scope)
	o.Scope = ""
	assert.Equal(t, preheat.Scope{Kind: preheat.AllNodes, Zones: []string{"z"}}, decide(o).Scope, "that of the rule")
	assert.Equal(t, []string{"linux/amd64"}, decide(o).Platforms)
	o.Platform = "linux/arm64"
	assert.Equal(t, []string{"linux/arm64"}, decide(o).Platforms)
	o.Repository = "none"
	assert.Equal(t, preheat.AllSeeds, decide(o).Scope.Kind)
}
