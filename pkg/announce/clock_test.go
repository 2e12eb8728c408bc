package announce

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/owners"
)

// clocked is a town whose owners send their clocks.
type clocked struct {
	*town
	// ahead is how far each owner's clock is ahead; date is true if the owner sends only the Date of HTTP.
	ahead map[string]time.Duration
	date  bool
}

func (w *clocked) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := w.town.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().Add(w.ahead[r.URL.Host]).UTC()
	if w.date {
		answer.Header.Set("Date", now.Format(http.TimeFormat))
	} else {
		answer.Header.Set(api.HeaderClock, now.Format(time.RFC3339Nano))
	}
	return answer, nil
}

func (w *clocked) jump(addr string, ahead time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead[addr] = ahead
}

// The host does not use an owner whose clock is too far off.
func TestOwnerClock(t *testing.T) {
	for _, date := range []bool{false, true} {
		for _, ahead := range []time.Duration{-72 * time.Hour, 72 * time.Hour} {
			t.Run(map[bool]string{false: "", true: "by Date "}[date]+ahead.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w, own := &clocked{town: newTown("a:1"), ahead: map[string]time.Duration{}, date: date}, &solo{}
					var lines bytes.Buffer
					c := New(Config{
						Host: self, Generation: 7, Owners: []string{"a:1"}, Scheme: "https",
						Client: &http.Client{Transport: w}, Local: own,
						Logger: slog.New(slog.NewTextHandler(&lines, nil)),
					})
					ended := make(chan error, 1)
					ctx, cancel := context.WithCancel(t.Context())
					go func() { ended <- c.Run(ctx) }()
					assert.Equal(t, "a:1", answeredBy(t, c, started("one")))
					own.lines()

					w.jump("a:1", ahead)
					began := time.Now()
					assert.Equal(t, local, answeredBy(t, c, started("two")))
					assert.Less(t, time.Since(began), time.Second, "it is not waited for")
					time.Sleep(time.Minute)
					status := c.Owners()
					require.Len(t, status, 1)
					assert.False(t, status[0].Alive)
					assert.Contains(t, status[0].Error, "this host's clock says")
					assert.InDelta(t, ahead.Seconds(), status[0].Skew, 2)
					assert.Equal(t, 1, strings.Count(lines.String(), "level=WARN"), &lines)
					assert.Contains(t, lines.String(), "set the clock that is wrong (NTP)")

					w.jump("a:1", 0)
					time.Sleep(2 * owners.RetryMax)
					assert.Equal(t, "a:1", answeredBy(t, c, started("three")))
					assert.Zero(t, c.Owners()[0].Skew)
					cancel()
					require.NoError(t, <-ended)
				})
			})
		}
	}
}

// One owner whose clock is too far off is passed over.
func TestOneOwnerClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, own := &clocked{town: newTown("a:1", "b:1"), ahead: map[string]time.Duration{}}, &solo{}
		c := New(Config{Host: self, Owners: []string{"a:1", "b:1"}, Scheme: "https",
			Client: &http.Client{Transport: w}, Local: own})
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- c.Run(ctx) }()
		id := ledBy([]string{"a:1", "b:1"}, "a:1")
		assert.Equal(t, "a:1", answeredBy(t, c, started(id)))
		w.jump("a:1", 72*time.Hour)
		assert.Equal(t, "b:1", answeredBy(t, c, started(id)))
		assert.Empty(t, own.lines())
		cancel()
		require.NoError(t, <-ended)
	})
}

// A small difference of clocks is logged once.
func TestClockNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &clocked{town: newTown("a:1"), ahead: map[string]time.Duration{"a:1": 20 * time.Hour}}
		var lines bytes.Buffer
		c := New(Config{Host: self, Owners: []string{"a:1"}, Scheme: "https", Client: &http.Client{Transport: w},
			Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- c.Run(ctx) }()
		for range 10 {
			assert.Equal(t, "a:1", answeredBy(t, c, started("one")))
			time.Sleep(time.Minute)
		}
		assert.Equal(t, 1, strings.Count(lines.String(), "level=WARN"), &lines)
		assert.Contains(t, lines.String(), "clocks differ")
		cancel()
		require.NoError(t, <-ended)
	})
}

// failing is a host's part in purging that reports failures.
type failing []api.PurgeFailure

func (f failing) Fill(_ string, r *api.AnnounceRequest) { r.PurgeFailures = f }

func (f failing) Learn(context.Context, string, string, apiclient.Client) bool { return false }

// Owners receive which purge orders a host could not carry out.
func TestPurgeFailuresAreAnnounced(t *testing.T) {
	trouble := []api.PurgeFailure{{Task: "t", Why: "busy"}}
	w := newTown("a:1")
	w.owners["a:1"].answer = func(_ api.AnnounceRequest, a *api.AnnounceResponse) { a.PurgeMark = "" }
	inTown(t, w, Config{Purges: failing(trouble), Now: func() time.Time { return time.Unix(77, 0) }},
		func(t *testing.T, c *Client) {
			assert.Equal(t, "a:1", answeredBy(t, c, started("one")))
			w.mu.Lock()
			defer w.mu.Unlock()
			last := w.owners["a:1"].seen[len(w.owners["a:1"].seen)-1]
			assert.Equal(t, trouble, last.PurgeFailures)
			assert.Equal(t, int64(77), last.Clock.Unix())
		})
}
