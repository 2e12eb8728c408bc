package sharing_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/sharing"
)

var (
	now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	key = []byte("the cluster's")
)

// request reads "Name: value" lines.
func request(lines ...string) sharing.Request {
	q := sharing.Request{Header: map[string]secret.String{}, Control: sharing.Control{MaxAge: -1}}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		q.Header[name] = secret.String(value)
	}
	return q
}

func answer(lines ...string) sharing.Answer {
	h := http.Header{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		h.Add(name, value)
	}
	return sharing.Answer{Header: h}
}

func lines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "; ")
}

func TestDecide(t *testing.T) {
	const date = "Date: Fri, 01 May 2026 12:00:00 GMT"
	for _, row := range []struct {
		name, request, answer string
		want                  sharing.Share
		compare               bool
	}{
		{"a public file with a strong ETag", "", `ETag: "v1"`, sharing.Equal, false},
		{"with a weak one", "", `ETag: W/"v1"`, sharing.Equal, false},
		{"with an ETag without quotes", "", `ETag: v1`, sharing.Equal, false},
		{"with a date", "", "Last-Modified: Thu, 30 Apr 2026 12:00:00 GMT; " + date, sharing.Equal, false},
		{"with a date that is a second old", "", "Last-Modified: Fri, 01 May 2026 11:59:59 GMT; " + date,
			sharing.Equal, false},
		{"with the date of this second", "", "Last-Modified: Fri, 01 May 2026 12:00:00 GMT; " + date,
			sharing.Flight, false},
		{"with an unreadable date", "", "Last-Modified: yesterday; " + date, sharing.Flight, false},
		{"without a validator", "", date, sharing.Flight, false},
		{"without a validator, fresh for a while", "", date + "; Cache-Control: max-age=60", sharing.Flight, false},
		{"without a validator, no-cache", "", "Cache-Control: no-cache", sharing.Direct, false},
		{"without a validator, stale at once", "", "Cache-Control: max-age=0", sharing.Direct, false},
		{"without a validator, an age that is no number", "", "Cache-Control: max-age=x", sharing.Direct, false},
		{"without a validator, expired", "", "Expires: 0", sharing.Direct, false},
		{"without a validator, older than it may be", "", "Cache-Control: max-age=60; Age: 60", sharing.Direct, false},
		{"without a validator, a little younger", "", "Cache-Control: max-age=60; Age: 59", sharing.Flight, false},
		{"without a validator, s-maxage=0", "", "Cache-Control: s-maxage=0, max-age=60", sharing.Direct, false},
		{"without a validator, expired in a cache", "",
			date + "; Expires: Fri, 01 May 2026 12:01:00 GMT; Age: 61", sharing.Direct, false},
		{"without a validator, an age without end", "", "Cache-Control: max-age=60; Age: 99999999999", sharing.Direct,
			false},
		{"without a validator, a life without end", "", "Cache-Control: max-age=99999999999", sharing.Flight, false},
		{"without a validator, no-cache for a field", "", `Cache-Control: no-cache="Set-Cookie, X"`, sharing.Direct, false},
		{"no-cache with a validator, which is checked", "", `Cache-Control: no-cache; ETag: "v1"`,
			sharing.Equal, false},
		{"no-store", "", `Cache-Control: max-age=9, No-Store; ETag: "v1"`, sharing.Direct, false},
		{"private", "", `Cache-Control: private; ETag: "v1"`, sharing.Direct, false},
		{"private in a second line", "", `Cache-Control: max-age=9; Cache-Control: private; ETag: "v1"`,
			sharing.Direct, false},
		{"private for a field", "", `Cache-Control: private="X-User"; ETag: "v1"`, sharing.Direct, false},
		{"private behind a semicolon", "", `Cache-Control: max-age=9;private; ETag: "v1"`, sharing.Direct, false},
		{"no-store behind a lost quote", "", `Cache-Control: x="a, no-store; ETag: "v1"`, sharing.Direct, false},
		{"must-understand", "", `Cache-Control: must-understand, no-store; ETag: "v1"`, sharing.Direct, false},
		{"public inside an argument", "Authorization: a", `Cache-Control: x="a\", public, b"; ETag: W/"v1"`, sharing.Equal,
			false},
		{"public and private", "Authorization: a", `Cache-Control: public, private; ETag: "v1"`, sharing.Direct, false},
		{"varies by everything", "", `Vary: Accept, *; ETag: "v1"`, sharing.Direct, false},
		{"varies by the encoding", "", `Vary: Accept-Encoding; ETag: "v1"`, sharing.Equal, false},
		{"a cookie without credentials", "", `Set-Cookie: lb=1; ETag: "v1"`, sharing.Equal, false},

		{"a language", "Accept-Language: de", `ETag: "v1"`, sharing.Equal, false},
		{"a token, strong", "Authorization: a", `ETag: "v1"`, sharing.Compared, true},
		{"a token, weak", "Authorization: a", `ETag: W/"v1"`, sharing.Equal, false},
		{"a token, empty ETag", "Authorization: a", `ETag: ""`, sharing.Equal, false},
		{"a token, a date", "Authorization: a", "Last-Modified: Thu, 30 Apr 2026 12:00:00 GMT", sharing.Equal, false},
		{"a token, nothing", "Authorization: a", "", sharing.Flight, false},
		{"a token, public", "Authorization: a", `Cache-Control: public; ETag: W/"v1"`, sharing.Public, true},
		{"a token, public without a validator", "Authorization: a", "Cache-Control: public", sharing.Flight, false},
		{
			"a token, varies by it",
			"Authorization: a", `Vary: authorization; ETag: "v1"; Cache-Control: public`, sharing.Equal, false,
		},
		{"a token, varies by an absent header", "Authorization: a", `Vary: Cookie; ETag: "v1"`, sharing.Compared, true},
		{"a token, sets a cookie", "Authorization: a", `Set-Cookie: s=1; ETag: "v1"`, sharing.Equal, false},
		{"a cookie", "Cookie: s=1", `ETag: "v1"`, sharing.Compared, true},
		{"public does not cover a cookie", "Cookie: s=1", `Cache-Control: public; ETag: W/"v1"`, sharing.Equal, false},
		{"a header of unknown meaning", "X-Api-Key: k", `ETag: "v1"`, sharing.Compared, true},
		{
			"a token and another, public",
			"Authorization: a; X-Api-Key: k", `Cache-Control: public; ETag: W/"v1"`, sharing.Equal, false,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := sharing.Decide(request(lines(row.request)...), answer(lines(row.answer)...), key, now)
			assert.Equal(t, row.want, d.Share, d.Reason)
			assert.Equal(t, row.compare, d.Compare)
			assert.NotEmpty(t, d.Reason)
		})
	}
}

