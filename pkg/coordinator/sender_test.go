package coordinator

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/secret"
)

const clusterSecret = secret.String("9f8e4c1d7a2b6350e1f4a9c8d7b6053f2e1a8c9b4d7f6e5a")

// keyHolder is a member whose ID is the name of its key.
func keyHolder(t *testing.T) *identity.Identity {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	id, err := identity.New(identity.Config{Secret: clusterSecret,
		HostID: host.OfKey(key.Public().(ed25519.PublicKey)), Key: key})
	require.NoError(t, err)
	return id
}

// drawn is a member of a version before host keys: the owner accepts any random ID.
func drawn(t *testing.T, id host.ID) *identity.Identity {
	t.Helper()
	i, err := identity.New(identity.Config{Secret: clusterSecret, HostID: id})
	require.NoError(t, err)
	return i
}

// secureOwner serves a coordinator over the members' TLS.
func secureOwner(t *testing.T, c *Coordinator) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(c.HandleAnnounce),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	go srv.Serve(keyHolder(t).WrapListener(l, "http/1.1"))
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

// tell sends an announce over a member's connection.
func tell(t *testing.T, as *identity.Identity, addr string, r api.AnnounceRequest) (status int, body string) {
	t.Helper()
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var d net.Dialer
	tr := &http.Transport{DialTLSContext: as.WrapDialer(d.DialContext, "http/1.1"), DisableKeepAlives: true}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+addr+"/", bytes.NewReader(b))
	require.NoError(t, err)
	res, err := tr.RoundTrip(req)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(text)
}

// A host may announce only for itself.
func TestCheckSender(t *testing.T) {
	var lines bytes.Buffer
	refusals := map[Refusal]int{}
	c := New(Config{Host: member("0"), Logger: slog.New(slog.NewTextHandler(&lines, nil)),
		Refused: func(r Refusal) { refusals[r]++ }})
	addr := secureOwner(t, c)
	victim, thief := keyHolder(t), keyHolder(t)
	at := func(id *identity.Identity, port int) host.Host {
		return host.Host{ID: id.HostID(), Name: "n", Addr: fmt.Sprintf("10.0.0.1:%d", port)}
	}
	held := api.Entry{Task: taskID("a"), Event: api.Completed, Have: 1}
	status, body := tell(t, victim, addr, api.AnnounceRequest{Version: 1, Host: at(victim, 65002), Generation: 7,
		Entries: []api.Entry{held}})
	require.Equal(t, http.StatusOK, status, body)
	known := func(t *testing.T) {
		t.Helper()
		list := c.Hosts()
		require.Len(t, list, 1)
		assert.Equal(t, victim.HostID(), list[0].ID)
		assert.Equal(t, "10.0.0.1:65002", list[0].Addr)
		assert.Equal(t, 1, list[0].Tasks)
	}
	known(t)

	t.Run("another member cannot say that it leaves", func(t *testing.T) {
		status, body := tell(t, thief, addr, api.AnnounceRequest{Version: 1, Host: at(victim, 65002), Generation: 7,
			Leaving: true})
		assert.Equal(t, http.StatusForbidden, status)
		assert.Contains(t, body, string(thief.HostID()), "the line names the sender")
		known(t)
	})
	t.Run("nor move it", func(t *testing.T) {
		status, _ := tell(t, thief, addr, api.AnnounceRequest{Version: 1, Host: at(victim, 666), Generation: 7})
		assert.Equal(t, http.StatusForbidden, status)
		known(t)
	})
	t.Run("nor with a certificate that it wrote for the host's ID", func(t *testing.T) {
		_, err := identity.New(identity.Config{Secret: clusterSecret, HostID: victim.HostID()})
		assert.ErrorIs(t, err, host.ErrInvalidID,
			"this program makes none; pkg/identity tests one that was made otherwise")
	})
	t.Run("a host without a key has one life at a time", func(t *testing.T) {
		old := host.NewID()
		h := host.Host{ID: old, Addr: "10.0.0.2:65002"}
		status, body := tell(t, drawn(t, old), addr, api.AnnounceRequest{Version: 1, Host: h, Generation: 1})
		require.Equal(t, http.StatusOK, status, body)
		h.Addr = "10.0.0.3:65002"
		status, body = tell(t, drawn(t, old), addr, api.AnnounceRequest{Version: 1, Host: h, Generation: 2})
		assert.Equal(t, api.StatusInUse, status)
		assert.Contains(t, body, "10.0.0.2:65002", "where the other is")
		status, _ = tell(t, drawn(t, old), addr, api.AnnounceRequest{Version: 1, Host: h, Generation: 2, Leaving: true})
		assert.Equal(t, api.StatusInUse, status)
		h.Addr = "10.0.0.2:65002"
		status, _ = tell(t, drawn(t, old), addr, api.AnnounceRequest{Version: 1, Host: h, Generation: 1, Leaving: true})
		assert.Equal(t, http.StatusOK, status, "its own farewell counts, though its key is another each time")
		known(t)
	})
	t.Run("no other host announces for the owner", func(t *testing.T) {
		web := http.HandlerFunc(c.HandleAnnounce)
		b, err := json.Marshal(api.AnnounceRequest{Version: 1, Host: member("0"), Leaving: true})
		require.NoError(t, err)
		w := httptest.NewRecorder()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(b))
		require.NoError(t, err)
		req.RemoteAddr = "10.9.9.9:1"
		web.ServeHTTP(w, req)
		assert.Equal(t, api.StatusInUse, w.Code)
	})

	assert.Equal(t, 2, refusals[RefusedForeign])
	assert.Equal(t, 3, refusals[RefusedInUse])
	told := c.RefusedHosts(time.Now())
	require.NotEmpty(t, told)
	assert.Equal(t, 1, strings.Count(lines.String(), "announces for host"), "one line a minute for one host")
}

func TestRefusedHostsAreBounded(t *testing.T) {
	var o refusedHosts
	now := time.Unix(1e9, 0)
	lines := 0
	for i := range 10_000 {
		if tell, _ := o.note(now.Add(time.Duration(i)*time.Millisecond),
			refusalKey{host.NewID(), "10.0.0.66", RefusedInUse}, "x"); tell {
			lines++
		}
	}
	assert.LessOrEqual(t, len(o.list), refusedMax)
	assert.LessOrEqual(t, lines, refusedMax+1, "a host with many IDs is logged by its address")
	tell, _ := o.note(now.Add(time.Hour), refusalKey{"a", "10.0.0.1", RefusedForeign}, "y")
	assert.True(t, tell)
}

func TestSourcesAreMachines(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "::ffff:10.0.0.1", "::1": "::1",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "pipe": "pipe",
	} {
		assert.Equal(t, want, Sender{Remote: remote}.source(), remote)
	}
	assert.Equal(t, "10.0.0.7", senderOf(context.Background(), host.Host{Addr: "10.0.0.7:1"}).Remote)
}
