package dfget

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParseNetrc(f *testing.F) {
	for _, s := range []string{
		"", "machine a.test login alice password s3cret\n",
		"machine a.test\n\tlogin alice\n\tpassword s3cret\n\ndefault login anonymous password x\n",
		"macdef init\nmachine evil login x password y\n\nmachine a.test login b", "default", "machine",
		"machine a.test login", "login x", "# machine a.test",
		"machine machine login password password machine", "machine a.test login a#b password #x",
		"machine a.test\r\nlogin alice\r\n", "machine \x00 login \xff",
	} {
		f.Add(s, "a.test")
	}
	f.Fuzz(func(t *testing.T, text, host string) {
		n := parseNetrc(text)
		require.LessOrEqual(t, len(n), len(strings.Fields(text)), "more entries than words")
		words := strings.Fields(text)
		m, ok := n.find(host)
		if !ok {
			return
		}
		// A credential goes only to the host that the file names, and is a word of the file.
		require.True(t, m.name == "" || strings.EqualFold(m.name, host), "the login of %q went to %q", m.name, host)
		for _, w := range []string{m.login, m.password.Reveal()} {
			require.True(t, w == "" || slices.Contains(words, w), "%q is no word of the file", w)
		}
	})
}
