package dfget

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// unknown is a fetcher that does not know the sources of its bytes.
type unknown struct{ fetcher }

func (unknown) progress(context.Context, *job, string) (shares, bool) { return shares{}, false }

// report returns the progress of a download that waits for its first answer, then ends within a second. A second
// download never starts.
func report(t *testing.T, progress string, wait time.Duration) string {
	var stderr bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		var jobs []*job
		for _, name := range []string{"f", "later"} {
			u, err := url.Parse("http://files.test/" + name)
			require.NoError(t, err)
			jobs = append(jobs, &job{url: u, meter: newMeter(u, name)})
		}
		cfg := Config{Stderr: &stderr, Settings: config.Dfget{Progress: config.Progress(progress)}}
		r := newReporter(cfg, jobs, unknown{})
		done, ended := make(chan struct{}), make(chan struct{})
		go func() {
			r.run(t.Context(), done)
			close(ended)
		}()
		m := jobs[0].meter
		m.start()
		time.Sleep(wait)
		m.begin(&answer{body: http.NoBody, length: 2048}, 0)
		m.add(2048)
		time.Sleep(time.Second)
		m.end(nil)
		close(done)
		<-ended
	})
	return stderr.String()
}

// The progress reports a download that has no answer yet.
func TestProgressWaiting(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		out := report(t, "plain", 12*time.Second)
		assert.Contains(t, out, "f: no answer yet, after 5s\nf: no answer yet, after 10s\nf: 2.0 KiB in 13s, ")
		assert.NotContains(t, report(t, "plain", 3*time.Second), "no answer", "a short wait needs no line")
	})
	t.Run("json", func(t *testing.T) {
		var kinds []string
		for line := range strings.Lines(report(t, "json", 3500*time.Millisecond)) {
			var e Event
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			assert.Equal(t, "f", e.File)
			if e.Event == "wait" {
				assert.InDelta(t, len(kinds)+1, e.Seconds, 0.5)
			}
			kinds = append(kinds, e.Event)
		}
		assert.Equal(t, []string{"wait", "wait", "wait", "start"}, kinds[:4])
		assert.Equal(t, "done", kinds[len(kinds)-1])
	})
	t.Run("bar", func(t *testing.T) {
		out := report(t, "bar", 3*time.Second)
		assert.Contains(t, out, "no answer  after 2s")
		assert.Contains(t, out, "100% 2.0 KiB")
		assert.NotContains(t, out, "later", "it has not started")
		assert.NotContains(t, report(t, "bar", 500*time.Millisecond), "no answer")
	})
}

func TestETA(t *testing.T) {
	for name, c := range map[string]struct {
		length, done int64
		rate         float64
		left         time.Duration
	}{
		"half of the file":         {2000, 1000, 100, 10 * time.Second},
		"the whole file":           {2000, 2000, 100, 0},
		"unknown length":           {-1, 1000, 100, -1},
		"no byte yet":              {2000, 0, 0, -1},
		"more than a day":          {20e9, 1e9, 1000, -1},
		"slow":                     {86400, 0, 1, 24 * time.Hour},
		"hours are not in seconds": {36600, 0, 1, 10*time.Hour + 10*time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.left, state{begun: true, length: c.length, done: c.done, rate: c.rate}.eta())
		})
	}
}

func TestETAText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 9 * time.Second: "9s", 60 * time.Second: "1m0s", 3725 * time.Second: "1h2m", 24 * time.Hour: "24h0m",
	} {
		s := state{begun: true, length: int64(d / time.Second), rate: 1}
		assert.Equal(t, want+" left", s.columns()[3])
		assert.Contains(t, s.line(), ", "+want+" left")
	}
}

// A source with few bytes is named, and no source gets all of the percent while another one sent bytes.
func TestSharesText(t *testing.T) {
	for want, s := range map[string]api.Sources{
		"":                                    {},
		"100% from seeds":                     {Seeds: 10},
		"100% from peers":                     {Peers: 10},
		"100% from the origin":                {Origin: 10},
		"75% from peers, 25% from seeds":      {Peers: 3, Seeds: 1},
		">99% from peers, <1% from seeds":     {Peers: 1e6, Seeds: 1},
		"50% from seeds, 50% from the origin": {Seeds: 7, Origin: 7},
	} {
		assert.Equal(t, want, state{shares: shares{s}}.from())
	}
	assert.Equal(t, "75% cluster", state{begun: true, shares: shares{api.Sources{Seeds: 3, Origin: 1}}}.columns()[4])
}

// A stall shows no time left, and when bytes move again the time left follows from their speed alone.
func TestETAAfterStall(t *testing.T) {
	m := newMeter(&url.URL{Path: "/f"}, "f")
	ticks := func(n, bytes int) state {
		for range n {
			m.add(bytes)
			m.sample(tick)
		}
		return m.state()
	}
	ticks(15, 0) // before the answer
	m.begin(&answer{body: http.NoBody, length: 100_000}, 0)
	assert.Equal(t, 98*time.Second, ticks(10, 200).eta(), "1000 bytes per second")
	for burst := range 5 {
		ticks(4, 0)
		s := ticks(1, 1000)
		assert.InDelta(t, 98-burst-1, s.eta().Seconds(), 1, "the same bytes in bursts")
		assert.Zero(t, s.stalled)
	}
	s := ticks(60, 0)
	assert.Equal(t, 12*time.Second, s.stalled)
	assert.Negative(t, s.eta())
	assert.Equal(t, "7%, 6.8 KiB of 98 KiB, no byte for 12s", s.line())
	assert.Equal(t, [5]string{"7%", "6.8 KiB", "no byte", "for 12s"}, s.columns())
	s = ticks(1, 200)
	assert.Zero(t, s.stalled)
	assert.Equal(t, 93*time.Second, s.eta())
}
