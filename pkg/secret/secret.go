// Package secret holds values that must never be printed.
//
// A [String] formats, logs and marshals as "[redacted]" whatever the verb; only
// [String.Reveal] gives the value, so that a search for Reveal finds every place
// where a secret leaves the program. Start at [String].
package secret

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// String is a secret text: a password, a token, an Authorization header.
type String string

// Reveal returns the secret itself.
func (s String) Reveal() string { return string(s) }

// IsZero reports whether there is no secret at all.
func (s String) IsZero() bool { return s == "" }

// String returns "[redacted]", or nothing when there is no secret.
func (s String) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString keeps %#v from showing the secret.
func (s String) GoString() string { return fmt.Sprintf("secret.String(%q)", s.String()) }

// Format keeps every verb from showing the secret, %x and %q included.
func (s String) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		fmt.Fprint(f, s.GoString())
		return
	}
	fmt.Fprint(f, s.String())
}

// LogValue keeps log/slog from showing the secret.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps JSON, YAML and every other encoder from showing the secret.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a secret from a configuration.
func (s *String) UnmarshalText(b []byte) error {
	*s = String(b)
	return nil
}
