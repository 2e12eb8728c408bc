package order_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/order"
)

// checkOrder fails if an order is none that may become a job.
func checkOrder(t *testing.T, o order.Order) {
	require.True(t, listed(o.Registry), "registry %q", o.Registry)
	spec, _ := order.Decide(o, order.Policy, nil, preheat.AllSeeds)
	spec.Platforms = nil // Validate checks those
	require.NoError(t, spec.Validate())
	target, err := spec.Target()
	require.NoError(t, err)
	assert.Equal(t, o.Registry, target.Upstream)
	assert.Equal(t, o.Repository, target.Repository)
	assert.False(t, strings.ContainsAny(o.Authorization.Reveal(), "\r\n\x00"))
}

func checkEvents(t *testing.T, events []order.Event) {
	require.LessOrEqual(t, len(events), order.EventsMax)
	for _, e := range events {
		if e.Err == nil && e.Ignored == "" {
			checkOrder(t, e.Order)
			require.NotEmpty(t, e.Order.Tag)
		}
	}
}

func FuzzParseJob(f *testing.F) {
	f.Add([]byte(job("https://harbor.example.com/v2/a/manifests/b", `{"Authorization":"Bearer t"}`, "all_peers")))
	f.Add([]byte(job("https://harbor.example.com/v2/a%2fb/manifests/"+digest, `{}`, "")))
	f.Add([]byte(`{"type":"preheat","args":{"type":"image","url":5}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if o, err := order.ParseJob(body, listed); err == nil {
			checkOrder(t, o)
		}
	})
}

func FuzzParsePreheat(f *testing.F) {
	f.Add([]byte(`{"type":"image","url":"https://registry.test:5000/v2/a/manifests/b","headers":{"authorization":
		"Basic dTpw"},"image":"a","tag":"b","digest":"` + digest + `"}`))
	f.Add([]byte(`{"type":"image","url":"http://169.254.169.254/v2/a/manifests/b"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if o, err := order.ParsePreheat(body, listed); err == nil {
			checkOrder(t, o)
		}
	})
}

func FuzzParseNotification(f *testing.F) {
	const url = "https://harbor.example.com/v2/a/manifests/"
	f.Add([]byte(kraken(url+"b", "a", "b")), "")
	f.Add([]byte(`{"events":[`+pushEvent("push", oci.MediaTypeIndex, "a", url+digest, "b")+`]}`), "")
	f.Add([]byte(`{"events":[`+pushEvent("push", oci.MediaTypeIndex, "a", "", "b")+`]}`), "registry.test:5000")
	f.Fuzz(func(t *testing.T, body []byte, named string) {
		if events, err := order.ParseNotification(body, named, listed); err == nil {
			checkEvents(t, events)
		}
	})
}

func FuzzParseHarborEvent(f *testing.F) {
	f.Add([]byte(harborEvent("PUSH_ARTIFACT", "harbor.example.com/shop/web:v1", "v1")), "")
	f.Add([]byte(harborEvent("PUSH_ARTIFACT", "x", "v1")), "registry.test:5000")
	f.Add([]byte(`{"type":"harbor.artifact.pushed","data":{"resources":[{"tag":"1","resource_url":"a/b:1"}]}}`), "")
	f.Fuzz(func(t *testing.T, body []byte, named string) {
		if events, err := order.ParseHarborEvent(body, named, listed); err == nil {
			checkEvents(t, events)
		}
	})
}
