package node

import (
	"net/http"
	"net/url"
	"strings"
)

// fromPage reports whether a web page of another origin caused a request: browsers say so by Origin, and to
// loopback addresses by Sec-Fetch-Site also where the page only embeds an image (Fetch Metadata).
func fromPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		return true
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	return false
}

// fromBrowser reports whether any browser sent a request, whatever page caused it. A browser that does
// not know Sec-Fetch-Site is recognised by its name and its languages.
func fromBrowser(r *http.Request) bool {
	for name := range r.Header {
		if name == "Origin" || name == "Referer" || strings.HasPrefix(name, "Sec-Fetch-") || strings.HasPrefix(name, "Sec-Ch-") {
			return true
		}
	}
	return strings.Contains(r.UserAgent(), "Mozilla/") && r.Header.Get("Accept-Language") != ""
}

// NoPages refuses what a web page of another origin asks for. A browser would not show the page the
// answer, but the question alone has the node fetch what the page names.
func NoPages(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromPage(r) {
			http.Error(w, "this address is for programs of this machine, and a web page asked (Origin, Sec-Fetch-Site)", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// NoBrowsers refuses whatever a browser sends: no person has use for these paths there, and a page
// must not reach them.
func NoBrowsers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromBrowser(r) || fromPage(r) {
			http.Error(w, "this path is for programs, not for browsers: use dfget or curl", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}
