package registryproxy

import (
	"container/list"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/task"
)

// verdictsMax bounds the verdicts that are remembered, some 300 bytes each. A forgotten one
// costs one HEAD.
const verdictsMax = 32 << 10

// verdict is a registry's consent: this client may have this content of this repository.
// It holds what the registry said of the content meanwhile.
type verdict struct {
	id task.ID
	// length in bytes, 0 when the registry did not tell.
	length int64
	// mediaType to the letter, empty when the registry did not tell.
	mediaType string
	// named says that a manifest told the length and not the registry itself.
	named bool
}

// holder has rights: a credential in one repository of one registry.
type holder struct {
	credential           credential
	upstream, repository string
}

// object is what a right is about. A digest that is a blob of a repository need not be a
// manifest of it.
type object struct {
	endpoint string
	id       task.ID
}

// right is one verdict with its life.
type right struct {
	verdict
	// until it counts; end is when its credential ends by its own word, zero when it does
	// not say. Between the two it counts only while its registry is unreachable, where the
	// operator allows that. Both are reckoned from this node's time at the answer, with its
	// monotonic reading, so that a clock that is set gives nobody more; see past.
	until, end time.Time
	// date is when the registry said so by its own clock, zero when it did not tell.
	date time.Time
	// children says that what the manifest names is remembered too.
	children bool

	holder holder
	object object
}

// verdicts remembers rights. A right is a fact about credential, registry, repository and
// digest together: no part of it may be left out of the key, or a public repository would
// open a private one. Refusals are not remembered.
type verdicts struct {
	// mu is held to look up and change, never while a registry is asked.
	mu      sync.Mutex
	holders map[holder]map[object]*list.Element
	recent  list.List // of *right, the one used last in front
}

// get returns a right that has not ended by its credential's own word, and whether it still
// counts.
func (v *verdicts) get(h holder, o object, now time.Time) (r right, counts, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.holders[h][o]
	if e == nil {
		return right{}, false, false
	}
	found := e.Value.(*right)
	if !found.end.IsZero() && past(now, found.end) {
		v.remove(e)
		return right{}, false, false
	}
	v.recent.MoveToFront(e)
	return *found, !past(now, found.until), true
}

// put remembers a right. Of a manifest that was seen before, what it names is kept.
func (v *verdicts) put(r right) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.add(r)
}

// add is put; mu is held.
func (v *verdicts) add(r right) {
	if e := v.holders[r.holder][r.object]; e != nil {
		*e.Value.(*right) = r
		v.recent.MoveToFront(e)
		return
	}
	if v.holders == nil {
		v.holders = map[holder]map[object]*list.Element{}
	}
	if v.holders[r.holder] == nil {
		v.holders[r.holder] = map[object]*list.Element{}
	}
	v.holders[r.holder][r.object] = v.recent.PushFront(&r)
	for v.recent.Len() > verdictsMax {
		v.remove(v.recent.Back())
	}
}

// adopt remembers what a manifest names for who may have the manifest, for as long as the
// right to the manifest itself counts, and not when that was forgotten meanwhile. Of named
// only verdict and object are looked at.
func (v *verdicts) adopt(manifest right, named []right) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.holders[manifest.holder][manifest.object] == nil {
		return
	}
	for _, r := range named {
		r.holder, r.until, r.end = manifest.holder, manifest.until, manifest.end
		if e := v.holders[r.holder][r.object]; e != nil && e.Value.(*right).until.After(r.until) {
			continue
		}
		v.add(r)
	}
	if e := v.holders[manifest.holder][manifest.object]; e != nil {
		e.Value.(*right).children = true
	}
}

// drop forgets one right of a holder.
func (v *verdicts) drop(h holder, o object) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.holders[h][o]; e != nil {
		v.remove(e)
	}
}

// dropHolder forgets all rights of a holder: its registry no longer takes the credential.
func (v *verdicts) dropHolder(h holder) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.holders[h] {
		v.remove(e)
	}
}

// clear forgets everything.
func (v *verdicts) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.holders = nil
	v.recent.Init()
}

// remove takes one right out; mu is held.
func (v *verdicts) remove(e *list.Element) {
	r := v.recent.Remove(e).(*right)
	objects := v.holders[r.holder]
	delete(objects, r.object)
	if len(objects) == 0 {
		delete(v.holders, r.holder)
	}
}
