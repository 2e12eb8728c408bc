package secret

import "net/url"

// PrintableURL returns the parts of a URL that may be logged, in an error or in a status: scheme, host, port and path.
// User, password, query and fragment are left out, because each of them may be a credential: a signed URL carries its
// signature in the query. It returns nothing for nil.
func PrintableURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	clean := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return clean.String()
}

// PrintableURLText is [PrintableURL] of a URL in a text; what cannot be parsed is "[redacted]" as a whole.
func PrintableURLText(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return redacted
	}
	return PrintableURL(u)
}
