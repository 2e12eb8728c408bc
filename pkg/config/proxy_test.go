package config

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestProxySettings(t *testing.T) {
	for name, c := range map[string]struct{ env, says string }{
		"off":                         {"DARTER_PROXY_TUNNEL=any", ""},
		"for this machine":            {"DARTER_PROXY_LISTEN=127.0.0.1:65007", ""},
		"for others, anywhere":        {"DARTER_PROXY_LISTEN=:65007", "set proxy.tunnel to listed or none"},
		"a certificate without a key": {"DARTER_PROXY_CA=ca.crt", "ca and caKey go together"},
		"a registry that is none":     {"DARTER_PROXY_HOSTS=other.test", `"other.test" is not in upstreams`},
		"a registry in other letters": {"DARTER_PROXY_HOSTS=QUAY.io", ""},
		"a policy that is none":       {"DARTER_PROXY_TUNNEL=some", "not one of any, listed, none"},
	} {
		err := NewForm("dfdaemon", new(Dfdaemon)).Load([]string{"DARTER_NODE_DATA_DIR=/d", c.env})
		if c.says == "" {
			assert.NoError(t, err, name)
			continue
		}
		assert.ErrorContains(t, err, c.says, name)
	}
	load := func(env ...string) error {
		return NewForm("dfdaemon", new(Dfdaemon)).Load(append(env, "DARTER_NODE_DATA_DIR=/d"))
	}
	assert.NoError(t, load("DARTER_PROXY_LISTEN=:65007", "DARTER_PROXY_TUNNEL=listed"))
	assert.NoError(t, load("DARTER_PROXY_TUNNEL=listed", "DARTER_PROXY_TUNNEL_HOSTS=*.example.com"))
	assert.ErrorContains(t, load("DARTER_PROXY_TUNNEL=listed", "DARTER_PROXY_TUNNEL_HOSTS=a.test,*"),
		"set proxy.tunnel to any")
}
