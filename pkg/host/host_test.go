package host_test

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
)

// A drawn ID can be parsed, and no two are equal.
func TestNewID(t *testing.T) {
	ids, peers := map[host.ID]bool{}, map[[20]byte]bool{}
	for range 1000 {
		id := host.NewID()
		read, err := host.ParseID(string(id))
		require.NoError(t, err)
		assert.Equal(t, id, read)
		ids[id], peers[id.PeerID()] = true, true
	}
	assert.Len(t, ids, 1000)
	assert.Len(t, peers, 1000, "names in handshakes differ as the IDs do")
}

// ParseID refuses what is no ID.
func TestParseID(t *testing.T) {
	good := "00112233445566778899aabbccddeeff"
	_, err := host.ParseID(good)
	require.NoError(t, err)
	for _, bad := range []string{
		"", good[1:], good + "0", good + "00", strings.ToUpper(good), "g" + good[1:], " " + good[1:], good[:31] + "\n",
		"../../../../../../../etc/passwd0", strings.Repeat("é", 16),
	} {
		_, err := host.ParseID(bad)
		assert.ErrorIs(t, err, host.ErrInvalidID, "%q", bad)
	}
	_, err = host.ParseID(strings.Repeat("x", 1<<20))
	assert.Less(t, len(err.Error()), 200, "what comes from outside is told cut")
}

// An ID is parsed exactly or refused.
func FuzzParseID(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff")
	f.Add("00112233445566778899AABBCCDDEEFF")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := host.ParseID(s); err == nil {
			assert.Equal(t, s, string(id))
			assert.Regexp(t, "^[0-9a-f]{32}$", s)
		}
	})
}

// The peer ID begins with the client's letters and stays the same.
func TestPeerID(t *testing.T) {
	id := host.ID("00112233445566778899aabbccddeeff")
	p := id.PeerID()
	assert.Equal(t, "-DR0100-", string(p[:8]), "BEP 20")
	assert.Equal(t, "2d4452303130302d5947d7c33d783f94b3b4c1a9", hex.EncodeToString(p[:]),
		"other releases must know this host again")
	assert.Equal(t, "00112233", id.Short())
	assert.Equal(t, "0011", host.ID("0011").Short())
	assert.Empty(t, host.ID("").Short())
}

// The JSON of a host leaves out empty fields.
func TestHostJSON(t *testing.T) {
	b, err := json.Marshal(host.Host{ID: "00", Addr: "10.0.0.1:65002"})
	require.NoError(t, err)
	assert.JSONEq(t, `{"id":"00","addr":"10.0.0.1:65002"}`, string(b))
	full := host.Host{ID: "00", Name: "node7", Addr: "[fd00::1]:65002", Zone: "rack3"}
	b, err = json.Marshal(full)
	require.NoError(t, err)
	var read host.Host
	require.NoError(t, json.Unmarshal(b, &read))
	assert.Equal(t, full, read)
}

// The ID of a key names that key only.
func TestOfKey(t *testing.T) {
	a, b := host.OfKey([]byte("key a")), host.OfKey([]byte("key b"))
	assert.Equal(t, a, host.OfKey([]byte("key a")))
	assert.NotEqual(t, a, b)
	assert.NotEqual(t, a.Short(), b.Short(), "what all share is no name")
	for _, id := range []host.ID{a, b} {
		_, err := host.ParseID(string(id))
		require.NoError(t, err)
		assert.True(t, id.Keyed())
	}
	assert.Equal(t, host.ID("da27e21d410c4131735750c1930cf2aa"), a, "other releases must know this host again")
	assert.False(t, host.ID("00112233445566778899aabbccddeeff").Keyed())
	assert.False(t, host.ID("da27e21d").Keyed())
	assert.False(t, host.ID("").Keyed())
}
