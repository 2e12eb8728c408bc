package access

import (
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/darter-io/darter/pkg/task"
)

const (
	// memoryMax bounds the remembered digests and, apart from them, tags: some 400 bytes each.
	memoryMax = 32 << 10
	// meaningsMax bounds the meanings of one tag: a request with another Accept can get another manifest.
	meaningsMax = 4
)

// Memory keeps the last answers of registries, for the time when one of them does not answer: what their tags meant,
// which digests their repositories had, and which of these anonymous clients could read. It grants nothing by itself;
// see [Resolver.Resolve]. The [Resolver] and the [Owner] of a host share one, and the Owner answers other hosts from
// it. It holds only what registries answered to this host. Safe for concurrent use.
type Memory struct {
	// mu is held to look up and change, never while a registry or an owner is asked.
	mu      sync.Mutex
	objects *simplelru.LRU[placeOf, sight]
	tags    *simplelru.LRU[tagPlace, []meaning]
	// public lists the objects that anonymous clients could read, by repository, so that one refusal removes them all.
	public map[place]map[object]struct{}
	// refusals and refusedOnes hold when a whole repository, or one of its digests, was last refused to anonymous clients.
	// A reply from another host's memory may be older than that. They are apart, so that requests for invented digests
	// displace neither refusals of repositories nor objects.
	refusals    *simplelru.LRU[place, time.Time]
	refusedOnes *simplelru.LRU[placeOf, time.Time]
}

// place is a repository of a registry.
type place struct{ upstream, repository string }

type placeOf struct {
	place
	object object
}

type tagPlace struct {
	place
	tag string
}

// sight is what is remembered of a digest in a repository.
type sight struct {
	mediaType string
	// held is when the registry last confirmed the digest to any client, public when it last confirmed it to an anonymous
	// one; zero: never.
	held, public time.Time
}

// meaning is what a tag meant to a request with this Accept.
type meaning struct {
	accept    [sha256.Size]byte
	id        task.ID
	mediaType string
	at        time.Time
}

// NewMemory returns an empty memory.
func NewMemory() *Memory {
	m := &Memory{public: map[place]map[object]struct{}{}}
	m.objects = newLRU(memoryMax, func(k placeOf, _ sight) { m.unlist(k) })
	m.tags = newLRU[tagPlace, []meaning](memoryMax, nil)
	m.refusals = newLRU[place, time.Time](memoryMax, nil)
	m.refusedOnes = newLRU[placeOf, time.Time](memoryMax, nil)
	return m
}

// unlist takes an object out of the list of what anonymous clients could read. mu is held.
func (m *Memory) unlist(k placeOf) {
	delete(m.public[k.place], k.object)
	if len(m.public[k.place]) == 0 {
		delete(m.public, k.place)
	}
}

// Held remembers that a registry gave a blob or manifest whose bytes match its digest.
func (m *Memory) Held(spec task.Spec) {
	m.saw(place{spec.Upstream, spec.Repository}, object{spec.Kind, spec.ID}, sight{held: time.Now()})
}

// saw remembers that a registry confirmed a digest. The later of two times stays.
func (m *Memory) saw(p place, o object, x sight) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.add(placeOf{p, o}, x)
}

// add is saw; mu is held.
func (m *Memory) add(k placeOf, x sight) {
	if known, ok := m.objects.Peek(k); ok {
		if x.mediaType == "" {
			x.mediaType = known.mediaType
		}
		x.held, x.public = later(x.held, known.held), later(x.public, known.public)
	}
	if x.public.Before(m.refusedLast(k)) {
		x.public = time.Time{}
	}
	if !x.public.IsZero() {
		if m.public[k.place] == nil {
			m.public[k.place] = map[object]struct{}{}
		}
		m.public[k.place][k.object] = struct{}{}
	}
	m.objects.Add(k, x)
}

// refusedLast returns when a digest, or all of its repository, was last refused to anonymous clients. mu is held.
func (m *Memory) refusedLast(k placeOf) time.Time {
	all, _ := m.refusals.Peek(k.place)
	one, _ := m.refusedOnes.Peek(k)
	return later(all, one)
}

