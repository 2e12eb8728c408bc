package registryproxy_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/access"
	"github.com/darter-io/darter/pkg/source"
)

// challenges makes the registry refuse every request with a challenge.
func (r *fixture) challenges(challenge ...string) {
	r.up.fail(nil)
	r.up.reply(func(w http.ResponseWriter, _ source.RegistryRequest) {
		w.Header()["Www-Authenticate"] = challenge
		w.WriteHeader(http.StatusUnauthorized)
	})
}

// While a registry is unreachable, clients get its last challenge for a password, and none from before a reload.
func TestTheLastChallengeIsRepeated(t *testing.T) {
	const basic = `Basic realm="r"`
	r := newFixture(config{Policy: access.Policy{ServeCached: true}})
	get := func() (status int, challenge string) {
		r.Forget() // what the resolver repeats for ten seconds, so that each such request asks the registry
		res := r.get("app/blobs/" + string(r.layer) + "?ns=r.test")
		return res.StatusCode, res.Header.Get("Www-Authenticate")
	}
	down := func() { r.up.fail(errors.New("connection refused")) }
	hears := func(status int, challenge, why string) {
		t.Helper()
		gotStatus, got := get()
		assert.Equal(t, status, gotStatus, why)
		assert.Equal(t, challenge, got, why)
	}
	down()
	hears(502, "", "it has not been asked before")
	r.challenges(basic)
	hears(401, basic, "the registry itself")
	down()
	hears(401, basic, "the mirror repeats it")
	r.challenges(`Basic realm="another"`)
	get()
	down()
	hears(401, `Basic realm="another"`, "the last one")
	r.challenges()
	get()
	down()
	hears(401, `Basic realm="another"`, "a refusal without a challenge says nothing of it")
	r.challenges(`Bearer realm="https://auth.test/token"`)
	get()
	down()
	hears(502, "", "it asks for tokens now")

	r.challenges(basic)
	get()
	ping := ask(r.mirror, http.MethodGet, "/v2/")
	require.Equal(t, 401, ping.StatusCode)
	r.Forget()
	r.ForgetChallenges() // as a reload does
	down()
	hears(502, "", "the registry may be asked at another URL now")
	assert.Equal(t, 502, ask(r.mirror, http.MethodGet, "/v2/").StatusCode, "a ping")
}

// A reply to a request from before a reload is not remembered.
func TestAChallengeFromBeforeAReloadIsForgotten(t *testing.T) {
	r := newFixture(config{Policy: access.Policy{ServeCached: true}})
	r.up.reply(func(w http.ResponseWriter, _ source.RegistryRequest) {
		r.Forget()
		r.ForgetChallenges()
		w.Header().Set("Www-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	require.Equal(t, 401, r.get("app/blobs/"+string(r.layer)+"?ns=r.test").StatusCode)
	require.Equal(t, 401, ask(r.mirror, http.MethodGet, "/v2/").StatusCode)
	r.up.fail(errors.New("connection refused"))
	assert.Equal(t, 502, r.get("app/blobs/"+string(r.layer)+"?ns=r.test").StatusCode)
	assert.Equal(t, 502, ask(r.mirror, http.MethodGet, "/v2/").StatusCode)
}

// Clients that name many registries take no challenge from the one that is in use.
func TestManyRegistriesLeaveTheChallengesInUse(t *testing.T) {
	r := newFixture(config{Policy: access.Policy{ServeCached: true}, Wait: time.Hour})
	r.challenges(`Basic realm="r"`)
	of := func(registry string) []int {
		return []int{r.get("app/blobs/" + string(r.layer) + "?ns=" + registry).StatusCode,
			ask(r.mirror, http.MethodGet, "/v2/?ns="+registry).StatusCode}
	}
	for i := range 600 {
		require.Equal(t, []int{401, 401}, of(fmt.Sprintf("r%d.test", i)))
		if i%200 == 0 {
			of("used.test")
		}
	}
	r.Forget() // what the resolver repeats for ten seconds
	r.up.fail(errors.New("connection refused"))
	assert.Equal(t, []int{401, 401}, of("used.test"))
	assert.Equal(t, []int{401, 401}, of("r599.test"), "the newest")
	assert.Equal(t, []int{502, 502}, of("r0.test"), "the oldest: the memory is bounded")
}
