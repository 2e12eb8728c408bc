// Package sharing decides which clients may get the same bytes of a web server. It applies the rules of
// RFC 9110 and RFC 9111 for a cache that many users share.
//
// It never shares bytes unless the origin declares them public, or a comparison shows that the origin would
// answer this client with the same bytes. If the rules leave a doubt, the client gets the file straight from
// the origin. The package sends no request, stores nothing and never waits. Start at [Decide]; docs/files.md
// lists the rules.
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

// Share says which requests may share the bytes of one answer.
type Share string

// The kinds of sharing, from none to all. A [task.Spec] carries them, so that the host that sends the GET
// to the origin can check that its own answer allows the same; see [Confirm].
const (
	// Direct shares nothing: the bytes go from the origin to this client and are not stored.
	Direct Share = "direct"
	// Flight shares among equal requests while the download runs, and never afterwards.
	Flight Share = "flight"
	// Equal shares among requests that are equal in every header, credentials included.
	Equal Share = "equal"
	// Compared shares among users with different credentials. For each user, a strong validator and a comparison
	// of bytes must first show that the origin gives this user the same file. On the wire it is "proven".
	Compared Share = "proven"
	// Public shares regardless of Authorization, because the origin says public: with everybody if the
	// origin gives the same version without credentials ([Request.Anonymous]), else as Compared does.
	Public Share = "public"
)

// Request holds the parts of a client's request that can change the bytes of the answer.
type Request struct {
	// Header holds all headers that are forwarded to the origin, Authorization included, by canonical name.
	Header map[string]secret.String
	// Signed are the query parameters ("name=value") that are no part of the task's name. They sign the
	// request, so they count as credentials.
	Signed []string
	// Ignore is the client's own list of such parameters.
	Ignore []string
	// Control is the client's Cache-Control.
	Control Control
	// CompareFailed is true if a comparison did not show that the origin gives this client and others the same bytes.
	CompareFailed bool
}

// Control is a client's Cache-Control (RFC 9111 §5.2.1).
type Control struct {
	// NoCache refuses bytes that were stored before the request (no-cache, no-store).
	NoCache bool
	// MaxAge bounds the time since the bytes left the origin. Negative means no bound.
	MaxAge time.Duration
}

// Answer is the origin's answer about the file to this client, to a HEAD or a small GET.
type Answer struct {
	// Header is the header of the last answer, after redirects.
	Header http.Header
	// Place is the URL, without its query, that a redirect led to; empty without redirects. Equal validators
	// of two resources do not make them equal (RFC 9110 §8.8.1).
	Place string
}

// Decision says how one request is served, and why.
type Decision struct {
	Share Share
	// Cover is a hash of everything in the request that can change the bytes, apart from URL, validator and
	// length. It holds no secret, and no secret can be guessed from it. Empty if the request has no such part.
	Cover string
	// Compare requires a comparison of bytes before the client gets any: see [Windows].
	Compare bool
	// Reason explains the decision to people.
	Reason string
}

// Decide applies the rules to one request and its answer. The key prevents that credentials are guessed from
// a Decision's Cover; hosts with the same key compute the same Cover.
func Decide(q Request, a Answer, key []byte, now time.Time) Decision {
	direct := func(format string, args ...any) Decision {
		return Decision{Share: Direct, Reason: fmt.Sprintf(format, args...)}
	}
	if err := storable(a.Header); err != nil {
		return direct("%v", err)
	}
	switch age := ageOf(a.Header); {
	case q.Control.NoCache:
		return direct("the client refuses stored bytes (no-cache or no-store)")
	case q.Control.MaxAge == 0:
		return direct("the client refuses stored bytes (max-age=0)")
	case q.Control.MaxAge > 0 && age > q.Control.MaxAge:
		return direct("a cache in front of the origin sent an answer that is %s old; the client accepts %s",
			age, q.Control.MaxAge)
	}
	strength := strengthOf(a.Header, now)
	if strength == none {
		if stale(a.Header, now) {
			return direct("the origin sends no validator, and the answer is stale at once")
		}
		return Decision{
			Share: Flight, Cover: q.equal(a, key, ""),
			Reason: "the origin sends no validator, so a changed file could not be noticed",
		}
	}
	slot := ""
	if age := q.Control.MaxAge; age > 0 {
		// All hosts cut time into the same slots, so clients with the same max-age share one download per slot.
		slot = fmt.Sprintf("%s %d", age, now.Truncate(age).Unix())
	}
	if !q.personal() {
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: "the request holds no credentials"}
	}
	equal := func(reason string) Decision {
		return Decision{Share: Equal, Cover: q.equal(a, key, slot), Reason: reason}
	}
	compared := func(share Share, reason string) Decision {
		return Decision{Share: share, Cover: q.compared(a, slot), Compare: true, Reason: reason}
	}
	cc := directives(a.Header)
	varied := q.varied(a.Header)
	_, public := cc["public"]
	switch {
	case q.CompareFailed:
		return equal("no comparison shows that other users get the same file")
	case a.Header.Get("Set-Cookie") != "" && !public:
		return equal("the answer sets a cookie, so it may be for one user only")
	case varied != "":
		return equal("the answer varies by " + varied)
	case public && len(q.Signed) == 0 && slices.Equal(q.credentials(), []string{"Authorization"}):
		return compared(Public, "the origin says public")
	case strength == strong:
		return compared(Compared, "a strong ETag and a comparison of bytes show that all users get the same file")
	}
	return equal("the validator is too weak to share with users that have other credentials")
}

