package access

import (
	"crypto/sha256"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// tagsMax bounds the remembered tags; a forgotten one costs one HEAD.
const tagsMax = 4096

// tagKey is a tag as a client asks for it: registries send another manifest for another Accept.
type tagKey struct {
	upstream, repository, tag string
	accept                    [sha256.Size]byte
	// generation is as in lookupKey.
	generation uint64
}

func (r *Resolver) tagKey(l Lookup) tagKey {
	return tagKey{l.Upstream, l.Repository, l.Reference, hashAccept(l), r.generation.Load()}
}

// tags remembers what tags meant when their registries were asked last. A reply also holds the grant of the credential
// that was sent, which is valid for no other credential.
type tags struct {
	// mu is held to look up and change, never while a registry is asked.
	mu     sync.Mutex
	recent *simplelru.LRU[tagKey, reply]
}

func newTags() *tags {
	return &tags{recent: newLRU[tagKey, reply](tagsMax, nil)}
}

// get returns the last known meaning of a tag, of any age.
func (t *tags) get(k tagKey) (reply, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.recent.Get(k)
}

// put remembers the meaning of a tag, unless a newer one is known.
func (t *tags) put(k tagKey, x reply) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, ok := t.recent.Get(k); ok && !known.at.Before(x.at) {
		return
	}
	t.recent.Add(k, x)
}

// drop forgets a tag that its registry no longer has.
func (t *tags) drop(k tagKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent.Remove(k)
}

func (t *tags) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent.Purge()
}
