package httporigin

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// URLError reports a text that is not the URL of a file.
type URLError struct {
	// URL is the text without user, password and query, and quoted if it cannot be printed.
	URL, Reason string
}

func (e *URLError) Error() string { return e.URL + ": " + e.Reason }

// ParseURL parses the absolute http or https URL of a file. White space around it does not count, and bytes of its
// query that no request can hold (a space, or letters outside ASCII) are encoded, as those of a path are. The error is
// a *[URLError].
func ParseURL(text string) (*url.URL, error) {
	text = strings.TrimSpace(text)
	fail := func(format string, args ...any) (*url.URL, error) {
		return nil, &URLError{URL: printable(text), Reason: fmt.Sprintf(format, args...)}
	}
	u, err := url.Parse(text)
	if err != nil {
		var parse *url.Error
		// The parser may take a part of a password for a port and repeat it.
		if errors.As(err, &parse) && !strings.Contains(text, "@") {
			return fail("not a URL: %v; write for example https://host/path/file", parse.Err)
		}
		return fail("not a URL; write for example https://USER:PASSWORD@host/path/file, with %%XX for special characters")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fail("only http:// and https:// URLs can be downloaded")
	}
	if u.Hostname() == "" {
		return fail("the URL names no host")
	}
	if port := u.Port(); port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fail("the port %s is larger than 65535", port)
		}
	}
	u.RawQuery = encodeQuery(u.RawQuery)
	return u, nil
}

// encodeQuery encodes the bytes that a request line must not hold (RFC 9112 §3.2), and no other.
func encodeQuery(query string) string {
	var b strings.Builder
	for _, c := range []byte(query) {
		if c <= ' ' || c >= 0x7f {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// printableMax bounds the bytes of a printed text.
const printableMax = 300

// printable returns what may be printed of a text that may be no URL: nothing before the last @ of its host and path,
// and no query.
func printable(text string) string {
	text, _, _ = strings.Cut(text, "?")
	text, _, _ = strings.Cut(text, "#")
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		scheme, _, ok := strings.Cut(text[:at], "://")
		if text = text[at+1:]; ok {
			text = scheme + "://" + text
		}
	}
	if len(text) > printableMax {
		text = text[:printableMax] + "…"
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}
