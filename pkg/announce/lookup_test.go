package announce_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/announce"
	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/lag"
	"github.com/darter-io/darter/pkg/task"
)

// transport is a network in one function.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func asker(scheme string, owners []string, f transport) *announce.Client {
	return announce.New(announce.Config{Owners: owners, Scheme: scheme, Client: &http.Client{Transport: f}})
}

var tagLookup = api.Lookup{Version: 1, Kind: task.Manifest, Upstream: "r.test", Repository: "app", Reference: "v1"}

func said(body string) *http.Response {
	return &http.Response{StatusCode: 200, Status: "200 OK", Body: io.NopCloser(strings.NewReader(body))}
}

const unreachedAnswer = `{"version":1,"unreached":"by design"}`

// All hosts send a lookup to the same owner.
func TestLookupOwner(t *testing.T) {
	var first string
	for _, owners := range [][]string{{"a:1", "b:1", "c:1"}, {"c:1", "a:1", "b:1"}} {
		c := asker("http", owners, func(r *http.Request) (*http.Response, error) {
			assert.Equal(t, api.PathLookups, r.URL.Path)
			if first == "" {
				first = r.URL.Host
			}
			assert.Equal(t, first, r.URL.Host)
			return said(unreachedAnswer), nil
		})
		a, err := c.Lookup(t.Context(), tagLookup)
		require.NoError(t, err)
		assert.Equal(t, "by design", a.Unreached)
	}
}

// A lookup with a credential goes over TLS only.
func TestLookupNeedsTLS(t *testing.T) {
	asked := 0
	count := func(r *http.Request) (*http.Response, error) {
		asked++
		assert.Equal(t, "https", r.URL.Scheme)
		return said(unreachedAnswer), nil
	}
	q := tagLookup
	q.Authorization = "Bearer geheim"
	_, err := asker("http", []string{"a:1"}, count).Lookup(t.Context(), q)
	require.ErrorIs(t, err, announce.ErrNoOwner)
	assert.NotContains(t, err.Error(), "geheim")
	assert.Zero(t, asked)
	_, err = asker("https", []string{"a:1"}, count).Lookup(t.Context(), q)
	require.NoError(t, err)
	assert.Equal(t, 1, asked)
}

// A lookup passes over an owner that is dead.
func TestLookupOwnerDead(t *testing.T) {
	asked := 0
	c := asker("http", []string{"a:1", "b:1", "c:1"}, func(r *http.Request) (*http.Response, error) {
		if asked++; asked < 3 {
			return nil, errors.New("connection refused")
		}
		return said(unreachedAnswer), nil
	})
	_, err := c.Lookup(t.Context(), tagLookup)
	require.NoError(t, err)
	assert.Equal(t, 3, asked)
	for _, answer := range []string{"{}", "", strings.Repeat("x", api.LookupReplyMax+5)} {
		c = asker("http", []string{"a:1"}, func(*http.Request) (*http.Response, error) { return said(answer), nil })
		_, err = c.Lookup(t.Context(), tagLookup)
		require.ErrorIs(t, err, announce.ErrNoOwner)
	}
	_, err = asker("http", nil, nil).Lookup(t.Context(), tagLookup)
	require.ErrorIs(t, err, announce.ErrNoOwner)
}

// An owner must confirm a lookup within a second and may wait for its registry.
func TestLookupConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := asker("http", []string{"a:1", "b:1"}, func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		})
		_, err := c.Lookup(t.Context(), tagLookup)
		require.ErrorIs(t, err, announce.ErrNoOwner)
		require.ErrorContains(t, err, "did not confirm within 1s")
		assert.Equal(t, time.Second, time.Since(began), "for all owners together")

		c = asker("http", []string{"a:1"}, func(r *http.Request) (*http.Response, error) {
			res := said("")
			res.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
				time.Sleep(9 * time.Second)
				return copy(p, unreachedAnswer), io.EOF
			}))
			return res, r.Context().Err()
		})
		_, err = c.Lookup(t.Context(), tagLookup)
		require.NoError(t, err)
	})
}

// A host that was stopped while an owner replied does not pass the owner over.
func TestRecallInAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		meter := lag.New(lag.Config{Wait: func(ctx context.Context, d time.Duration) {
			if at := time.Since(began); at > time.Second && at < 7*time.Second {
				d = 7*time.Second - at // the process was stopped meanwhile
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
			}
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = meter.Run(ctx) }()
		hangs := transport(func(r *http.Request) (*http.Response, error) {
			select {
			case <-time.After(6 * time.Second):
				return said(unreachedAnswer), nil
			case <-r.Context().Done():
				return nil, context.Cause(r.Context())
			}
		})
		c := announce.New(announce.Config{Owners: []string{"a:1"}, Lag: meter, Client: &http.Client{Transport: hangs}})
		assert.Len(t, c.Recall(ctx, tagLookup), 1, "it lost five of the six seconds")
		time.Sleep(2 * time.Second)
		assert.Empty(t, c.Recall(ctx, tagLookup), "it ran for all of them")
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An owner of a former version, without lookups, is passed over.
func TestLookupFormerVersion(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1); http.NotFound(w, r) }))
	defer srv.Close()
	c := announce.New(announce.Config{Owners: []string{strings.TrimPrefix(srv.URL, "http://")}, Client: srv.Client()})
	_, err := c.Lookup(t.Context(), tagLookup)
	require.ErrorIs(t, err, announce.ErrNoOwner)
	assert.EqualValues(t, 1, asked.Load())
}
