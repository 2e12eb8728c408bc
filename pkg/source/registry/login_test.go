package registry

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// toRealm restores the realm that hideRealm encoded.
func TestAHiddenRealmIsFoundAgain(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "registry.test"}
	for _, c := range []struct {
		realm         string
		bare, private bool
		hidden        bool
	}{
		{"http://auth.test/token", true, false, true},
		{"http://auth.test/token", false, true, false},
		{"http://203.0.113.5/token?a=b", true, false, true},
		{"http://203.0.113.5/token", false, true, false},
		{"http://10.1.2.3:5001/token", true, false, false},
		{"http://10.1.2.3:5001/token", true, true, true},
		{"http://10.1.2.3:5001/token", false, true, false},
		{"https://10.1.2.3:5001/token", false, true, true},
		{"https://auth.test/token", true, true, false},
		{"ftp://10.1.2.3/token", true, true, false},
	} {
		control := &control{base: base, bare: c.bare, privateRealm: c.private}
		found := realmRegexp.FindStringSubmatch(control.hideRealm(`Bearer realm="` + c.realm + `",service="s"`))[2]
		assert.Equal(t, c.hidden, found != c.realm, "%+v", c)
		named := url.Values{"realm": {c.realm}, "scope": {"x"}}.Encode()
		req, err := http.NewRequest(http.MethodGet, "https://registry.test"+realmPath+"?"+named, nil)
		require.NoError(t, err)
		out, err := control.toRealm(req)
		require.Equal(t, c.hidden, err == nil, "%+v: %v", c, err)
		if err == nil {
			assert.Contains(t, out.URL.String(), c.realm)
			assert.Equal(t, "x", out.URL.Query().Get("scope"))
		}
	}
}
