package httporigin

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A place is part of a file's name in the cluster: another spelling is another task.
func TestPlaceOf(t *testing.T) {
	for text, want := range map[string]string{
		"https://u:p@h.test:8443/a%2Fb?sig=x#f": "https://h.test:8443/a%2Fb",
		"http://h.test/a/b":                     "http://h.test/a/b",
		"http://h.test/a!b(c)":                  "http://h.test/a!b(c)",
		"http://h.test/m%40b/%7Euser":           "http://h.test/m%40b/%7Euser",
		"http://h.test":                         "http://h.test",
	} {
		u, err := url.Parse(text)
		require.NoError(t, err)
		assert.Equal(t, want, placeOf(u))
	}
}
