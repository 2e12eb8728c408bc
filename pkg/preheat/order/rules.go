package order

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
)

// ScopeNone is the scope of a rule that no push becomes a job of.
const ScopeNone preheat.ScopeKind = "none"

// Rule says for which hosts images are preheated.
type Rule struct {
	// Images are globs of image names with their registry; "*" matches within one part of a path, "**" any number of
	// parts. One that matches suffices.
	Images []string
	// Tags are globs of tags. Empty is every tag, except those with which tools attach signatures and the like to
	// another image.
	Tags []string
	// Scope and Zones name the hosts. An empty scope is all nodes, empty zones are all zones.
	Scope preheat.ScopeKind
	Zones []string
	// Platforms are those of the image that are fetched; empty is all.
	Platforms []string
}

// Rules are the rules in their order: the first that matches an image counts.
type Rules []Rule

// CheckGlob returns an error for a text that is no glob.
func CheckGlob(text string) error {
	if text == "" || !doublestar.ValidatePattern(text) {
		return fmt.Errorf("%q is no glob; write for example harbor.corp/shop/**", text)
	}
	return nil
}

// attached matches the tags of cosign, and of the referrers of registries without a referrers API.
var attached = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64,128}(\.[a-z]+)?$`)

func (r Rule) matches(o Order) bool {
	match := func(globs []string, name string) bool {
		return slices.ContainsFunc(globs, func(g string) bool { return doublestar.MatchUnvalidated(g, name) })
	}
	if !match(r.Images, o.Image()) {
		return false
	}
	if len(r.Tags) == 0 {
		return !attached.MatchString(o.Tag)
	}
	return match(r.Tags, o.Tag)
}

// Source is what sent an order.
type Source int

// The sources.
const (
	// Policy is Harbor, whose preheat policy selected the image: rules only add to it.
	Policy Source = iota
	// Push is a registry that tells of every push: rules select the image.
	Push
)

// Decide returns the spec of the job for an order. Of a policy, the scope is the order's own, or else that of the first
// rule that matches, or else the fallback. A push without a rule is no job: ignored says why.
func (r Rules) Decide(o Order, from Source, fallback preheat.ScopeKind) (spec preheat.Spec, ignored string) {
	spec = preheat.Spec{Kind: preheat.Image, Reference: o.Reference(), Scope: preheat.Scope{Kind: o.Scope}}
	if !o.Authorization.IsZero() {
		spec.Headers = map[string]secret.String{"Authorization": o.Authorization}
	}
	rule := Rule{Scope: fallback}
	i := slices.IndexFunc(r, func(one Rule) bool { return one.matches(o) })
	switch {
	case i >= 0:
		rule = r[i]
	case from == Push:
		return preheat.Spec{}, "no rule matches"
	}
	if rule.Scope == ScopeNone && from == Push {
		return preheat.Spec{}, "a rule excludes it"
	}
	if rule.Scope == ScopeNone {
		rule = Rule{Scope: fallback} // Harbor's administrator asked for this image
	}
	if spec.Scope.Kind == "" {
		spec.Scope.Kind = rule.Scope
	}
	if spec.Scope.Kind == "" {
		spec.Scope.Kind = preheat.AllNodes
	}
	if spec.Scope.Kind != preheat.OneSeed {
		spec.Scope.Zones = rule.Zones
	}
	spec.Platforms = rule.Platforms
	if o.Platform != "" {
		spec.Platforms = []string{o.Platform}
	}
	return spec, ""
}
