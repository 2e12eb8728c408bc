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
		"stalled":                  {20e9, 1e9, 1000, -1},
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
