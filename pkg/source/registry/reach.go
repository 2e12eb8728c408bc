package registry

import (
	"net/http"
	"net/url"
)

// Reach says where a registry is, and gives a transport that speaks to it as the operator
// set, with no credentials of its own: for what a client wants there besides pulling. The
// node's certificate is one, and would let any client push.
func (c *Client) Reach(name string) (base *url.URL, rt http.RoundTripper, err error) {
	u, err := c.upstream(name)
	if err != nil {
		return nil, nil, err
	}
	copied := *u.bases[0]
	rt = u.client.Transport()
	if t, ok := rt.(*http.Transport); ok && u.CertFile != "" {
		bare := t.Clone()
		bare.TLSClientConfig.GetClientCertificate = nil
		bare.DisableKeepAlives = true // nobody closes what it would keep
		rt = bare
	}
	return &copied, rt, nil
}
