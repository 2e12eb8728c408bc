package access

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/darter-io/darter/pkg/task"
)

// grantsMax bounds the remembered grants, some 300 bytes each. A forgotten one costs one HEAD.
const grantsMax = 32 << 10

// Grant is a remembered permission: this credential may read this digest of this repository until it
// ends. It holds what the registry stated about the blob or manifest.
type Grant struct {
	ID task.ID
	// Length in bytes, 0 when the registry did not state it.
	Length int64
	// MediaType as the registry wrote it, empty when it did not state one.
	MediaType string
	// Declared says that a manifest states the length, and not the registry itself.
	Declared bool
	// Doubted says that the permission proves little: the registry may answer every request like this, or it redirected
	// the request from HTTPS to plain HTTP, where an attacker on the path may have answered; see
	// [Resolver.ProveOwnership].
	Doubted bool
	// Tag is the tag for which the registry named the manifest, empty when it was asked by digest.
	Tag string

	subject subject
	object  object
	// until is when the grant expires; end is when its credential ends, zero if the credential does not state it. Between
	// the two, the grant is valid only while its registry is unreachable, and only if the operator allows that. Both are
	// computed from this node's time at the reply, with its monotonic reading, so that a changed clock extends neither;
	// see past.
	until, end time.Time
	// date is the time of the reply by the registry's clock, zero when it stated none.
	date time.Time
	// adopted says that the manifest's own references are remembered too.
	adopted bool
}

// subject is a credential in one repository of one registry.
type subject struct {
	credential           credential
	upstream, repository string
}

func (l Lookup) subject() subject {
	return subject{credentialOf(l.Authorization.Reveal()), l.Upstream, l.Repository}
}

// object is what a subject may read. A digest that is a blob of a repository need not be a manifest of
// it.
type object struct {
	kind task.Kind
	id   task.ID
}

// grantKey names a grant. No part of it may be left out, or a public repository would open a private
// one.
type grantKey struct {
	subject subject
	object  object
}

// grants remembers grants. It remembers no refusal.
type grants struct {
	// mu is held to look up and change, never while a registry is asked.
	mu     sync.Mutex
	recent *simplelru.LRU[grantKey, Grant]
	// objects lists the objects of recent by subject, for dropSubject.
	objects map[subject]map[object]struct{}
}

func newGrants() *grants {
	g := &grants{objects: map[subject]map[object]struct{}{}}
	g.recent = newLRU(grantsMax, func(k grantKey, _ Grant) {
		delete(g.objects[k.subject], k.object)
		if len(g.objects[k.subject]) == 0 {
			delete(g.objects, k.subject)
		}
	})
	return g
}

// newLRU returns an LRU of a size above 0.
func newLRU[K comparable, V any](size int, evicted simplelru.EvictCallback[K, V]) *simplelru.LRU[K, V] {
	lru, err := simplelru.NewLRU(size, evicted)
	if err != nil {
		panic(err) // the size is a constant
	}
	return lru
}

// get returns a grant whose credential has not ended, and whether the grant is still valid.
func (g *grants) get(s subject, o object, now time.Time) (found Grant, valid, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := grantKey{s, o}
	found, ok = g.recent.Get(k)
	if !ok {
		return Grant{}, false, false
	}
	if !found.end.IsZero() && past(now, found.end) {
		g.recent.Remove(k)
		return Grant{}, false, false
	}
	return found, !past(now, found.until), true
}

// put remembers a grant, in place of an earlier one.
func (g *grants) put(x Grant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.add(x)
}

// add is put; mu is held.
func (g *grants) add(x Grant) {
	if g.objects[x.subject] == nil {
		g.objects[x.subject] = map[object]struct{}{}
	}
	g.objects[x.subject][x.object] = struct{}{}
	g.recent.Add(grantKey{x.subject, x.object}, x)
}

