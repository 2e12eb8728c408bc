package httpserver

import (
	"net"
	"net/http"
	"net/netip"
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
		if name == "Origin" || name == "Referer" || strings.HasPrefix(name, "Sec-Fetch-") ||
			strings.HasPrefix(name, "Sec-Ch-") {
			return true
		}
	}
	return strings.Contains(r.UserAgent(), "Mozilla/") && r.Header.Get("Accept-Language") != ""
}

// byAddress reports whether a request names its host by IP address or as localhost. No web page can have such a name:
// DNS rebinding needs a name that the page's owner can point elsewhere.
func byAddress(r *http.Request) bool {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil || strings.EqualFold(name, "localhost")
}

// RejectPages refuses requests of web pages of other origins. A browser would not show the response to the page, but
// the request alone makes the node fetch the blob that the page names.
func RejectPages(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromPage(r) {
			http.Error(w, "this address is for programs of this machine, and a web page asked (Origin, Sec-Fetch-Site)",
				http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// RejectAllBrowsers refuses every request of a browser: these paths are for programs, and a page must not reach them.
func RejectAllBrowsers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromBrowser(r) || fromPage(r) {
			http.Error(w, "this path is for programs, not for browsers: use dfget or curl", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// RejectBrowsers refuses requests with the headers that browsers add to all but mere reading, and what a browser reads
// under a DNS name (see [RejectReboundPages]). If the cluster has no secret, nothing else keeps a web page from sending
// an announce or a purge to a port of this machine.
func RejectBrowsers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" || fromBrowser(r) && !byAddress(r) {
			http.Error(w, "this API is for members of the cluster, not for browsers", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// RejectReboundPages refuses what [RejectPages] refuses, and what a browser reads under a DNS name other than
// localhost: a web page can have its own name resolve to this machine (DNS rebinding), is then of the same origin,
// and over plain HTTP a browser sends no Sec-Fetch header. Programs may use any name of the machine, since the
// mirror of a node often has one.
func RejectReboundPages(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fromBrowser(r) && !byAddress(r) {
			http.Error(w, "a web browser asked under a DNS name: use the IP address, localhost, or a program",
				http.StatusMisdirectedRequest)
			return
		}
		RejectPages(h).ServeHTTP(w, r)
	})
}

// RejectRebinding refuses requests whose Host is a name other than localhost: a web page that has its own name
// resolve to 127.0.0.1 (DNS rebinding) could else call an API that trusts the machine. It also refuses what
// [RejectPages] refuses.
func RejectRebinding(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !byAddress(r) {
			http.Error(w, "this API is asked for by IP address or as localhost", http.StatusMisdirectedRequest)
			return
		}
		RejectPages(h).ServeHTTP(w, r)
	})
}
