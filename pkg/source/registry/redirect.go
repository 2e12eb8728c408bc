package registry

import (
	"context"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/task"
)

// redirected returns the transport that repeats a redirected request for a digest at another registry if that registry
// asks for a token: it sends that registry's anonymous token. No credential of a client or of this node goes there, and
// not the node's certificate; the token goes to no third host. Addresses and token services are bounded as for a
// registry that is not listed.
func (c *Client) redirected(u *upstream, id task.ID) func(context.Context, *url.URL, *http.Response) http.RoundTripper {
	return func(ctx context.Context, at *url.URL, res *http.Response) http.RoundTripper {
		repository, _ := repositoryOf(at.Path)
		if !wantsToken(res) || !strings.HasPrefix(at.Path, "/v2/") || repository == "" || path.Base(at.Path) != string(id) {
			return nil // no registry, or another object
		}
		host, err := oci.ParseHost(at.Host)
		if err == nil {
			repository, err = oci.ParseRepository(host, repository)
		}
		if err != nil {
			return nil
		}
		other := &upstream{name: u.name + " redirected", client: u.client}
		if u.CertFile != "" {
			other.inner = u.client.WithoutCertificate()
		}
		base := &url.URL{Scheme: at.Scheme, Host: at.Host}
		rt, _, err := c.login(ctx, other, base, repository, true)
		if err != nil {
			return nil // the client gets the refusal
		}
		return anonymousTransport{rt}
	}
}

// anonymousTransport sends requests with an anonymous token. If the token service no longer gives one, it returns 403
// in place of the error of a refused login, which would concern the client's credential.
type anonymousTransport struct{ inner http.RoundTripper }

func (t anonymousTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.inner.RoundTrip(req)
	if isRefusedLogin(err) {
		return &http.Response{StatusCode: http.StatusForbidden, Status: "403 Forbidden", Header: http.Header{},
			Body: http.NoBody, Request: req, ContentLength: 0}, nil
	}
	return res, err
}

// digestIn is the digest at the end of a path of the distribution API, empty if there is none.
func digestIn(p string) task.ID {
	if !strings.Contains(p, "/blobs/") && !strings.Contains(p, "/manifests/") {
		return ""
	}
	id, err := oci.ParseDigest(path.Base(p))
	if err != nil {
		return ""
	}
	return id
}