// adopt grants the objects that a manifest names until the grant of the manifest ends. It does nothing if that grant
// was dropped meanwhile. It uses only the object of each named grant and what is stated about it.
func (g *grants) adopt(manifest Grant, named []Grant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := grantKey{manifest.subject, manifest.object}
	if !g.recent.Contains(own) {
		return
	}
	for _, x := range named {
		x.subject, x.until, x.end = manifest.subject, manifest.until, manifest.end
		if known, ok := g.recent.Peek(grantKey{x.subject, x.object}); ok && known.until.After(x.until) {
			continue
		}
		g.add(x)
	}
	if known, ok := g.recent.Peek(own); ok {
		known.adopted = true
		g.add(known)
	}
}

// drop forgets one grant of a subject.
func (g *grants) drop(s subject, o object) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.recent.Remove(grantKey{s, o})
}

// dropSubject forgets all grants of a subject: its registry no longer takes the credential.
func (g *grants) dropSubject(s subject) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for o := range g.objects[s] {
		g.recent.Remove(grantKey{s, o})
	}
}

// clear forgets everything.
func (g *grants) clear() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.recent.Purge()
}

// credential identifies a client: a hash of its Authorization, so that no cache holds a secret. The zero value is an
// anonymous client, one without an Authorization.
type credential [sha256.Size]byte

func credentialOf(authorization string) credential {
	if authorization == "" {
		return credential{}
	}
	return sha256.Sum256([]byte(authorization))
}

// opaqueLife is the life of a grant whose credential does not state its end: an opaque token, a
// password, or none.
const opaqueLife = time.Minute

// claimsMax bounds the claims of a token that are decoded, in bytes.
const claimsMax = 16 << 10

// lifetime returns when a grant expires and when its credential ends, zero if the credential does not state it. It
// reads exp and iat of a token and nothing else, and does not verify them: the registry has just accepted this token,
// and the two can only shorten what longest allows.
//
// now is this node's time with its monotonic reading; date is the registry's time at its reply (RFC 9110 §6.6.1), zero
// if it stated none. The rest of a token's life follows from the registry's clock, and is never longer than the token's
// whole life. This node's clock may be days off, so that it measures only the time since the reply; it replaces the
// registry's clock if there is no date.
func lifetime(authorization string, now, date time.Time, longest time.Duration) (until, end time.Time) {
	issued, exp, ok := lifespan(authorization)
	if !ok {
		return now.Add(min(opaqueLife, longest)), time.Time{}
	}
	if date.IsZero() {
		date = now
	}
	left := exp.Sub(date)
	if !issued.IsZero() {
		left = min(left, exp.Sub(issued))
	}
	left = max(left, 0)
	return now.Add(min(left, longest)), now.Add(left)
}

// past reports whether now has reached a time that was computed from an earlier now. It compares by the monotonic
// clock, which no change of the wall clock affects, and by the wall clock, which also counts the time while a machine
// sleeps. It is enough if one of them has reached the time.
func past(now, at time.Time) bool {
	return !now.Before(at) || !now.Round(0).Before(at.Round(0))
}

// lifespan reads the iat and the exp of a bearer token that is a JWT (RFC 7519 §4.1.4, §4.1.6); ok is
// false without an exp. A token with nbf and no iat counts as issued then.
func lifespan(authorization string) (issued, exp time.Time, ok bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	parts := strings.Split(strings.TrimSpace(token), ".")
	if !strings.EqualFold(scheme, "Bearer") || len(parts) != 3 || len(parts[1]) > claimsMax {
		return issued, exp, false
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return issued, exp, false
	}
	var c struct {
		Exp *float64 `json:"exp"`
		Iat any      `json:"iat"`
		Nbf any      `json:"nbf"`
	}
	if json.Unmarshal(claims, &c) != nil || c.Exp == nil || !isTime(*c.Exp) {
		return issued, exp, false
	}
	for _, claim := range []any{c.Iat, c.Nbf} {
		if seconds, isNumber := claim.(float64); isNumber && isTime(seconds) {
			issued = time.Unix(int64(seconds), 0)
			break
		}
	}
	return issued, time.Unix(int64(*c.Exp), 0), true
}

// isTime reports whether a number can be a time in seconds since 1970: at most 1e11, the year 5138.
func isTime(seconds float64) bool { return seconds >= 0 && seconds <= 1e11 }