// refusedAt returns when a digest was last refused to anonymous clients, zero if that is unknown.
func (m *Memory) refusedAt(p place, o object) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refusedLast(placeOf{p, o})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// adopt remembers the objects that a manifest names; they get the times of the manifest.
func (m *Memory) adopt(p place, manifest task.ID, named []Grant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	of, ok := m.objects.Get(placeOf{p, object{task.Manifest, manifest}})
	if !ok {
		return
	}
	for _, n := range named {
		m.add(placeOf{p, n.object}, sight{mediaType: n.MediaType, held: of.held, public: of.public})
	}
}

// resolved remembers what a tag meant, unless a later meaning is known.
func (m *Memory) resolved(p place, tag string, x meaning) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := tagPlace{p, tag}
	known, _ := m.tags.Get(k)
	list := []meaning{x}
	for _, old := range known {
		switch {
		case old.accept == x.accept && !old.at.Before(x.at):
			return
		case old.accept != x.accept && len(list) < meaningsMax:
			list = append(list, old)
		}
	}
	m.tags.Add(k, list)
}

// refusedAll forgets that anonymous clients could read objects of a repository, because the repository now refuses
// anonymous access.
func (m *Memory) refusedAll(p place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.public[p] {
		k := placeOf{p, o}
		if x, ok := m.objects.Peek(k); ok {
			x.public = time.Time{}
			m.objects.Add(k, x)
		}
	}
	delete(m.public, p)
	m.refusals.Add(p, time.Now())
}

// refused forgets that anonymous clients could read a digest.
func (m *Memory) refused(p place, o object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := placeOf{p, o}
	if x, ok := m.objects.Peek(k); ok {
		x.public = time.Time{}
		m.objects.Add(k, x)
	}
	m.unlist(k)
	m.refusedOnes.Add(k, time.Now())
}

// gone forgets a tag that its registry no longer has.
func (m *Memory) gone(p place, tag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tags.Remove(tagPlace{p, tag})
}

// Drop forgets a digest in all repositories, and the tags that mean it, for instance because an operator purged it.
func (m *Memory) Drop(id task.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.objects.Keys() {
		if k.object.id == id {
			m.objects.Remove(k)
		}
	}
	for _, k := range m.tags.Keys() {
		known, _ := m.tags.Peek(k)
		if slices.ContainsFunc(known, func(x meaning) bool { return x.id == id }) {
			m.tags.Remove(k)
		}
	}
}

// get returns what is remembered of a digest.
func (m *Memory) get(p place, o object) (sight, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects.Get(placeOf{p, o})
}

// meant returns the meaning of a tag for requests with the same Accept. If there is none, it returns the latest meaning
// whose media type this Accept names.
func (m *Memory) meant(l Lookup) (found meaning, ok bool) {
	m.mu.Lock()
	known, _ := m.tags.Get(tagPlace{l.place(), l.Reference})
	m.mu.Unlock()
	accept := hashAccept(l)
	for _, x := range known {
		if x.accept == accept {
			return x, true
		}
	}
	for _, x := range known {
		if accepts(l.Accept, x.mediaType) && (!ok || x.at.After(found.at)) {
			found, ok = x, true
		}
	}
	return found, ok
}

// accepts reports whether an Accept names a media type, with any weight.
func accepts(accept []string, mediaType string) bool {
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		named, _, _ := strings.Cut(part, ";")
		if named = strings.TrimSpace(named); named == "*/*" || mediaType != "" && strings.EqualFold(named, mediaType) {
			return true
		}
	}
	return false
}

func (l Lookup) place() place { return place{l.Upstream, l.Repository} }

// elapsed is the time since at by the monotonic or the wall clock, the longer of the two; see past.
func elapsed(now, at time.Time) time.Duration {
	return max(now.Sub(at), now.Round(0).Sub(at.Round(0)), 0)
}
