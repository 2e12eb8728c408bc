package telemetry

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Purpose is what a request to a registry was for.
type Purpose string

// The purposes.
const (
	PurposeManifest Purpose = "manifest"
	PurposeBlob     Purpose = "blob"
	PurposeToken    Purpose = "token" // a login: the token service, and the ping that names it
	PurposeOther    Purpose = "other"
)

var allPurposes = []Purpose{PurposeManifest, PurposeBlob, PurposeToken, PurposeOther}

// answers are the values of the label status. A 401 often is a challenge, and a 429 a limit on pulls.
var answers = []string{"1xx", "2xx", "3xx", "401", "429", "4xx", "5xx", "none"}

const (
	// registriesMax bounds the registries that have series of their own.
	registriesMax = 64
	// otherRegistry counts every other one.
	otherRegistry = "other"
)

// Upstreams counts the requests to registries.
type Upstreams struct {
	requests *prometheus.CounterVec

	// mu is held to look up and to add a registry.
	mu         sync.Mutex
	registries map[string]bool
}

// NewUpstreams registers the group.
func NewUpstreams(reg prometheus.Registerer) *Upstreams {
	u := &Upstreams{registries: map[string]bool{}, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "darter_upstream_requests_total", Help: "Requests to registries, by registry, purpose and answer.",
	}, []string{"registry", "kind", "status"})}
	reg.MustRegister(u.requests)
	u.addSeries(otherRegistry)
	return u
}

func (u *Upstreams) addSeries(registry string) {
	for _, kind := range allPurposes {
		for _, status := range answers {
			u.requests.WithLabelValues(registry, string(kind), status)
		}
	}
}

// List gives registries of the operator's list series of their own, at zero. Names beyond a bound count as other.
func (u *Upstreams) List(registries ...string) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, name := range registries {
		if len(u.registries) < registriesMax && !u.registries[name] {
			u.registries[name] = true
			u.addSeries(name)
		}
	}
}

// Count counts a request. status is that of its answer, 0 if none came.
func (u *Upstreams) Count(registry string, kind Purpose, status int) {
	if u == nil {
		return
	}
	u.mu.Lock()
	listed := u.registries[registry]
	u.mu.Unlock()
	if !listed {
		registry = otherRegistry
	}
	answer := "none"
	switch {
	case status == 401 || status == 429:
		answer = strconv.Itoa(status)
	case status >= 100 && status < 600:
		answer = strconv.Itoa(status/100) + "xx"
	}
	u.requests.WithLabelValues(registry, known(kind, allPurposes, PurposeOther), answer).Inc()
}
