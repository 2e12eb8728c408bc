package registryproxy_test

import (
	"context"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

// faulty panics while it reads a registry's answer.
type faulty struct{ asked sync.Map }

func (f *faulty) Do(_ context.Context, q source.RegistryRequest) (*http.Response, error) {
	f.asked.Store(q.Path, true)
	panic("index out of range: hunter2")
}

func TestAPanicFailsOnlyTheWaitingClients(t *testing.T) {
	up := &faulty{}
	p := newMirror(config{Upstream: up, Open: (&swarm{}).Open, Policy: access.Policy{ServeCached: true}})
	id := string(blobID(t))
	for _, target := range []string{"/v2/app/blobs/" + id, "/v2/app/manifests/" + id, "/v2/app/manifests/v1"} {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				res := ask(p, http.MethodGet, target+"?ns=r.test", "Authorization", "Bearer x")
				said := refusedAs(t, res, http.StatusServiceUnavailable, "UNAVAILABLE")
				assert.Contains(t, said, "a fault of this program")
				assert.NotContains(t, said, "hunter2")
			})
		}
		all.Wait()
		_, asked := up.asked.Load(target)
		assert.True(t, asked, target)
	}
}

func TestAPanicOfAskOwnerIsAnError(t *testing.T) {
	p := newMirror(config{
		Upstream: &upstreamFunc{answer: answers(nil)}, Open: (&swarm{}).Open,
		Shared: func(context.Context, api.Lookup) (api.LookupReply, error) { panic("a fault") },
	})
	res := ask(p, http.MethodGet, "/v2/app/manifests/v1?ns=r.test")
	refusedAs(t, res, http.StatusServiceUnavailable, "UNAVAILABLE")
}

// blobID is some digest.
func blobID(t *testing.T) task.ID {
	t.Helper()
	var s swarm
	id := s.put(blob(10), "")
	require.NotEmpty(t, id)
	return id
}
