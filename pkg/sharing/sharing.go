// Package sharing decides which clients may be given the same bytes of a web server: the rules of
// RFC 9110 and RFC 9111 for a cache that many users share.
//
// It never shares where the origin has not said, or proved to this very asker, that it would
// answer with the same bytes. Where the rules leave a doubt, the file comes straight from its
// origin. Nothing here asks, stores or waits. Start at [Decide]; docs/files.md tells the rules.
package sharing

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/secret"
)

// Share is among whom the bytes of one answer may be shared.
type Share string

// The kinds of sharing, from none to all. They travel in a [task.Spec], so that the host that asks
// the origin can check that its own answer allows as much; see [Confirm].
const (
	// Direct shares with nobody: the bytes go from the origin to this client and are not stored.
	Direct Share = "direct"
	// Flight shares among equal requests while the bytes come from the origin, and never after.
	Flight Share = "flight"
	// Equal shares among requests that are equal in every header, credentials included.
	Equal Share = "equal"
	// Proven shares among users with other credentials, each of which the origin has to prove the
	// same first: by a strong validator and by bytes.
	Proven Share = "proven"
	// Public shares whatever the Authorization, because the origin says public: with everybody where it
	// gives the same version to nobody in particular ([Request.Anonymous]), else as Proven does.
	Public Share = "public"
)

// Request is what one client asks for, as far as it may choose the bytes of the answer.
type Request struct {
	// Header holds all that is forwarded to the origin, Authorization included, by canonical name.
	Header map[string]secret.String
	// Signed are the query's parameters ("name=value") that the file's name leaves out. They sign
	// the request, so they are credentials.
	Signed []string
	// Ignore is the client's own list of such parameters.
	Ignore []string
	// Control is what the client says of caches.
	Control Control
	// Unproven says that the origin did not prove the answer the same for this client and others.
	Unproven bool
}

// Control is a client's Cache-Control (RFC 9111 §5.2.1).
type Control struct {
	// NoCache wants nothing that was stored before the request (no-cache, no-store).
	NoCache bool
	// MaxAge bounds how long ago the bytes may have left the origin, negative for no bound.
	MaxAge time.Duration
}

// Answer is what the origin says of the file to this client, to a HEAD or a small GET.
type Answer struct {
	// Header is that of the last answer, after redirects.
	Header http.Header
	// Place is the URL, without its query, that a redirect led to; empty without redirects. A
	// validator says nothing of two resources (RFC 9110 §8.8.1).
	Place string
}

// Decision is what to do with one request, and why.
type Decision struct {
	Share Share
	// Cover names what of the request chooses the bytes, beside URL, validator and length. It holds no
	// secret and nothing from which one could be guessed. Empty for a request that has nothing of it.
	Cover string
	// Prove asks for a comparison of bytes before the client gets any: see [Windows].
	Prove bool
	// Reason says for people why.
	Reason string
}

// Decide applies the rules to one request and its answer. The key keeps credentials from being guessed
// by a Decision's Cover; hosts with the same key find the same names.
func Decide(q Request, a Answer, key []byte, now time.Time) Decision {
	direct := func(format string, args ...any) Decision {
		return Decision{Share: Direct, Reason: fmt.Sprintf(format, args...)}
	}
	if err := storable(a.Header); err != nil {
		return direct("%v", err)
	}
	switch age := ageOf(a.Header); {
	case q.Control.NoCache:
		return direct("the client wants nothing that was stored")
	case q.Control.MaxAge == 0:
		return direct("the client wants nothing that has any age")
	case q.Control.MaxAge > 0 && age > q.Control.MaxAge:
		return direct("a cache on the way to the origin gave what is %s old, the client takes %s", age, q.Control.MaxAge)
	}
	strength := strengthOf(a.Header, now)
	if strength == none {
		if stale(a.Header, now) {
			return direct("the origin gives no validator, and says that the answer is stale at once")
		}
		return Decision{Share: Flight, Cover: q.equal(a, key, ""), Reason: "the origin gives nothing by which a changed file could be told"}
	}
	slot := ""
	if age := q.Control.MaxAge; age > 0 {
		// All hosts cut time alike, so those that take the same age share what was brought since.
		slot = fmt.Sprintf("%s %d", age, now.Truncate(age).Unix())
	}
	if !q.personal() {
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the request holds no credentials"}
	}
	cc := directives(a.Header)
	varied := q.varied(a.Header)
	_, public := cc["public"]
	switch {
	case q.Unproven:
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the origin does not prove it the same for other users"}
	case a.Header.Get("Set-Cookie") != "" && !public:
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the answer sets a cookie, so it may be one user's"}
	case varied != "":
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the answer varies by " + varied}
	case public && len(q.Signed) == 0 && slices.Equal(q.credentials(), []string{"Authorization"}):
		return Decision{Share: Public, Cover: q.proven(a, slot), Prove: true, Reason: "the origin says public"}
	case strength == strong:
		return Decision{Share: Proven, Cover: q.proven(a, slot), Prove: true, Reason: "the origin proves it the same by a strong ETag and by bytes"}
	}
	return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the validator is too weak for users with other credentials"}
}

