package sharing

import (
	"fmt"
	"net/textproto"
	"strings"
)

// refused are the headers that no client may have forwarded, by the reason. A name that ends in * stands
// for all that begin so.
var refused = []struct {
	why   string
	names []string
}{
	{"it leads a request to another place than its URL says", []string{
		"Host", "Forwarded", "X-Forwarded*", "X-Forward-*", "X-Original-*", "X-Rewrite-*", "X-Host*", "X-Http-*", "X-Method-Override", "X-Real-*", "X-Client-Ip", "X-Client-Host", "X-Cluster-*",
		"X-Remote-*", "X-Proxy*", "X-Backend*", "X-Gateway-*", "X-Server-Name", "X-Envoy-*", "X-Accel-*", "X-Sendfile*", "X-Url*", "X-Uri*", "X-Request-Uri", "X-Scheme", "X-Ssl*", "X-Path*",
		"X-Script-Name", "X-Prefix", "X-Override-*", "X-Origin*", "X-Upstream*", "X-Route*", "X-Routing*", "X-Azure-*", "X-Middleware-*", "X-Ip", "X-From-Ip", "X-True-*", "X-Appengine-*", "X-Goog-Iap*",
		"X-Orig-*", "X-Vhost*", "X-Virtual-*", "X-Target-*", "X-Dest*", "X-Requested-Host*", "X-Request-Ur*", "Request-Url", "X-Replaced-*", "X-Base-Ur*", "Host-*", "X-Zuul-*", "X-Arr-*", "X-Method", "X-Api-Host", "X-Tenant-Host",
		"X-Amz-Cf*", "X-Amzn-*", "X-Bluecoat-*", "X-Wap-*", "X-Timer", "True-Client-Ip", "Client-Ip", "Cf-*", "Cdn-*", "Fastly-*", "Akamai-*", "Front-End-Https", "Base-Url", "Http-*", "Request-Uri",
		"Via", "Max-Forwards", "Destination", "Surrogate-*", "Redirect", "Uri", "Url", "Alt-Used", "Service-Worker*", "Origin", "Sec-*", "Darter-*",
	}},
	{"it belongs to one connection, which is dfdaemon's own", []string{
		"Connection", "Keep-Alive", "Proxy-*", "Te", "Trailer", "Transfer-Encoding", "Upgrade*", "Http2-Settings", "Expect", "Early-Data",
	}},
	{"it describes a body, and the request has none", []string{"Content-*", "Digest", "Want-*", "Repr-Digest"}},
	{"dfdaemon sets it itself", []string{"Range", "If-*", "Accept-Encoding", "Accept-Ranges", "A-Im", "Age"}},
}

// HeaderError tells that a header may not be forwarded to an origin.
type HeaderError struct{ Name, Why string }

func (e *HeaderError) Error() string {
	return fmt.Sprintf("the header %.80s is not forwarded: %s; leave it out, or ask the origin yourself (dfget --direct)", e.Name, e.Why)
}

// Forwardable returns a *[HeaderError] for a header that no client may have forwarded: one that routes a
// request would let a client give others the file of another place under this URL, and go round
// files.allowHosts.
func Forwardable(name string) error {
	// Servers that make variables of names (CGI, WSGI) take X_Forwarded_Host for X-Forwarded-Host.
	canonical := textproto.CanonicalMIMEHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
	for _, group := range refused {
		for _, pattern := range group.names {
			prefix, wild := strings.CutSuffix(pattern, "*")
			if canonical == pattern || wild && strings.HasPrefix(canonical, prefix) {
				return &HeaderError{Name: name, Why: group.why}
			}
		}
	}
	return nil
}