// Without a comparison, even a public answer is shared only among equal requests.
func TestDecideCompareFailed(t *testing.T) {
	for _, says := range []string{"public", "max-age=60"} {
		q := request("Authorization: a")
		q.CompareFailed = true
		d := sharing.Decide(q, answer(`ETag: "v1"`, "Cache-Control: "+says), key, now)
		assert.Equal(t, sharing.Equal, d.Share)
		other := request("Authorization: b")
		other.CompareFailed = true
		assert.NotEqual(t, d.Cover, sharing.Decide(other, answer(`ETag: "v1"`, "Cache-Control: "+says), key, now).Cover)
	}
}

// A client's Cache-Control bounds the age of the bytes that it gets.
func TestDecideCacheControl(t *testing.T) {
	strong := answer(`ETag: "v1"`)
	old := answer(`ETag: "v1"`, "Age: 90")
	at := func(a sharing.Answer, c sharing.Control, when time.Time) sharing.Decision {
		q := request()
		q.Control = c
		return sharing.Decide(q, a, key, when)
	}
	assert.Equal(t, sharing.Direct, at(strong, sharing.Control{NoCache: true, MaxAge: -1}, now).Share)
	assert.Equal(t, sharing.Direct, at(strong, sharing.Control{}, now).Share, "max-age=0")
	assert.Equal(t, sharing.Direct, at(old, sharing.Control{MaxAge: time.Minute}, now).Share,
		"a cache on the way is too old")
	minute := at(strong, sharing.Control{MaxAge: time.Minute}, now)
	assert.Equal(t, sharing.Equal, minute.Share)
	assert.Equal(t, minute.Cover, at(strong, sharing.Control{MaxAge: time.Minute}, now.Add(time.Minute-1)).Cover)
	later := at(strong, sharing.Control{MaxAge: time.Minute}, now.Add(time.Minute))
	assert.NotEqual(t, minute.Cover, later.Cover, "never older than a minute")
	assert.NotEqual(t, minute.Cover, at(strong, sharing.Control{MaxAge: time.Hour}, now).Cover)
}