// Confirm checks that the answer to a GET, which came with the named headers, allows what was decided on
// the word of a HEAD. The error says for people what it does not allow.
func Confirm(s Share, sent []string, h http.Header) error {
	if s == "" || s == Direct {
		return nil
	}
	if err := storable(h); err != nil {
		return err
	}
	q := Request{Header: map[string]secret.String{}}
	for _, name := range sent {
		q.Header[textproto.CanonicalMIMEHeaderKey(name)] = ""
	}
	switch s {
	case Public:
		if _, ok := directives(h)["public"]; !ok {
			return errors.New("the origin does not say public any more")
		}
	case Proven:
		if h.Get("Set-Cookie") != "" {
			return errors.New("the answer sets a cookie, so it may be one user's")
		}
	default:
		return nil
	}
	if name := q.varied(h); name != "" {
		return fmt.Errorf("the answer varies by %s", name)
	}
	return nil
}

// storable returns why an answer is for one request alone, nil where it is not (RFC 9111 §3, §4.1).
func storable(h http.Header) error {
	cc := directives(h)
	for _, word := range []string{"no-store", "private"} {
		// A private="field" limits itself to that field (§5.2.2.7); it is taken for the whole.
		if _, ok := cc[word]; ok {
			return fmt.Errorf("the origin says %s", word)
		}
	}
	for _, name := range fields(h, "Vary") {
		if name == "*" {
			return errors.New("the origin says that the answer varies by more than the request (Vary: *)")
		}
	}
	return nil
}

// stale reports whether an answer must not be used again without a validation, which nothing
// makes possible here (RFC 9111 §4.2, §5.2.2.4).
func stale(h http.Header, now time.Time) bool {
	cc := directives(h)
	if _, ok := cc["no-cache"]; ok {
		return true
	}
	for _, word := range []string{"s-maxage", "max-age"} {
		if v, ok := cc[word]; ok {
			n, err := strconv.ParseUint(v, 10, 31)
			return err != nil || n == 0
		}
	}
	if text := h.Get("Expires"); text != "" {
		at, err := http.ParseTime(text)
		return err != nil || !at.After(dateOf(h, now))
	}
	return false
}

// strength is what a validator is good for (RFC 9110 §8.8.1).
type strength int

const (
	none   strength = iota // nothing tells two versions apart
	weak                   // enough for equal requests
	strong                 // the same bytes, whatever the request
)

// strengthOf judges the validator that names the version: the ETag, or else the Last-Modified. A
// Last-Modified is never strong here, since it tells nothing of two users (§8.8.2.2 speaks of one
// representation); one in the second of the answer tells nothing at all, for the file may change
// again in that second.
func strengthOf(h http.Header, now time.Time) strength {
	if tag := h.Get("ETag"); tag != "" {
		if StrongETag(tag) {
			return strong
		}
		return weak
	}
	at, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil || dateOf(h, now).Sub(at) < time.Second {
		return none
	}
	return weak
}

// StrongETag reports whether a text is a strong entity tag (RFC 9110 §8.8.3).
func StrongETag(s string) bool {
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return false // that of an empty tag says as good as nothing
	}
	return !strings.ContainsFunc(s[1:len(s)-1], func(c rune) bool { return c == '"' || c <= ' ' || c == 0x7f })
}

func dateOf(h http.Header, now time.Time) time.Time {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		return at
	}
	return now
}

