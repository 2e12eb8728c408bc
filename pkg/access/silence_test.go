package access_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/source"
)

// hanging is a registry that accepts requests and answers none before the test wakes it, or before a time is over.
type hanging struct {
	time time.Duration
	mu   sync.Mutex
	woke chan struct{}
}

func (h *hanging) Do(ctx context.Context, _ source.RegistryRequest) (*http.Response, error) {
	h.mu.Lock()
	woke := h.woke
	h.mu.Unlock()
	select {
	case <-woke:
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody,
			Header: http.Header{"Docker-Content-Digest": {digest}}}, nil
	case <-time.After(h.time):
		return nil, fmt.Errorf("timeout awaiting response headers")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// clients resolve tags, each a different one.
type clients struct {
	*access.Resolver
	n  int
	wg sync.WaitGroup
}

// ask starts a lookup whose client waits at most for a time. The channel gets its error.
func (c *clients) ask(t *testing.T, wait time.Duration) <-chan error {
	c.n++
	l := lookup(fmt.Sprintf("v%d", c.n))
	ended := make(chan error, 1)
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		_, err := c.Resolve(ctx, l)
		ended <- err
	})
	synctest.Wait()
	return ended
}

// refused reports whether a lookup was refused at once.
func refused(t *testing.T, ended <-chan error) bool {
	select {
	case err := <-ended:
		var silent *access.SilentError
		require.ErrorAs(t, err, &silent)
		require.True(t, access.Unreachable(err))
		assert.Equal(t, "r.test", silent.Upstream)
		return true
	default:
		return false
	}
}

func TestASilentRegistryHoldsFewClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hanging{time: 10 * time.Minute, woke: make(chan struct{})}
		c := &clients{Resolver: access.New(access.Config{Registry: h})}
		defer c.Close()
		var held []<-chan error
		for range 32 {
			held = append(held, c.ask(t, time.Hour))
		}
		time.Sleep(59 * time.Second)
		held = append(held, c.ask(t, time.Hour))
		time.Sleep(2 * time.Second)
		assert.True(t, refused(t, c.ask(t, time.Hour)), "32 have waited for a minute")
		other := lookup("v1")
		other.Upstream = "other.test"
		close(h.woke)
		_, err := c.Resolve(t.Context(), other)
		require.NoError(t, err, "another registry")
		for _, ended := range held {
			require.NoError(t, <-ended, "they waited on")
		}
		require.NoError(t, <-c.ask(t, time.Hour), "the first answer closes the circuit")
		c.wg.Wait()
	})
}

func TestClientsOneAfterTheOtherAreHeldOnce(t *testing.T) {
	for name, patience := range map[string]time.Duration{
		"its time ends first": time.Hour, "the client leaves at the same time": 10 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hanging{time: 10 * time.Minute, woke: make(chan struct{})}
				c := &clients{Resolver: access.New(access.Config{Registry: h,
					FirstByte: func(string) time.Duration { return 10 * time.Minute }})}
				defer c.Close()
				require.Error(t, <-c.ask(t, patience))
				probe := c.ask(t, time.Hour)
				for range 5 {
					time.Sleep(2 * time.Second)
					assert.True(t, refused(t, c.ask(t, time.Hour)), "one finds out whether it answers again")
				}
				close(h.woke)
				require.NoError(t, <-probe)
				require.NoError(t, <-c.ask(t, time.Hour))
				c.wg.Wait()
			})
		})
	}
}

// A slow registry is not a silent one, also if its clients have short timeouts.
func TestASlowRegistryIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := registryFunc(func(ctx context.Context, _ source.RegistryRequest) (*http.Response, error) {
			select {
			case <-time.After(400 * time.Second):
				return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody,
					Header: http.Header{"Docker-Content-Digest": {digest}}}, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		})
		c := &clients{Resolver: access.New(access.Config{Registry: slow})}
		defer c.Close()
		for range 4 {
			require.Error(t, <-c.ask(t, 90*time.Second))
		}
		var held []<-chan error
		for range 40 {
			held = append(held, c.ask(t, time.Hour))
			time.Sleep(15 * time.Second)
		}
		for _, ended := range held {
			require.NoError(t, <-ended)
		}
		c.wg.Wait()
	})
}
