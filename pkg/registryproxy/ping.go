package registryproxy

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// pingsMax bounds the registries whose pings are remembered, and those whose challenges are. A client may name any
// registry, but cannot fill the memory: the registry that was asked longest ago is forgotten first.
const pingsMax = 256

// challengeMax bounds the challenge of one registry, in bytes.
const challengeMax = 4 << 10

// ping is a registry's last reply to GET /v2/ without credentials: 200, or a challenge.
type ping struct {
	status    int
	challenge []string
	at        time.Time
}

// pings remembers the last replies by registry, for the time when a registry is unreachable: dockerd and crane ping
// first, and without a response they would not ask for what the swarm has.
type pings struct {
	// mu is held to look up and change.
	mu    sync.Mutex
	known *simplelru.LRU[string, ping]
	// basic holds the challenges of the last refusals that ask for a password: such a registry sends the same challenge in
	// reply to any request without credentials.
	basic *simplelru.LRU[string, []string]
	// generation counts the calls of forget: a reply to a request from before is not remembered.
	generation uint64
}

func newPings() *pings {
	known, err := simplelru.NewLRU[string, ping](pingsMax, nil)
	basic, err2 := simplelru.NewLRU[string, []string](pingsMax, nil)
	if err := errors.Join(err, err2); err != nil {
		panic(err) // pingsMax is positive
	}
	return &pings{known: known, basic: basic}
}

// now is the generation of a request that begins.
func (p *pings) now() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation
}

// forget drops all replies, because a reload may change how registries are asked.
func (p *pings) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation++
	p.known.Purge()
	p.basic.Purge()
}

// putChallenge remembers the challenge of a refusal in place of the last one, if it asks for a password (RFC 7617). A
// refusal without a challenge changes nothing.
func (p *pings) putChallenge(upstream string, generation uint64, challenge []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case generation != p.generation, len(challenge) == 0:
	case !slices.ContainsFunc(challenge, isBasic) || len(strings.Join(challenge, "")) > challengeMax:
		p.basic.Remove(upstream)
	default:
		p.basic.Add(upstream, slices.Clone(challenge))
	}
}

func isBasic(challenge string) bool {
	scheme, _, _ := strings.Cut(challenge, " ")
	return strings.EqualFold(scheme, "Basic")
}

// repeatChallenge asks a client without credentials for its password, as its registry did before it became unreachable:
// containerd, regctl and oras send credentials only after a challenge, and the cluster may hold a grant of that
// password. A token is of no use then: each login gives another one. It returns nil if the client gets the error
// instead.
func (req *request) repeatChallenge() *apiError {
	if req.authorization != "" || !req.cfg.Resolver.ServesCached() {
		return nil
	}
	req.pings.mu.Lock()
	challenge, ok := req.pings.basic.Get(req.target.upstream)
	req.pings.mu.Unlock()
	if !ok {
		return nil
	}
	e := newError(http.StatusUnauthorized, "%s, which is unreachable now, asks for credentials", req.target.upstream)
	e.header = http.Header{"Www-Authenticate": challenge}
	return e
}

func (p *pings) put(upstream string, generation uint64, res *http.Response) {
	challenge := res.Header.Values("WWW-Authenticate")
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized ||
		len(strings.Join(challenge, "")) > challengeMax {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if generation == p.generation {
		p.known.Add(upstream, ping{res.StatusCode, slices.Clone(challenge), time.Now()})
	}
}

func (p *pings) get(upstream string) (ping, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known.Get(upstream)
}

// repeatPing answers a ping as its registry answered the last one, because the registry is unreachable now. It returns
// the error if no answer is remembered.
func (req *request) repeatPing(unreachable *apiError) *apiError {
	last, ok := req.pings.get(req.target.upstream)
	if req.target.endpoint == endpointBase && req.authorization == "" && !unreachable.gone &&
		req.cfg.Resolver.AnswersPings(req.target.upstream) && !slices.ContainsFunc(last.challenge, isBasic) {
		req.answerPing()
		return nil
	}
	if req.target.endpoint == endpointBase && isContainersImage(req.r) && !unreachable.gone &&
		!slices.ContainsFunc(last.challenge, isBasic) {
		// The client then asks no token service, and gets what anonymous clients may read: a new token has no grant.
		req.answerPing()
		return nil
	}
	if !ok || req.target.endpoint != endpointBase || req.authorization != "" || unreachable.gone {
		return unreachable
	}
	req.w.Header().Set(HeaderStale, strconv.FormatInt(int64(time.Since(last.at)/time.Second), 10))
	if last.status == http.StatusOK {
		req.answerPing()
		return nil
	}
	e := newError(last.status, "%s, which is unreachable now, asks for credentials", req.target.upstream)
	e.header = http.Header{"Www-Authenticate": last.challenge}
	return e
}

// answerPing answers a ping with 200.
func (req *request) answerPing() {
	req.writeHead("application/json", 2)
	if req.r.Method == http.MethodGet {
		n, _ := req.w.Write([]byte("{}"))
		req.pull.Bytes = int64(n)
	}
}
