package node

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/source/httporigin"
)

// A preheat of any member can name a webhook, so it must not reach the programs of the supernode's own machine.
func TestWebhooksReachNoLocalAddress(t *testing.T) {
	var requests atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	defer hook.Close()
	call := func(allow ...config.Network) error {
		n := &Node{cfg: Config{Files: config.Files{AllowAddresses: allow}}}
		webhooks, err := n.NewWebhooks()
		require.NoError(t, err)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, hook.URL, nil)
		require.NoError(t, err)
		req.Close = true
		res, err := webhooks.RoundTrip(req)
		if err == nil {
			err = res.Body.Close()
		}
		return err
	}
	var refused *httporigin.AddrError
	require.ErrorAs(t, call(), &refused)
	assert.Zero(t, requests.Load())
	require.NoError(t, call(config.Network{Prefix: netip.MustParsePrefix("127.0.0.0/8")}))
	assert.EqualValues(t, 1, requests.Load())
}