// Requests share a cover only where they may share bytes.
func TestCover(t *testing.T) {
	cover := func(q sharing.Request, a ...string) string {
		return sharing.Decide(q, answer(a...), key, now).Cover
	}
	strong, weak := `ETag: "v1"`, `ETag: W/"v1"`
	assert.Empty(t, cover(request(), strong), "an empty request has an empty cover")
	alice, bob := request("Authorization: alice"), request("Authorization: bob")
	assert.NotEqual(t, cover(alice, weak), cover(bob, weak))
	assert.Equal(t, cover(alice, strong), cover(bob, strong), "Prove then guards the bytes")
	assert.NotEmpty(t, cover(alice, strong), "a request without credentials has another cover")
	assert.NotEqual(t, cover(alice, strong), cover(request("Cookie: alice"), strong))
	x, y := request("Authorization: a", "Accept: x"), request("Authorization: b", "Accept: y")
	assert.NotEqual(t, cover(x, strong), cover(y, strong))
	assert.NotEqual(t, cover(alice, strong, "Vary: Authorization"), cover(bob, strong, "Vary: Authorization"))
	assert.Equal(t, cover(alice, weak, "Cache-Control: public"), cover(bob, weak, "Cache-Control: public"))
	assert.NotEmpty(t, cover(alice, strong, "Cache-Control: public"))
	assert.Empty(t, cover(alice.Anonymous(), strong, "Cache-Control: public"))
	assert.Contains(t, alice.Header, "Authorization")
	assert.NotEqual(t, cover(request("Accept-Language: de"), strong), cover(request("Accept-Language: en"), strong))
	assert.NotEqual(t, cover(request("Accept-Language: de"), strong), cover(request(), strong))
	assert.Equal(t, cover(request("Accept: a", "Accept-Language: de"), strong),
		cover(request("Accept-Language: de", "Accept: a"), strong))

	other := sharing.Decide(alice, answer(weak), []byte("another cluster's"), now)
	assert.NotEqual(t, cover(alice, weak), other.Cover, "without the key, passwords cannot be tried")
	plain := request("Accept: a")
	assert.Equal(t, cover(plain, weak), sharing.Decide(plain, answer(weak), []byte("another"), now).Cover)

	signed, ignored := request(), request()
	signed.Signed, ignored.Ignore = []string{"sig=1"}, []string{"*"}
	again := request()
	again.Signed = []string{"SIG=2"}
	assert.NotEqual(t, cover(request(), strong), cover(signed, strong))
	assert.NotEqual(t, cover(request(), strong), cover(ignored, strong),
		"a client's own list changes only its own cover")
	assert.Equal(t, cover(signed, strong), cover(again, strong))
	assert.NotEqual(t, cover(signed, weak), cover(again, weak))
	tricky := request()
	tricky.Signed, tricky.Ignore = []string{"a"}, []string{"b"}
	trickier := request()
	trickier.Signed = []string{"a", "b"}
	assert.NotEqual(t, cover(tricky, weak), cover(trickier, weak))

	at := func(q sharing.Request, place string) string {
		a := answer(strong)
		a.Place = place
		return sharing.Decide(q, a, key, now).Cover
	}
	assert.NotEqual(t, at(request(), "http://a/1"), at(request(), "http://a/2"), "a validator belongs to one resource")
	assert.Equal(t, at(request(), "http://a/1"), at(request(), "http://b/1"), "mirrors")
	assert.NotEqual(t, at(alice, "http://a/1"), at(bob, "http://b/1"))
}

func TestConfirm(t *testing.T) {
	sent := []string{"Authorization", "Accept-Encoding"}
	for _, row := range []struct {
		share  sharing.Share
		answer string
		ok     bool
	}{
		{sharing.Equal, "", true},
		{sharing.Equal, "Vary: Authorization", true},
		{sharing.Equal, "Cache-Control: private", false},
		{sharing.Flight, "Cache-Control: no-store", false},
		{sharing.Flight, "Cache-Control: max-age=60", true},
		{sharing.Flight, "Cache-Control: no-cache", false},
		{sharing.Flight, "Cache-Control: max-age=60; Age: 61", false},
		{sharing.Equal, "Cache-Control: no-cache", true},
		{sharing.Equal, "Vary: *", false},
		{sharing.Compared, "Vary: Accept-Encoding", true},
		{sharing.Compared, "Vary: Authorization", false},
		{sharing.Compared, "Set-Cookie: a=b", false},
		{sharing.Public, "", false},
		{sharing.Public, "Cache-Control: public", true},
		{sharing.Public, "Cache-Control: public; Vary: authorization", false},
		{"", "Cache-Control: private", true},
	} {
		err := sharing.Confirm(row.share, sent, answer(lines(row.answer)...).Header, now)
		assert.Equal(t, row.ok, err == nil, "%s %q: %v", row.share, row.answer, err)
	}
}

