package access

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// privateMax bounds the repositories that are remembered as private; a forgotten one costs one request.
const privateMax = 4096

type repositoryKey struct {
	upstream, repository string
	// generation is as in lookupKey.
	generation uint64
}

// private remembers when repositories last refused to be read by anybody. It saves requests and decides no right.
type private struct {
	// mu is held to look up and change.
	mu      sync.Mutex
	refused *simplelru.LRU[repositoryKey, time.Time]
}

func newPrivate() *private {
	return &private{refused: newLRU[repositoryKey, time.Time](privateMax, nil)}
}

// since reports whether a repository refused after a time.
func (p *private) since(k repositoryKey, after time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.refused.Get(k)
	return ok && at.After(after)
}

func (p *private) put(k repositoryKey, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused.Add(k, at)
}

func (p *private) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused.Purge()
}