func ageOf(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Age"), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// open are the headers that hold no credential. Every other one may: there is an X-Api-Key, a
// PRIVATE-TOKEN, and the next origin's own.
var open = map[string]bool{
	"Accept": true, "Accept-Charset": true, "Accept-Language": true, "User-Agent": true, "Cache-Control": true, "Pragma": true,
	"Dnt": true, "Prefer": true, "Save-Data": true,
	"Accept-Encoding": true, // always identity
}

// credentials lists the forwarded headers that are or may be credentials, in order.
func (q Request) credentials() (names []string) {
	for name := range q.Header {
		if !open[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// personal reports whether an origin may know the user by the request.
func (q Request) personal() bool { return len(q.Signed) > 0 || len(q.credentials()) > 0 }

// Fingerprint names the request with its credentials, for whoever has the key.
func (q Request) Fingerprint(key []byte) string {
	h := hmac.New(sha256.New, key)
	parts := []string{"request"}
	for _, name := range sortedNames(q.Header) {
		parts = append(parts, name, q.Header[name].Reveal())
	}
	write(h, parts, sortedCopy(q.Signed), folded(q.Ignore))
	return hex.EncodeToString(h.Sum(nil))
}

// Anonymous is the request without its Authorization. What is brought with it is no user's.
func (q Request) Anonymous() Request {
	q.Header = maps.Clone(q.Header)
	delete(q.Header, "Authorization")
	return q
}

// varied is the first credential of the request that the answer says it varies by, or empty.
func (q Request) varied(h http.Header) string {
	for _, name := range fields(h, "Vary") {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if _, sent := q.Header[name]; sent && !open[name] {
			return name
		}
	}
	return ""
}

// equal is the cover that only equal requests have.
func (q Request) equal(a Answer, key []byte, slot string) string {
	if len(q.Header) == 0 && len(q.Signed) == 0 && len(q.Ignore) == 0 && a.Place == "" && slot == "" {
		return ""
	}
	// Where there is no secret to guess, hosts without a common key find the same name.
	h := sha256.New()
	if q.personal() {
		h = hmac.New(sha256.New, key)
	}
	parts := []string{"equal", slot, pathOf(a.Place)}
	for _, name := range sortedNames(q.Header) {
		parts = append(parts, name, q.Header[name].Reveal())
	}
	write(h, parts, sortedCopy(q.Signed), folded(q.Ignore))
	return hex.EncodeToString(h.Sum(nil))
}

// proven is the cover of all requests that differ in the values of their credentials alone. It
// holds the names of these, so that a request without credentials is never another's.
func (q Request) proven(a Answer, slot string) string {
	parts := []string{"proven", slot, a.Place}
	for _, name := range sortedNames(q.Header) {
		value := ""
		if open[name] {
			value = q.Header[name].Reveal()
		}
		parts = append(parts, name, value)
	}
	var names []string
	for _, pair := range q.Signed {
		name, _, _ := strings.Cut(pair, "=")
		names = append(names, name)
	}
	h := sha256.New()
	write(h, parts, folded(names), folded(q.Ignore))
	return hex.EncodeToString(h.Sum(nil))
}

// write hashes lists so that no two differ and hash alike.
func write(h io.Writer, lists ...[]string) {
	for _, list := range lists {
		fmt.Fprintf(h, "%d;", len(list))
		for _, p := range list {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
}

// pathOf takes scheme and host from a URL: mirrors that a redirect chooses between keep a file in
// one place each.
func pathOf(u string) string {
	_, rest, ok := strings.Cut(u, "://")
	if !ok {
		return u
	}
	_, path, _ := strings.Cut(rest, "/")
	return "/" + path
}

func sortedNames(m map[string]secret.String) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func sortedCopy(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	return out
}

// folded is a list of names as a set: lower case, in order, each once.
func folded(list []string) (out []string) {
	for _, s := range list {
		out = append(out, strings.ToLower(s))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fields are the elements of a list header, in all its lines (RFC 9110 §5.6.1).
func fields(h http.Header, name string) (out []string) {
	for _, line := range h.Values(name) {
		for _, f := range strings.Split(line, ",") {
			if f = strings.TrimSpace(f); f != "" {
				out = append(out, f)
			}
		}
	}
	return out
}

// directives are those of a Cache-Control, in lower case, each with its argument.
func directives(h http.Header) map[string]string {
	out := map[string]string{}
	for _, f := range fields(h, "Cache-Control") {
		name, arg, _ := strings.Cut(f, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		// Of two that contradict each other the first stands: [stale] takes the unreadable for none.
		if _, twice := out[name]; !twice {
			out[name] = strings.Trim(strings.TrimSpace(arg), `"`)
		}
	}
	return out
}

// ParseControl reads what a client's Cache-Control and Pragma say (RFC 9111 §5.2.1, §5.4). What
// cannot be read as a number of seconds counts as none at all.
func ParseControl(h http.Header) Control {
	c := Control{MaxAge: -1}
	cc := directives(h)
	for _, word := range []string{"no-cache", "no-store"} {
		if _, ok := cc[word]; ok {
			c.NoCache = true
		}
	}
	if _, ok := h["Cache-Control"]; !ok && strings.EqualFold(strings.TrimSpace(h.Get("Pragma")), "no-cache") {
		c.NoCache = true
	}
	if v, ok := cc["max-age"]; ok {
		c.MaxAge = 0
		if n, err := strconv.ParseUint(v, 10, 31); err == nil {
			c.MaxAge = time.Duration(n) * time.Second
		}
	}
	return c
}

// Stricter is the control that fulfils both.
func (c Control) Stricter(o Control) Control {
	if c.MaxAge < 0 || o.MaxAge >= 0 && o.MaxAge < c.MaxAge {
		c.MaxAge = o.MaxAge
	}
	c.NoCache = c.NoCache || o.NoCache
	return c
}

// Header is the control as a Cache-Control for the origin and the caches on the way to it, empty
// where it says nothing.
func (c Control) Header() string {
	switch {
	case c.NoCache:
		return "no-cache"
	case c.MaxAge >= 0:
		return fmt.Sprintf("max-age=%d", int64(c.MaxAge/time.Second))
	}
	return ""
}
