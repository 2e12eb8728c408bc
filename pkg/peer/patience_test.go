package peer_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
)

// TestASlowOriginIsAskedOnce has an origin begin to answer after 400 s: its one GET stays open, and every node sees
// that the seed waits for the origin, also a node that knows no seed.
func TestASlowOriginIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(71, 3*piece.SizeMin))
		s.origin.fail = func(int, int64) error {
			time.Sleep(400 * time.Second)
			return nil
		}
		seed := s.seed()
		near, far := s.node(nil), s.node(nil)
		s.owner.answer = func(from *node, _ api.Entry, a *api.Assignment) error {
			a.Reading = from != seed
			if from == far { // it hears of the other node alone
				a.Neighbours = []api.Neighbour{{Host: near.host}}
			}
			return nil
		}
		type end struct {
			data []byte
			err  error
		}
		ended := make(chan end, 2)
		for _, n := range []*node{near, far} {
			go func() {
				data, err := s.read(t.Context(), n, s.spec(), 0, int64(len(s.origin.content)))
				ended <- end{data, err}
			}()
		}
		time.Sleep(300 * time.Second)
		for _, n := range []*node{near, far} {
			assert.True(t, n.engine.Signs(s.spec().ID).Asking, n.host.Name)
			assert.Zero(t, n.engine.Signs(s.spec().ID).Came, n.host.Name)
		}
		for range 2 {
			e := <-ended
			require.NoError(t, e.err)
			assert.True(t, bytes.Equal(s.origin.content, e.data))
		}
		assert.Equal(t, []int64{0}, s.origin.requests())
		time.Sleep(time.Second) // a reader may end before its download hears that the seed waits no longer
		assert.False(t, near.engine.Signs(s.spec().ID).Asking)
	})
}

// TestAnOriginThatNeverAnswersIsAskedOnce has the origin take longer than the operator allows.
func TestAnOriginThatNeverAnswersIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSwarm(t, randomBytes(72, piece.SizeMin))
		s.origin.fail = func(int, int64) error {
			time.Sleep(10 * time.Minute)
			return fmt.Errorf("timeout awaiting response headers: %w", os.ErrDeadlineExceeded)
		}
		n := s.seed()
		_, err := s.read(t.Context(), n, s.spec(), 0, 1)
		var f *api.Failure
		require.ErrorAs(t, err, &f)
		assert.Equal(t, 504, f.Status)
		assert.Equal(t, []int64{0}, s.origin.requests())
	})
}

// TestACrawlingOriginIsLeft has each body of an origin bring so many bytes and then end as one that crawls.
func TestACrawlingOriginIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		brings int64 // per body
		whole  bool
		within time.Duration
	}{
		"it crawls after 100 KB of each body": {100_000, true, 5 * time.Minute},
		"it crawls from the first byte":       {10, false, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := randomBytes(73, 8*piece.SizeMin+77)
				s := newSwarm(t, content)
				s.origin.body = func(_ int, offset int64, r io.Reader) io.Reader {
					if offset+c.brings >= int64(len(content)) {
						return r
					}
					return io.MultiReader(io.LimitReader(r, c.brings), readerFunc(func([]byte) (int, error) {
						time.Sleep(10 * time.Second)
						return 0, fmt.Errorf("received 10 bytes in 10s: %w", os.ErrDeadlineExceeded)
					}))
				}
				n := s.seed()
				began := time.Now()
				data, err := s.read(t.Context(), n, s.spec(), 0, int64(len(content)))
				assert.Less(t, time.Since(began), c.within)
				if !c.whole {
					require.Error(t, err)
					return
				}
				require.NoError(t, err)
				assert.True(t, bytes.Equal(content, data))
				assert.EqualValues(t, len(content), s.origin.sent.Load(), "no byte comes twice")
			})
		})
	}
}
