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
	// besideMost is the size of the layer that somebody pulls again and again beside a row.
	besideMost = 1e6
	// besideEach is how often.
	besideEach = 100 * time.Millisecond
	// besideLimit is the longest that may take. It takes milliseconds where the cores are free; while
	// all unpack images and other work runs too, it waits its turn. A row that held it up would hold it
	// until its pulls end, or until pullLimit.
	besideLimit = 30 * time.Second
)

// bystander is what became of somebody who pulled what every dfdaemon has while others were in
// trouble.
type bystander struct {
	pulls   int
	longest time.Duration
	err     error
}

func (b bystander) String() string {
	if b.pulls == 0 {
		return "nobody pulled beside it"
	}
	return fmt.Sprintf("beside it %d pulls of what was there, none longer than %.2f s", b.pulls, b.longest.Seconds())
}

// stand has a bystander on the node of each user of a kind, until the returned function is
// called.
func (c *tools) stand(who func(lab.Kind) bool) func() bystander {
	ctx, cancel := context.WithCancel(c.t.Context())
	var mu sync.Mutex
	var all bystander
	var standing sync.WaitGroup
	for _, u := range c.only(who) {
		_, err := c.pullBeside(c.t.Context(), u)
		require.NoError(c.t, err, "%s, before anything went wrong", u.Name)
		standing.Go(func() {
			tick := time.NewTicker(besideEach)
			defer tick.Stop()
			for ctx.Err() == nil {
				took, err := c.pullBeside(ctx, u)
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

// pullBeside gets the layer from a user's dfdaemon, and says how long that took.
func (c *tools) pullBeside(ctx context.Context, u *user) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	digest := c.beside.Layers()[0].Digest
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ownMirror+"/v2/docker.io/"+c.beside.Repository+"/blobs/"+digest, nil)
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
		err = fmt.Errorf("%s, %d bytes that are not those of %s", res.Status, n, digest)
	}
	return time.Since(began), err
}
