package registryproxy

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
)

// greetingsMax is how many registries' greetings are remembered; where any registry may be
// named, whoever names them does not fill the memory.
const greetingsMax = 256

// challengeMax bounds the challenge of one of them, in bytes.
const challengeMax = 4 << 10

// greeting is how a registry answered the version check of somebody without credentials: who
// may come in, or what to bring.
type greeting struct {
	status    int
	challenge []string
	at        time.Time
}

// greetings are the last ones, by registry, for the time when one is unreachable: dockerd and
// crane put the version check before everything else, and without an answer would not ask for
// what the swarm could give them.
type greetings struct {
	// mu is held to look or to note.
	mu    sync.Mutex
	known map[string]greeting
}

func (g *greetings) note(upstream string, res *http.Response) {
	challenge := res.Header.Values("WWW-Authenticate")
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized || len(strings.Join(challenge, "")) > challengeMax {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known[upstream]; !ok && len(g.known) >= greetingsMax {
		return
	}
	if g.known == nil {
		g.known = map[string]greeting{}
	}
	g.known[upstream] = greeting{res.StatusCode, slices.Clone(challenge), time.Now()}
}

func (g *greetings) of(upstream string) (greeting, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	last, ok := g.known[upstream]
	return last, ok
}

// passwordOfDefault reports whether the client brought a password that answers the default's
// challenge, although it names another registry in the path. A client that takes the mirror for
// one registry sends the login that it has for it everywhere, and the other registry must
// not see it. (A token is for the registry that gave it, and of no use to another.)
func (x *exchange) passwordOfDefault() bool {
	scheme, _, _ := strings.Cut(x.authorization, " ")
	if !strings.EqualFold(scheme, "Basic") || x.t.prefix == "" || x.t.namespace != "" || firstOf(x.r.Header, HeaderUpstream, HeaderUpstreamDragonfly) != "" {
		return false
	}
	standard, err := oci.ParseHost(x.fallback)
	if err != nil || standard == x.t.upstream || x.cfg.Allow(standard) != nil {
		return false
	}
	last, ok := x.greetings.of(standard)
	if !ok {
		res, err := forward(x.ctx, x.cfg.Upstream, source.RegistryRequest{Upstream: standard, Method: http.MethodGet, Path: target{}.path()})
		if err != nil {
			return true
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusUnauthorized {
			return true // it is in trouble, and did not say
		}
		x.greetings.note(standard, res)
		last = greeting{challenge: res.Header.Values("WWW-Authenticate")}
	}
	return slices.ContainsFunc(last.challenge, func(c string) bool { return len(c) >= len(scheme) && strings.EqualFold(c[:len(scheme)], scheme) })
}

// greetAgain answers a version check as its registry last did, because that is unreachable now
// for the reason given; with that reason when there is nothing to repeat.
func (x *exchange) greetAgain(why *refusal) *refusal {
	last, ok := x.greetings.of(x.t.upstream)
	if !ok || x.t.endpoint != endpointBase || x.authorization != "" || why.gone {
		return why
	}
	x.w.Header().Set(HeaderStale, strconv.FormatInt(int64(time.Since(last.at)/time.Second), 10))
	if last.status == http.StatusOK {
		x.welcome()
		return nil
	}
	e := refuse(last.status, "%s, which is unreachable now, asks for credentials", x.t.upstream)
	e.header = http.Header{"Www-Authenticate": last.challenge}
	return e
}

// welcome answers a version check with 200.
func (x *exchange) welcome() {
	x.head("application/json", 2)
	if x.r.Method == http.MethodGet {
		n, _ := x.w.Write([]byte("{}"))
		x.pull.Bytes = int64(n)
	}
}
