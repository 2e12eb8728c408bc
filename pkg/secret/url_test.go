package secret_test

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/secret"
)

func TestPrintableURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://files.test/a/b.bin":                        "https://files.test/a/b.bin",
		"https://user:hunter2@h.test:8443/a%20b?sig=x#frag": "https://h.test:8443/a%20b",
		"https://h.test/a%2Fb":                              "https://h.test/a%2Fb",
		"https://h.test?token=x":                            "https://h.test",
		"https://h.test/a?":                                 "https://h.test/a",
		"https://[::1]:5000/v2/":                            "https://[::1]:5000/v2/",
		"https:user:hunter2@h.test":                         "https:",
		"/path/only?x":                                      "/path/only",
		"":                                                  "",
	} {
		u, err := url.Parse(in)
		require.NoError(t, err)
		assert.Equal(t, want, secret.PrintableURL(u), in)
	}
	assert.Empty(t, secret.PrintableURL(nil))
	assert.Equal(t, "https://h.test/a", secret.PrintableURLText("https://user:hunter2@h.test/a?b"))
	assert.Equal(t, "[redacted]", secret.PrintableURLText("https://user:hunter2@h.test:port/"))
}
