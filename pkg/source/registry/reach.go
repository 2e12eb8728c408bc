package registry

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// Reach returns a registry's URL, and a transport with the operator's settings and without the node's credentials, for
// requests of a client other than pulls. The transport leaves out the node's certificate too, which would let any
// client push.
func (c *Client) Reach(name string) (base *url.URL, rt http.RoundTripper, err error) {
	u, err := c.upstream(name)
	if err != nil {
		return nil, nil, err
	}
	copied := *u.bases[0]
	if u.CertFile != "" {
		return &copied, u.client.WithoutCertificate(), nil
	}
	return &copied, u.client.Transport(), nil
}

// At reports whether a listed registry is at a host and port, by its name or by one of its URLs. The host is
// without brackets.
func (c *Client) At(host string, port uint16) bool {
	at := net.JoinHostPort(strings.ToLower(host), strconv.Itoa(int(port)))
	for name, u := range c.listed {
		if strings.EqualFold(hostPort(u.base(name)), at) {
			return true
		}
		for _, b := range u.bases {
			if strings.EqualFold(hostPort(b), at) {
				return true
			}
		}
	}
	return false
}

// hostPort is the address of a URL with its port.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}
