package hostmatch_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/hostmatch"
)

func TestMatch(t *testing.T) {
	for _, row := range []struct {
		pattern, host string
		want          bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "EXAMPLE.com", true},
		{"Example.COM", "example.com", true},
		{"example.com", "a.example.com", false},
		{"example.com", "example.com.", false},
		{"example.com", "example.com:443", false},
		{"example.com", "badexample.com", false},

		{"*.example.com", "a.example.com", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.EXAMPLE.com", "a.example.COM", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "..example.com", false},
		{"*.example.com", "a..example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.example.com", "a.example.com.", false},
		{"*.example.com", "a.example.com:443", false},
		{"*.example.com", "example.com.evil.test", false},
		{"*.com", "example.com", true},

		{"*", "example.com", true},
		{"*", "127.0.0.1", true},
		{"*", "::1", true},
		{"*", "", false},

		{"127.0.0.1", "127.0.0.1", true},
		{"::1", "::1", true},
		{"*.0.0.1", "127.0.0.1", false},
		{"*.1", "10.0.0.1", false},

		{"", "", false},
		{"", "example.com", false},
		{"*.", "example.com", false},
		{"*.", "example.com.", false},
		{"*..", "a..", false},
		{"*..com", "example..com", false},
		{"**", "example.com", false},
		{"*example.com", "badexample.com", false},
		{"*example.com", "a.example.com", false},
		{"*.*.com", "a.b.com", false},
		{"a.*.com", "a.b.com", false},
		{"example.*", "example.com", false},
		{".example.com", "a.example.com", false},
	} {
		t.Run(fmt.Sprintf("%q and %q", row.pattern, row.host), func(t *testing.T) {
			assert.Equal(t, row.want, hostmatch.Match([]string{row.pattern}, row.host))
		})
	}
	assert.False(t, hostmatch.Match(nil, "example.com"), "an empty list allows no host")
	assert.True(t, hostmatch.Match([]string{"a.test", "*.b.test"}, "x.b.test"), "any pattern of the list suffices")
}

func ExampleMatch() {
	allowed := []string{"example.com", "*.example.org"}
	for _, host := range []string{"example.com", "www.example.com", "example.org", "cdn.eu.example.org"} {
		fmt.Println(host, hostmatch.Match(allowed, host))
	}
	// Output:
	// example.com true
	// www.example.com false
	// example.org false
	// cdn.eu.example.org true
}
