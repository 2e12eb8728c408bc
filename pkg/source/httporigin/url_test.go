package httporigin_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source/httporigin"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://files.test/a/b":         "https://files.test/a/b",
		"  http://files.test/a\n":        "http://files.test/a",
		"http://files.test/a b?c=d e":    "http://files.test/a%20b?c=d%20e",
		"http://files.test/ä?ä=%41&b=+":  "http://files.test/%C3%A4?%C3%A4=%41&b=+",
		"http://[::1]:5000/x":            "http://[::1]:5000/x",
		"http://u:p@files.test:65535/x?": "http://u:p@files.test:65535/x?",
	} {
		u, err := httporigin.ParseURL(text)
		require.NoError(t, err)
		assert.Equal(t, want, u.String())
	}
}

// The error names the URL and shows no password and no signature of it.
func TestParseURLErrors(t *testing.T) {
	for text, want := range map[string]string{
		"http://files.test /a":           `http://files.test /a: not a URL: invalid character " " in host name`,
		"http://files.test/%zz?sig=word": `http://files.test/%zz: not a URL: invalid URL escape "%zz"`,
		"http://[::1/x":                  "http://[::1/x: not a URL: missing ']' in host",
		"http://files.test:x/":           `http://files.test:x/: not a URL: invalid port ":x" after host`,
		"http://files.test:70000/":       "http://files.test:70000/: the port 70000 is larger than 65535",
		"files.test/a?sig=word":          "files.test/a: only http:// and https:// URLs",
		"localhost:80/a":                 "localhost:80/a: only http:// and https:// URLs",
		"http:///a":                      "http:///a: only http:// and https:// URLs",
		"http://:80/a":                   "http://:80/a: the URL names no host",
		"":                               `"": only http:// and https:// URLs`,
		"http://a/\x01b":                 `"http://a/\x01b": not a URL: net/url: invalid control character in URL`,
		"http://user:pass@files.test:x/": "http://files.test:x/: not a URL; write",
		"http://user:pa/pass@h.test/%zz": "http://h.test/%zz: not a URL; write",
		"user:pass@files.test/a":         "files.test/a: only http:// and https:// URLs",
	} {
		_, err := httporigin.ParseURL(text)
		var bad *httporigin.URLError
		require.ErrorAs(t, err, &bad, text)
		assert.Contains(t, err.Error(), want, text)
		assert.NotContains(t, bad.URL, "pass")
		assert.NotContains(t, err.Error(), "sig")
	}
}
