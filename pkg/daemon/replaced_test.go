package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/test/registrytest"
)

// resuming downloads a blob by RFC 9110: it requests the rest of a cut body by Range, appends a 206, replaces
// its bytes with a 200, and starts over after a refusal.
func resuming(t *testing.T, url string) (got []byte, whole int) {
	t.Helper()
	for range 20 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		if len(got) > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", len(got)))
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		switch res.StatusCode {
		case http.StatusPartialContent:
			got = append(got, b...)
		case http.StatusOK:
			if len(got) > 0 {
				whole++
			}
			got = b
		default:
			got = nil
			continue
		}
		if err == nil {
			return got, whole
		}
	}
	return got, whole
}

func TestResumeAfterARevocation(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 6_000_000)
	d, _ := start(t, settings(t, r, "one"))
	layer := p.Layers()[0]
	r.Fail(registrytest.Fault{Match: "GET " + p.Repository + "/blobs/" + layer.Digest, Action: registrytest.ActCorrupt,
		At: 40e3, Times: 1})
	url := fmt.Sprintf("http://%s/v2/%s/blobs/%s?ns=%s", d.Addrs()["mirror"], p.Repository, layer.Digest, r.Host())
	var all sync.WaitGroup
	wholes := make([]int, 3)
	for i := range wholes {
		all.Go(func() {
			got, whole := resuming(t, url)
			wholes[i] = whole
			assert.Equal(t, strings.TrimSpace(layer.Digest), string(oci.DigestOf(bytes.Clone(got))))
		})
	}
	all.Wait()
	t.Log("answered with the whole instead of a window:", wholes)
}
