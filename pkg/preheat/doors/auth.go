package doors

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/telemetry"
)

// SecretMin is the least number of characters of a credential. A shorter one can be guessed.
const SecretMin = 16

// Credentials are what a request must have, any one of them.
type Credentials struct {
	// Tokens are for "Authorization: Bearer TOKEN". Harbor calls this mode OAuth.
	Tokens []secret.String
	// User and Password are for Basic authentication; empty for none.
	User     string
	Password secret.String
	// Header is the name of a header of its own, Value its value; empty for none. Harbor calls this mode Custom.
	Header string
	Value  secret.String
}

// ErrNoCredential reports doors that would be open to everybody.
var ErrNoCredential = errors.New("the preheat API has no credential, and everybody could order preheats: set " +
	"preheat.doors.tokenFile, or username and passwordFile, or header and headerFile")

// Check returns an error for credentials that would let everybody in; it says what to set.
func (c Credentials) Check() error {
	if len(c.Tokens) == 0 && c.User == "" && c.Header == "" {
		return ErrNoCredential
	}
	for key, values := range map[string][]secret.String{
		"tokenFile": c.Tokens, "passwordFile": c.of(c.User, c.Password), "headerFile": c.of(c.Header, c.Value),
	} {
		for _, v := range values {
			if n := len(v.Reveal()); n < SecretMin {
				return fmt.Errorf("preheat.doors.%s: %d characters can be guessed; use %d or more, for example of: openssl "+
					"rand -hex 32", key, n, SecretMin)
			}
			if !httpguts.ValidHeaderFieldValue(v.Reveal()) {
				return fmt.Errorf("preheat.doors.%s: it has characters that a header cannot have", key)
			}
		}
	}
	if c.Header != "" && !httpguts.ValidHeaderFieldName(c.Header) {
		return fmt.Errorf("preheat.doors.header: %q is no name of a header", c.Header)
	}
	return nil
}

// of is the secret that belongs to a name, none without a name.
func (Credentials) of(name string, value secret.String) []secret.String {
	if name == "" {
		return nil
	}
	return []secret.String{value}
}

// allow reports whether a request has one of the credentials. It compares all of them, each in a time that depends on
// neither text.
func (c Credentials) allow(r *http.Request) bool {
	ok := 0
	bearer := r.Header.Get("Authorization")
	if scheme, rest, found := strings.Cut(bearer, " "); found && strings.EqualFold(scheme, "Bearer") {
		bearer = strings.TrimSpace(rest)
	}
	for _, t := range c.Tokens {
		ok |= equal(bearer, t.Reveal())
	}
	if user, password, given := r.BasicAuth(); given && c.User != "" {
		ok |= equal(user, c.User) & equal(password, c.Password.Reveal())
	}
	if c.Header != "" {
		ok |= equal(r.Header.Get(c.Header), c.Value.Reveal())
	}
	return ok == 1
}

// equal compares texts in a time that does not depend on their common beginning or length.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}

// guard lets requests with a right credential pass, at a bounded rate. It comes before the router, so that no path
// answers without one.
func (d *Doors) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		door := doorOf(r.URL.Path)
		switch {
		case !d.settings.Load().Credentials.allow(r):
			d.deny(w, r, door)
		case !d.requests.Allow():
			d.cfg.Metrics.Count(door, telemetry.EntryLimited)
			w.Header().Set("Retry-After", "1")
			problem(w, http.StatusTooManyRequests, "too many requests to the preheat API of this supernode")
		default:
			h.ServeHTTP(w, r)
		}
	})
}

func (d *Doors) deny(w http.ResponseWriter, r *http.Request, door telemetry.Door) {
	d.cfg.Metrics.Count(door, telemetry.EntryDenied)
	if !d.denied.Allow() {
		w.Header().Set("Retry-After", "10")
		problem(w, http.StatusTooManyRequests, "too many requests without a right credential")
		return
	}
	if d.lines.Allow() {
		d.log.Warn("a request to the preheat API has no right credential", "door", string(door), "remote", r.RemoteAddr)
	}
	w.Header().Add("WWW-Authenticate", `Bearer realm="darter preheat"`)
	if d.settings.Load().Credentials.User != "" {
		w.Header().Add("WWW-Authenticate", `Basic realm="darter preheat"`)
	}
	problem(w, http.StatusUnauthorized, "the credential is missing or wrong; set the one of this supernode's "+
		"preheat.doors (in Harbor: Distributions, the instance's auth mode, or the webhook's auth header)")
}
