package order

import (
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/rules"
	"github.com/darter-io/darter/pkg/secret"
)

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
func Decide(o Order, from Source, all rules.Rules, fallback preheat.ScopeKind) (spec preheat.Spec, ignored string) {
	spec = preheat.Spec{Kind: preheat.Image, Reference: o.Reference(), Scope: preheat.Scope{Kind: o.Scope}}
	if !o.Authorization.IsZero() {
		spec.Headers = map[string]secret.String{"Authorization": o.Authorization}
	}
	rule, ok := all.Match(o.Image(), o.Tag)
	excluded := ok && rule.Scope == rules.ScopeNone
	switch {
	case from == Push && !ok:
		return preheat.Spec{}, "no rule matches"
	case from == Push && excluded:
		return preheat.Spec{}, "a rule excludes it"
	case from == Push && o.Digest == "":
		return preheat.Spec{}, "pushed without a digest" // each notification of it would be a job
	case !ok || excluded:
		rule = rules.Rule{Scope: fallback} // Harbor's administrator asked for this image
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
