package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/darter-io/darter/pkg/secret"
)

// SecretsMax bounds the secrets that a host accepts at once. A change of the secret needs two.
const SecretsMax = 4

// ErrSecretNeedsRestart means that a running host cannot get its first secret, or lose its last one: its ports serve
// TLS, or do not, from the start on.
var ErrSecretNeedsRestart = errors.New("a cluster secret is added or removed by a restart only")

// secrets is what a host derives from its cluster secrets. It is never changed.
type secrets struct {
	secure bool
	// all are the authorities of the secrets, the first secret's first. Without a secret it is the public one.
	all    []*authority
	roots  *x509.CertPool
	gossip []secret.String
	names  secret.String
}

func (s *secrets) first() *authority { return s.all[0] }

// by returns the authority whose certificate ends a verified chain, or nil.
func (s *secrets) by(chains [][]*x509.Certificate) *authority {
	for _, chain := range chains {
		for _, a := range s.all {
			if len(chain) > 0 && chain[len(chain)-1].Equal(a.certificate) {
				return a
			}
		}
	}
	return nil
}

// accepts reports whether one of the secrets has a fingerprint.
func (s *secrets) accepts(fingerprint string) bool {
	return slices.ContainsFunc(s.all, func(a *authority) bool { return a.fingerprint() == fingerprint })
}

// deriveSecrets derives everything from a text with one secret in each line. The error wraps [ErrWeakSecret].
func deriveSecrets(text secret.String) (*secrets, error) {
	list, err := lines(text)
	if err != nil {
		return nil, err
	}
	s := &secrets{secure: len(list) > 0, roots: x509.NewCertPool()}
	if !s.secure {
		list = []string{""}
	}
	for _, one := range list {
		a, err := deriveAuthority(one)
		if err != nil {
			return nil, err
		}
		s.all = append(s.all, &a)
		s.roots.AddCert(a.certificate)
		if s.secure {
			s.gossip = append(s.gossip, deriveGossipKey(one))
		}
	}
	if s.secure {
		s.names = secret.String(derive(list[0], infoNames, 32))
	}
	return s, nil
}

