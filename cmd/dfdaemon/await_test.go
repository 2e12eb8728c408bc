package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A Job of the Helm chart waits until the DaemonSet before it is ready on every node.
func TestAwaitDaemonSet(t *testing.T) {
	unseen := `{"metadata":{"generation":1},"status":{"desiredNumberScheduled":0,"numberReady":0}}`
	half := `{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":4,"numberReady":2}}`
	whole := `{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":4,"numberReady":4}}`
	none := `{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":0,"numberReady":0}}`
	for name, c := range map[string]struct {
		replies []string // the last one stays; empty is 403
		ends    bool
		says    string
	}{
		"it waits for every node":                 {[]string{unseen, half, half, whole}, true, "ready on 4 of 4 nodes"},
		"a refusal at first may pass":             {[]string{"", "", whole}, true, "ready on 4 of 4 nodes"},
		"a status that no controller has written": {[]string{unseen}, false, "has not seen it yet"},
		"a cluster without matching nodes":        {[]string{unseen, none}, true, "ready on 0 of 0 nodes"},
		"a node that is down is named as a lack":  {[]string{half}, false, "at last: ready on 2 of 4 nodes"},
		"a refusal that stays":                    {[]string{""}, false, "403 Forbidden"},
		"an answer that is no JSON":               {[]string{"<html>"}, false, "reading the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asked atomic.Int32
			api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.Equal(t, "/apis/apps/v1/namespaces/images/daemonsets/clean", r.URL.Path)
				assert.Equal(t, "Bearer a-token", r.Header.Get("Authorization"))
				n := int(asked.Add(1))
				reply := c.replies[min(n, len(c.replies))-1]
				if reply == "" {
					w.WriteHeader(http.StatusForbidden)
				}
				_, _ = io.WriteString(w, reply)
				if n > len(c.replies)+1 {
					cancel() // in place of the timeout
				}
			}))
			t.Cleanup(api.Close)
			k, err := inCluster(account(t, api), environment(t, api))
			require.NoError(t, err)
			var out bytes.Buffer
			err = k.awaitDaemonSet(ctx, "images", "clean", time.Millisecond, &out)
			if c.ends {
				require.NoError(t, err)
				assert.Contains(t, out.String(), c.says)
				assert.EqualValues(t, len(c.replies), asked.Load())
				return
			}
			assert.ErrorIs(t, err, context.Canceled)
			assert.ErrorContains(t, err, c.says)
		})
	}
}

// account writes what Kubernetes mounts for the service account of a pod.
func account(t *testing.T, api *httptest.Server) string {
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "token"), []byte("a-token\n"), 0o600))
	return dir
}

// environment names the API as the kubelet does.
func environment(t *testing.T, api *httptest.Server) func(string) string {
	u, err := url.Parse(api.URL)
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(u.Host)
	require.NoError(t, err)
	return func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}[name]
	}
}

// Outside a pod, and without a token, the error says what is missing.
func TestAwaitNeedsAPod(t *testing.T) {
	_, err := inCluster(t.TempDir(), func(string) string { return "" })
	assert.ErrorContains(t, err, "runs in a pod of Kubernetes only")
	_, err = inCluster(t.TempDir(), func(string) string { return "192.0.2.1" })
	assert.ErrorContains(t, err, "automountServiceAccountToken")
}
