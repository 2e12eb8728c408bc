package doors_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/doors"
	"github.com/darter-io/darter/pkg/preheat/rules"
	"github.com/darter-io/darter/test/registrytest"
)

// TestAPushToARegistryIsAJob pushes to a real registry whose notifications go to the doors.
func TestAPushToARegistryIsAJob(t *testing.T) {
	store := &jobs{created: make(chan preheat.Job, 8)}
	var registry *registrytest.Registry
	s := settings()
	s.Rules = rules.Rules{{Images: []string{"*/shop/**"}, Tags: []string{"v*"}}}
	d, err := doors.New(doors.Config{Jobs: store, Settings: s,
		Listed: func(name string) bool { return name == registry.Host() }})
	require.NoError(t, err)
	server := httptest.NewServer(d.Handler())
	t.Cleanup(server.Close)
	registry = registrytest.Start(t, registrytest.Config{Notify: server.URL + "/webhooks/distribution",
		NotifyToken: token})

	push := func(repository, tag string) registrytest.Pushed {
		img, err := registrytest.NewImage(1, []int64{10 << 10})
		require.NoError(t, err)
		p, err := registry.Push(t.Context(), repository, tag, img)
		require.NoError(t, err)
		return p
	}
	push("shop/web", "nightly") // no rule
	push("other/web", "v1")     // no rule
	first := push("shop/web", "v1")
	push("shop/web", "v1") // the same image once more
	second := push("shop/deep/web", "v2")
	next := func() preheat.Job {
		select {
		case j := <-store.created:
			return j
		case <-time.After(time.Minute):
			t.Fatal("no notification became a job")
			return preheat.Job{}
		}
	}
	// The registry sends its notifications in their order.
	assert.Equal(t, registry.Host()+"/shop/web:v1@"+first.Digest, next().Spec.Reference)
	assert.Equal(t, registry.Host()+"/shop/deep/web:v2@"+second.Digest, next().Spec.Reference)
	assert.Len(t, store.all(), 2)
}
