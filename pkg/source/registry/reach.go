package registry

import (
	"net/http"
	"net/url"
)

// Reach says where a registry is, and gives a transport that speaks to it as the operator
// set, with no credentials of its own: for what a client wants there besides pulling.
func (c *Client) Reach(name string) (base *url.URL, rt http.RoundTripper, err error) {
	u, err := c.upstream(name)
	if err != nil {
		return nil, nil, err
	}
	copied := *u.bases[0]
	return &copied, u.client.Transport(), nil
}
