package dfget

import (
	"net/url"
	"sync"
)

// silentOrigins are the origins that gave no answer to any try of a download. The downloads after it try once: a list
// of files of a server that is down ends soon, and goes on when the server is there again. The zero value is ready, and
// safe for concurrent use.
type silentOrigins struct {
	// mu is held to look up and change.
	mu    sync.Mutex
	hosts map[string]bool
}

func (s *silentOrigins) has(u *url.URL) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts[u.Host]
}

// note remembers whether an origin is silent.
func (s *silentOrigins) note(u *url.URL, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !silent {
		delete(s.hosts, u.Host)
		return
	}
	if s.hosts == nil {
		s.hosts = map[string]bool{}
	}
	s.hosts[u.Host] = true
}
