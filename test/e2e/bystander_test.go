//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/lab"
)

const (
	// bystanderLayer is the size in bytes of the layer that the bystander of a row pulls.
	bystanderLayer = 1e6
	// bystanderInterval is the interval of its pulls. A row takes some ten seconds; more pulls would only take the
	// tools' CPU time.
	bystanderInterval = 500 * time.Millisecond
	// bystanderLimit bounds one of its pulls. A pull takes milliseconds on free cores, and longer while all tools
	// unpack images. A row that blocked the bystander would block it until its pulls end, or until pullLimit.
	bystanderLimit = 30 * time.Second
)

// bystander holds the results of pulls of a cached layer during a row.
type bystander struct {
	pulls   int
	longest time.Duration
	err     error
}

func (b bystander) String() string {
	if b.pulls == 0 {
		return "no bystander pulled"
	}
	return fmt.Sprintf("a bystander pulled %d times, in %.2f s at most", b.pulls, b.longest.Seconds())
}

// stand runs a bystander on the node of each matching user, until the returned function is called.
func (c *tools) stand(who func(lab.Kind) bool) func() bystander {
	ctx, cancel := context.WithCancel(c.t.Context())
	var mu sync.Mutex
	var all bystander
	var standing sync.WaitGroup
	for _, u := range c.only(who) {
		_, err := c.pullCached(c.t.Context(), u)
		require.NoError(c.t, err, "%s, before the fault", u.Name)
		standing.Go(func() {
			tick := time.NewTicker(bystanderInterval)
			defer tick.Stop()
			for ctx.Err() == nil {
				took, err := c.pullCached(ctx, u)
				if ctx.Err() != nil {
					return
				}
				mu.Lock()
				all.pulls++
				all.longest = max(all.longest, took)
				if err != nil {
					all.err = errors.Join(all.err, fmt.Errorf("%s: %w", u.Name, err))
				}
				mu.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return func() bystander {
		cancel()
		standing.Wait()
		return all
	}
}

// pullCached pulls the bystander's layer from a user's dfdaemon, and returns the duration.
func (c *tools) pullCached(ctx context.Context, u *user) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	digest := c.bystanderImage.Layers()[0].Digest
	url := "http://" + ownMirror + "/v2/docker.io/" + c.bystanderImage.Repository + "/blobs/" + digest
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	res, err := u.Client().Do(req)
	if err != nil {
		return time.Since(began), err
	}
	defer res.Body.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, res.Body)
	if err == nil && "sha256:"+hex.EncodeToString(sum.Sum(nil)) != digest {
		err = fmt.Errorf("%s, %d bytes that do not match %s", res.Status, n, digest)
	}
	return time.Since(began), err
}
