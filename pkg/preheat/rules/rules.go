// Package rules decides by globs which pushed images are preheated, and for which hosts.
//
// The first rule that matches an image counts, and no other one. Start at [Rules.Match].
package rules

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/darter-io/darter/pkg/preheat"
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

// Match returns the first rule that matches an image: its name with the registry, and its tag.
func (r Rules) Match(image, tag string) (rule Rule, ok bool) {
	if i := slices.IndexFunc(r, func(one Rule) bool { return one.matches(image, tag) }); i >= 0 {
		return r[i], true
	}
	return Rule{}, false
}

// CheckGlob returns an error for a text that is no glob.
func CheckGlob(text string) error {
	if text == "" || !doublestar.ValidatePattern(text) {
		return fmt.Errorf("%q is no glob; write for example harbor.corp/shop/**", text)
	}
	return nil
}

// attached matches the tags of cosign, and of the referrers of registries without a referrers API.
var attached = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64,128}(\.[a-z]+)?$`)

func (r Rule) matches(image, tag string) bool {
	match := func(globs []string, name string) bool {
		return slices.ContainsFunc(globs, func(g string) bool { return doublestar.MatchUnvalidated(g, name) })
	}
	if !match(r.Images, image) {
		return false
	}
	if len(r.Tags) == 0 {
		return !attached.MatchString(tag)
	}
	return match(r.Tags, tag)
}