// Confirm checks that the answer to a GET, which was sent with the named headers, still allows the Share that
// [Decide] chose from the answer to a HEAD. The error explains to people what the answer forbids.
func Confirm(s Share, sent []string, h http.Header, now time.Time) error {
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
	case Flight:
		if stale(h, now) {
			return errors.New("the answer is stale at once, and no validator shows to others that it is the same")
		}
		return nil
	case Public:
		if _, ok := directives(h)["public"]; !ok {
			return errors.New("the origin no longer says public")
		}
	case Compared:
		if h.Get("Set-Cookie") != "" {
			return errors.New("the answer sets a cookie, so it may be for one user only")
		}
	default:
		return nil
	}
	if name := q.varied(h); name != "" {
		return fmt.Errorf("the answer varies by %s", name)
	}
	return nil
}

// storable returns the reason why an answer must not be stored, nil if it may be (RFC 9111 §3, §4.1).
func storable(h http.Header) error {
	for _, word := range []string{"no-store", "private"} {
		// private="field" limits that one field (§5.2.2.7); here it counts for the whole answer.
		if mentions(h, "Cache-Control", word) {
			return fmt.Errorf("the origin says %s", word)
		}
	}
	for _, name := range fields(h, "Vary") {
		if name == "*" {
			return errors.New("the answer varies by more than the request (Vary: *)")
		}
	}
	return nil
}

// stale reports whether an answer must not be reused without a validation (RFC 9111 §4.2, §5.2.2.4). Without
// a validator there can be none.
func stale(h http.Header, now time.Time) bool {
	if mentions(h, "Cache-Control", "no-cache") {
		return true
	}
	cc, age := directives(h), ageOf(h)
	for _, word := range []string{"s-maxage", "max-age"} {
		if v, ok := cc[word]; ok {
			life, err := seconds(v)
			return err != nil || life <= age
		}
	}
	if text := h.Get("Expires"); text != "" {
		at, err := http.ParseTime(text)
		return err != nil || at.Sub(dateOf(h, now)) <= age
	}
	return false
}

// strength says what an equal validator proves (RFC 9110 §8.8.1).
type strength int

const (
	none   strength = iota // nothing
	weak                   // the same version, for equal requests
	strong                 // the same bytes, for any request
)

// strengthOf judges the validator that names the version: the ETag, else the Last-Modified. A Last-Modified
// is never strong here, since §8.8.2.2 speaks of one representation and not of two users. A Last-Modified
// within the second of the answer proves nothing, because the file may change again in that second.
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
		return false // an empty tag tells no versions apart
	}
	return !strings.ContainsFunc(s[1:len(s)-1], func(c rune) bool { return c == '"' || c <= ' ' || c == 0x7f })
}

func dateOf(h http.Header, now time.Time) time.Time {
	if at, err := http.ParseTime(h.Get("Date")); err == nil {
		return at
	}
	return now
}

// ageOf returns for how long caches on the way held an answer (RFC 9111 §5.1), 0 if they do not say.
func ageOf(h http.Header) time.Duration {
	age, _ := seconds(h.Get("Age"))
	return age
}

// seconds reads a number of seconds. One that is too large counts as 2³¹ (RFC 9111 §1.2.2).
func seconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if errors.Is(err, strconv.ErrRange) {
		return 1 << 31 * time.Second, nil
	}
	return time.Duration(n) * time.Second, err
}

// harmless are the headers that never hold a credential. Every other header may hold one: X-Api-Key and
// PRIVATE-TOKEN do, and an origin can invent more.
var harmless = map[string]bool{
	"Accept": true, "Accept-Charset": true, "Accept-Language": true, "User-Agent": true, "Cache-Control": true,
	"Pragma": true, "Dnt": true, "Prefer": true, "Save-Data": true,
	"Accept-Encoding": true, // always identity
}