func TestForwardable(t *testing.T) {
	for _, name := range []string{
		"Host", "host", "Forwarded", "X-Forwarded-Host", "X-Forwarded", "X_Forwarded_Host", "x-original-url",
		"X-Rewrite-Url", "X-HTTP-Method-Override", "X-Host", "X-Real-IP", "Range", "If-None-Match", "If-Range",
		"Connection", "Transfer-Encoding", "Content-Length", "Expect", "Upgrade", "Te", "Proxy-Authorization", "Via",
		"Accept-Encoding", "Content-Type", "Max-Forwards", "True-Client-Ip", "Cf-Connecting-Ip", "Sec-Fetch-Site",
		"Origin", "Darter-Forward-Host", "X-Orig-Host", "X-Vhost", "X-Target-Url", "X-Requested-Host",
		"X-Request-Url", "Request-Url", "X-Base-Url", "Host-Override", "X-Method",
	} {
		var refused *sharing.HeaderError
		require.ErrorAs(t, sharing.Forwardable(name), &refused, name)
		assert.Contains(t, refused.Error(), name)
		assert.Contains(t, refused.Error(), "--direct")
	}
	for _, name := range []string{
		"Authorization", "Cookie", "Accept", "Accept-Language", "User-Agent", "X-Api-Key", "Private-Token", "Job-Token",
		"X-Jfrog-Art-Api", "X-Amz-Date", "X-Amz-Security-Token", "X-Goog-User-Project", "X-Ms-Version", "Referer",
		"Cache-Control", "X-Word", "Hostname", "X-Request-Id", "X-Requested-With",
	} {
		assert.NoError(t, sharing.Forwardable(name), name)
	}
}

func TestWindows(t *testing.T) {
	const k = 64 << 10
	last := func(n int64) int64 { return n - 1 }
	first := func(int64) int64 { return 0 }
	assert.Equal(t, []sharing.Window{{0, 10}}, sharing.Windows(10, false, last))
	assert.Equal(t, []sharing.Window{{0, 3 * k}}, sharing.Windows(3*k, true, last))
	for _, length := range []int64{3*k + 1, 1 << 20, 1 << 30} {
		for _, draw := range []func(int64) int64{first, last} {
			list := sharing.Windows(length, true, draw)
			require.Len(t, list, 3)
			assert.Equal(t, sharing.Window{0, k}, list[0])
			assert.Equal(t, sharing.Window{length - k, k}, list[1])
			assert.GreaterOrEqual(t, list[2].Offset, int64(k))
			assert.LessOrEqual(t, list[2].Offset+k, length-k)
			for _, w := range sharing.Windows(length, false, draw) {
				assert.LessOrEqual(t, w.Offset+w.Length, min(length, 16<<20), "the comparison may wait for these bytes")
			}
			tail, later := sharing.Tail(length, false)
			assert.Equal(t, sharing.Window{length - k, k}, tail)
			assert.NotEqual(t, later, slices.Contains(sharing.Windows(length, false, draw), tail),
				"the tail is compared either at first or later")
			_, later = sharing.Tail(length, true)
			assert.False(t, later)
		}
	}
}

func TestParseControl(t *testing.T) {
	for text, want := range map[string]sharing.Control{
		"": {MaxAge: -1}, "max-stale": {MaxAge: -1},
		"no-cache": {NoCache: true, MaxAge: -1}, "no-store": {NoCache: true, MaxAge: -1},
		"max-age=60": {MaxAge: time.Minute}, "max-age=0": {}, "max-age=x": {},
		"max-age=60;no-cache": {NoCache: true}, "max-age=99999999999": {MaxAge: 1 << 31 * time.Second},
	} {
		h := http.Header{}
		if text != "" {
			h.Set("Cache-Control", text)
		}
		assert.Equal(t, want, sharing.ParseControl(h), text)
	}
	assert.True(t, sharing.ParseControl(http.Header{"Pragma": {"no-cache"}}).NoCache)
	assert.True(t, sharing.ParseControl(http.Header{"Pragma": {"x, No-Cache"}}).NoCache)
	a := sharing.Control{MaxAge: time.Hour}.Stricter(sharing.Control{NoCache: true, MaxAge: time.Minute})
	assert.Equal(t, sharing.Control{NoCache: true, MaxAge: time.Minute}, a)
	assert.Equal(t, "no-cache", a.Header())
	assert.Equal(t, "max-age=60", sharing.Control{MaxAge: time.Minute}.Header())
	assert.Empty(t, sharing.Control{MaxAge: -1}.Header())
}
