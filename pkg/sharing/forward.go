package sharing

import (
	"fmt"
	"net/textproto"
	"strings"
)

// refused are the headers that are never forwarded, grouped by reason. A name that ends in * is a prefix.
var refused = []struct {
	reason string
	names  []string
}{
	{"it can route the request to another place than its URL", []string{
		"Host", "Forwarded", "X-Forwarded*", "X-Forward-*", "X-Original-*", "X-Rewrite-*", "X-Host*", "X-Http-*",
		"X-Method-Override", "X-Real-*", "X-Client-Ip", "X-Client-Host", "X-Cluster-*", "X-Remote-*", "X-Proxy*",
		"X-Backend*", "X-Gateway-*", "X-Server-Name", "X-Envoy-*", "X-Accel-*", "X-Sendfile*", "X-Url*", "X-Uri*",
		"X-Request-Uri", "X-Scheme", "X-Ssl*", "X-Path*", "X-Script-Name", "X-Prefix", "X-Override-*", "X-Origin*",
		"X-Upstream*", "X-Route*", "X-Routing*", "X-Azure-*", "X-Middleware-*", "X-Ip", "X-From-Ip", "X-True-*",
		"X-Appengine-*", "X-Goog-Iap*", "X-Orig-*", "X-Vhost*", "X-Virtual-*", "X-Target-*", "X-Dest*",
		"X-Requested-Host*", "X-Request-Ur*", "Request-Url", "X-Replaced-*", "X-Base-Ur*", "Host-*", "X-Zuul-*",
		"X-Arr-*", "X-Method", "X-Api-Host", "X-Tenant-Host", "X-Amz-Cf*", "X-Amzn-*", "X-Bluecoat-*", "X-Wap-*",
		"X-Timer", "True-Client-Ip", "Client-Ip", "Cf-*", "Cdn-*", "Fastly-*", "Akamai-*", "Front-End-Https",
		"Base-Url", "Http-*", "Request-Uri", "Via", "Max-Forwards", "Destination", "Surrogate-*", "Redirect", "Uri",
		"Url", "Alt-Used", "Service-Worker*", "Origin", "Sec-*", "Darter-*",
	}},
	{"it belongs to one connection, and the connection to the origin is dfdaemon's own", []string{
		"Connection", "Keep-Alive", "Proxy-*", "Te", "Trailer", "Transfer-Encoding", "Upgrade*", "Http2-Settings",
		"Expect", "Early-Data",
	}},
	{"it describes a body, and the request has none", []string{"Content-*", "Digest", "Want-*", "Repr-Digest"}},
	{"dfdaemon sets it itself", []string{"Range", "If-*", "Accept-Encoding", "Accept-Ranges", "A-Im", "Age"}},
}

// HeaderError reports a header that is never forwarded to an origin, and the reason.
type HeaderError struct{ Name, Why string }

func (e *HeaderError) Error() string {
	return fmt.Sprintf("the header %.80s is not forwarded: %s; omit it, or ask the origin directly (dfget --direct)",
		e.Name, e.Why)
}

// Forwardable returns a *[HeaderError] for a header that dfdaemon never forwards. With a header that routes
// requests, a client could store the file of another place under this URL, for all clients, and bypass
// files.allowHosts.
func Forwardable(name string) error {
	// Servers that turn header names into variables (CGI, WSGI) read X_Forwarded_Host as X-Forwarded-Host.
	canonical := textproto.CanonicalMIMEHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
	for _, group := range refused {
		for _, pattern := range group.names {
			prefix, wild := strings.CutSuffix(pattern, "*")
			if canonical == pattern || wild && strings.HasPrefix(canonical, prefix) {
				return &HeaderError{Name: name, Why: group.reason}
			}
		}
	}
	return nil
}