// credentials lists the forwarded headers that are or may be credentials, sorted.
func (q Request) credentials() (names []string) {
	for name := range q.Header {
		if !harmless[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// personal reports whether the request may identify a user to the origin.
func (q Request) personal() bool { return len(q.Signed) > 0 || len(q.credentials()) > 0 }

// Fingerprint is a keyed hash of the request, credentials included.
func (q Request) Fingerprint(key []byte) string {
	h := hmac.New(sha256.New, key)
	parts := []string{"request"}
	for _, name := range sortedNames(q.Header) {
		parts = append(parts, name, q.Header[name].Reveal())
	}
	write(h, parts, sortedCopy(q.Signed), folded(q.Ignore))
	return hex.EncodeToString(h.Sum(nil))
}

// Anonymous returns the request without its Authorization, so that the answer belongs to no user.
func (q Request) Anonymous() Request {
	q.Header = maps.Clone(q.Header)
	delete(q.Header, "Authorization")
	return q
}

// varied returns the first credential of the request that is in the answer's Vary, or "".
func (q Request) varied(h http.Header) string {
	for _, name := range fields(h, "Vary") {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if _, sent := q.Header[name]; sent && !harmless[name] {
			return name
		}
	}
	return ""
}

// equal returns the cover that only equal requests have.
func (q Request) equal(a Answer, key []byte, slot string) string {
	if len(q.Header) == 0 && len(q.Signed) == 0 && len(q.Ignore) == 0 && a.Place == "" && slot == "" {
		return ""
	}
	// A request without secrets needs no key, so that hosts without a common key compute the same cover.
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

// compared returns the cover that all requests have that differ only in the values of their credentials. The
// names of the credentials are part of it, so that a request without credentials has another cover.
func (q Request) compared(a Answer, slot string) string {
	parts := []string{"proven", slot, a.Place}
	for _, name := range sortedNames(q.Header) {
		value := ""
		if harmless[name] {
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

// write hashes lists with their lengths, so that different lists never give the same input.
func write(h io.Writer, lists ...[]string) {
	for _, list := range lists {
		fmt.Fprintf(h, "%d;", len(list))
		for _, p := range list {
			fmt.Fprintf(h, "%d:%s", len(p), p)
		}
	}
}

// pathOf returns a URL without scheme and host: a redirect may choose between mirrors, which all keep the
// file under the same path.
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

// folded returns a list of names as a set: lower case, sorted, each once.
func folded(list []string) (out []string) {
	for _, s := range list {
		out = append(out, strings.ToLower(s))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fields returns the elements of a list header, from all its lines (RFC 9110 §5.6.1). A comma in a quoted
// argument separates nothing.
func fields(h http.Header, name string) (out []string) {
	for _, line := range h.Values(name) {
		begin, quoted, escaped := 0, false, false
		add := func(end int) {
			if f := strings.TrimSpace(line[begin:end]); f != "" {
				out = append(out, f)
			}
			begin = end + 1
		}
		for i, c := range line {
			switch {
			case escaped:
				escaped = false
			case quoted && c == '\\':
				escaped = true
			case c == '"':
				quoted = !quoted
			case c == ',' && !quoted:
				add(i)
			}
		}
		add(len(line))
	}
	return out
}

// mentions reports whether a word stands anywhere in a header, whatever separates it: where origins and clients write
// "no-store; max-age=0" or forget a quote, the stricter reading counts.
func mentions(h http.Header, name, word string) bool {
	return slices.ContainsFunc(h.Values(name), func(line string) bool {
		return slices.ContainsFunc(strings.FieldsFunc(line, func(c rune) bool {
			return c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
		}), func(w string) bool { return strings.EqualFold(w, word) })
	})
}

// directives returns the directives of a Cache-Control, in lower case, each with its argument.
func directives(h http.Header) map[string]string {
	out := map[string]string{}
	for _, f := range fields(h, "Cache-Control") {
		name, arg, _ := strings.Cut(f, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		// The first of two contradicting directives counts.
		if _, twice := out[name]; !twice {
			out[name] = strings.Trim(strings.TrimSpace(arg), `"`)
		}
	}
	return out
}

// ParseControl reads a client's Cache-Control and Pragma (RFC 9111 §5.2.1, §5.4). A max-age that is no number
// of seconds counts as 0.
func ParseControl(h http.Header) Control {
	c := Control{MaxAge: -1}
	for _, word := range []string{"no-cache", "no-store"} {
		if mentions(h, "Cache-Control", word) {
			c.NoCache = true
		}
	}
	if _, ok := h["Cache-Control"]; !ok && mentions(h, "Pragma", "no-cache") {
		c.NoCache = true
	}
	if v, ok := directives(h)["max-age"]; ok {
		c.MaxAge, _ = seconds(v)
	}
	return c
}

// Stricter returns the control that satisfies both.
func (c Control) Stricter(o Control) Control {
	if c.MaxAge < 0 || o.MaxAge >= 0 && o.MaxAge < c.MaxAge {
		c.MaxAge = o.MaxAge
	}
	c.NoCache = c.NoCache || o.NoCache
	return c
}

// Header returns the control as a Cache-Control for the origin and the caches in front of it, "" if it has no
// bound.
func (c Control) Header() string {
	switch {
	case c.NoCache:
		return "no-cache"
	case c.MaxAge >= 0:
		return fmt.Sprintf("max-age=%d", int64(c.MaxAge/time.Second))
	}
	return ""
}
