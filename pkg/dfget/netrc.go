package dfget

import (
	"strings"

	"github.com/darter-io/darter/pkg/secret"
)

// machine is one entry of a netrc file; the one without a name is the default.
type machine struct {
	name, login string
	password    secret.String
}

type netrc []machine

// parseNetrc reads a .netrc (ftp(1)). It skips unknown words, like all programs that share this file.
func parseNetrc(text string) netrc {
	var out netrc
	macro := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if macro { // a macdef ends at the next empty line
			macro = len(fields) > 0
			continue
		}
		for i := 0; i < len(fields); i++ {
			value := ""
			if i+1 < len(fields) {
				value = fields[i+1]
			}
			switch word := fields[i]; {
			case strings.HasPrefix(word, "#"):
				i = len(fields)
				continue
			case word == "default":
				out = append(out, machine{})
				continue
			case word == "machine":
				out = append(out, machine{name: value})
			case word == "login" && len(out) > 0:
				out[len(out)-1].login = value
			case word == "password" && len(out) > 0:
				out[len(out)-1].password = secret.String(value)
			case word == "macdef":
				macro = true
				i = len(fields)
				continue
			}
			i++
		}
	}
	return out
}

// find returns the entry of a host, else the default.
func (n netrc) find(host string) (machine, bool) {
	for _, m := range n {
		if strings.EqualFold(m.name, host) || m.name == "" {
			return m, m.login != "" || !m.password.IsZero()
		}
	}
	return machine{}, false
}