// lines returns the secrets of a text, each once and in order; none for an empty text.
func lines(text secret.String) (list []string, err error) {
	all := strings.Split(strings.TrimSpace(text.Reveal()), "\n")
	for n, line := range all {
		line = strings.TrimSpace(line)
		if line == "" && len(all) > 1 {
			continue
		}
		one, err := clean(secret.String(line))
		if err == nil && one == "" && text != "" {
			_, err = clean(text) // it says that there is white space only
		}
		if err != nil {
			if len(all) > 1 {
				return nil, fmt.Errorf("cluster secret in line %d of %d: %w; each line is a secret of its own, so "+
					"join the lines if they are one", n+1, len(all), err)
			}
			return nil, fmt.Errorf("cluster secret: %w", err)
		}
		if one != "" && !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	if len(list) > SecretsMax {
		return nil, fmt.Errorf("%w: there are %d, and a host accepts %d at most; is this the right file?",
			ErrWeakSecret, len(list), SecretsMax)
	}
	return list, nil
}

// trusted returns the secrets in force.
func (i *Identity) trusted() *secrets { return i.secrets.Load() }

// SetSecret changes the secrets of a running host; text has the form of [Config].Secret. The next handshake and the
// next signing certificate use the first one. Connections stay open; [Identity.CloseRemoved] ends those that removed
// secrets proved. Keys of coordinators that a Verifier knows stay known, because a secret that was accepted vouched
// for them. It reports whether anything changed. The error wraps [ErrWeakSecret] or [ErrSecretNeedsRestart]; then
// nothing changed.
func (i *Identity) SetSecret(text secret.String) (changed bool, err error) {
	next, err := i.checkSecret(text)
	if err != nil {
		return false, err
	}
	i.changing.mu.Lock()
	defer i.changing.mu.Unlock()
	was := i.trusted()
	if slices.EqualFunc(was.all, next.all, (*authority).equal) {
		return false, nil
	}
	for n, a := range next.all { // the same authority stays the same value
		if at := slices.IndexFunc(was.all, a.equal); at >= 0 {
			next.all[n] = was.all[at]
		}
	}
	i.secrets.Store(next)
	for _, v := range i.changing.verifiers {
		v.follow(next)
	}
	return true, nil
}

// CheckSecret returns the error that [Identity.SetSecret] would return, and changes nothing.
func (i *Identity) CheckSecret(text secret.String) error {
	_, err := i.checkSecret(text)
	return err
}

func (i *Identity) checkSecret(text secret.String) (*secrets, error) {
	next, err := deriveSecrets(text)
	switch {
	case err != nil:
		return nil, err
	case next.secure != i.secure:
		return nil, ErrSecretNeedsRestart
	}
	return next, nil
}

// SecretUse tells how a secret is used, without the secret.
type SecretUse struct {
	// Fingerprint names the secret in 12 hexadecimal digits, the same on every host. It is not secret.
	Fingerprint string
	// First is true for the secret that this host itself uses.
	First bool
	// Removed is true for a secret that is accepted no more, and whose connections have not ended yet.
	Removed bool
	// Connections counts the open connections whose other ends proved this secret, Handshakes all since the start.
	Connections int
	Handshakes  int64
	// Last is the time of the last handshake by the wall clock, zero if there was none. Address is its other end.
	Last    time.Time
	Address string
}

// Secrets returns the secrets in force, the first one first, and those of open connections; none without a secret.
func (i *Identity) Secrets() (list []SecretUse) {
	if !i.secure {
		return nil
	}
	now := i.trusted()
	for n, a := range now.all {
		list = append(list, SecretUse{Fingerprint: a.fingerprint(), First: n == 0})
	}
	return i.sessions.fill(list)
}

// Accepted returns the fingerprints of the secrets in force, the first one first; none without a secret.
func (i *Identity) Accepted() (list []string) {
	if !i.secure {
		return nil
	}
	for _, a := range i.trusted().all {
		list = append(list, a.fingerprint())
	}
	return list
}

// Stale reports whether a connection should end after its current request, so that its ends prove themselves with the
// secrets in force: this host showed another secret than the first one, or the other end proved a removed one.
func (i *Identity) Stale(c net.Conn) bool {
	g := gatherOf(c)
	if g == nil {
		return false
	}
	now := i.trusted()
	i.sessions.mu.Lock()
	defer i.sessions.mu.Unlock()
	s, ok := i.sessions.open[g]
	return ok && s.stale(now)
}

// AnyStale reports whether any open connection is stale; see [Identity.Stale].
func (i *Identity) AnyStale() bool {
	now := i.trusted()
	i.sessions.mu.Lock()
	defer i.sessions.mu.Unlock()
	for _, s := range i.sessions.open {
		if s.stale(now) {
			return true
		}
	}
	return false
}

// CloseRemoved closes the connections whose other ends proved a secret that is not accepted any more, and returns
// their number.
func (i *Identity) CloseRemoved() int {
	now := i.trusted()
	var closing []*gather
	i.sessions.mu.Lock()
	for g, s := range i.sessions.open {
		if !now.accepts(s.proved) {
			closing = append(closing, g)
		}
	}
	i.sessions.mu.Unlock()
	for _, g := range closing {
		g.Close()
	}
	return len(closing)
}

// sessions are the open connections of members, by the secrets that both ends showed.
type sessions struct {
	now func() time.Time
	// mu is held to add, remove or count connections.
	mu   sync.Mutex
	open map[*gather]session
	uses map[string]SecretUse // by fingerprint
}

// session holds the fingerprints of the secrets that this host showed and that the other end proved.
type session struct{ shown, proved string }

func (s session) stale(now *secrets) bool {
	return s.shown != now.first().fingerprint() || !now.accepts(s.proved)
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, open: make(map[*gather]session), uses: make(map[string]SecretUse)}
}

// begin records a complete verification. Without a gather, the connection is counted as a handshake only.
func (s *sessions) begin(g *gather, shown, proved string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	use := s.uses[proved]
	use.Handshakes++
	use.Last = s.now()
	if g != nil {
		use.Address = g.RemoteAddr().String()
		if !g.ended {
			s.open[g] = session{shown, proved}
		}
	}
	if _, known := s.uses[proved]; known || len(s.uses) < usesMax {
		s.uses[proved] = use
	}
}

// usesMax bounds the secrets of which a process counts the handshakes.
const usesMax = 64

// end forgets a connection.
func (s *sessions) end(g *gather) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.ended = true
	delete(s.open, g)
}

// fill adds counts to a list of the secrets in force, and the secrets of further connections.
func (s *sessions) fill(list []SecretUse) []SecretUse {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := map[string]int{}
	for _, one := range s.open {
		open[one.proved]++
	}
	for n, u := range list {
		use := s.uses[u.Fingerprint]
		use.Fingerprint, use.First, use.Connections = u.Fingerprint, u.First, open[u.Fingerprint]
		list[n] = use
		delete(open, u.Fingerprint)
	}
	for _, fingerprint := range slices.Sorted(maps.Keys(open)) {
		use := s.uses[fingerprint]
		use.Fingerprint, use.Removed, use.Connections = fingerprint, true, open[fingerprint]
		list = append(list, use)
	}
	return list
}

// gatherOf returns the gather that others wrap, or nil.
func gatherOf(c net.Conn) *gather {
	for range 4 {
		if g, ok := c.(*gather); ok {
			return g
		}
		under, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = under.NetConn()
	}
	return nil
}
