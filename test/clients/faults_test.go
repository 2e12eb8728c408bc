package clients_test

import (
	"context"
	"flag"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/clients"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/results"
)

// end is the required end of a pull.
type end int

const (
	succeeds end = iota // with the image, for every client
	fails               // with an error: the image is not available
	either              // with one of them: clients treat a short body differently
)

// fault is a fault of the registry.
type fault struct {
	name string
	// script holds faults of all blobs; faults without a match are for the largest layer.
	script []registrytest.Fault
	end    end
	// silence bounds the wait for a byte on an idle machine.
	silence time.Duration
	// egress bounds the bytes that the registry sends, in images; 0 means no bound.
	egress float64
}

// cut is the offset of a cut. Only the largest layer is that long.
const cut = 1500e3

// of returns a fault for all blobs.
func of(f registrytest.Fault) []registrytest.Fault {
	f.Match = "/blobs/"
	return []registrytest.Fault{f}
}

// largest limits faults without a match to the GETs of an image's largest layer.
func largest(p registrytest.Pushed, script ...registrytest.Fault) []registrytest.Fault {
	script = slices.Clone(script)
	for i := range script {
		if script[i].Match == "" {
			script[i].Match = "GET " + p.Repository + "/blobs/" + p.Layers()[0].Digest
		}
	}
	return script
}

func faults() []fault {
	status := func(code int, header map[string]string, times int) []registrytest.Fault {
		return of(registrytest.Fault{Action: registrytest.ActStatus, Status: code, Header: header, Times: times})
	}
	return []fault{
		{"none", nil, succeeds, 5 * time.Second, 1.02},
		{"body cut once", []registrytest.Fault{{Action: registrytest.ActTruncate, At: cut, Times: 1}}, succeeds,
			5 * time.Second, 1.02},
		{"every body cut once more each time",
			[]registrytest.Fault{{Action: registrytest.ActTruncate, At: 400e3, Times: 5}},
			succeeds, 5 * time.Second, 1.02},
		{"body reset once", []registrytest.Fault{{Action: registrytest.ActReset, At: cut, Times: 1}}, succeeds,
			5 * time.Second, 1.6},
		{"body cut, Range ignored", []registrytest.Fault{
			{Action: registrytest.ActTruncate, At: cut, Times: 1},
			{Action: registrytest.ActIgnoreRange},
		}, succeeds, 5 * time.Second, 1.6},
		{"redirect to another host", []registrytest.Fault{{Action: registrytest.ActRedirect, Match: "/blobs/"}},
			succeeds, 5 * time.Second, 1.02},
		{"blobs 429 once, Retry-After 1 s", status(429, map[string]string{"Retry-After": "1"}, 1), succeeds,
			10 * time.Second, 1.02},
		{"blobs 503 once", status(503, nil, 1), succeeds, 10 * time.Second, 1.02},
		{"headers of blobs 3 s late", of(registrytest.Fault{Action: registrytest.ActSlowHeaders, DelayMillis: 3000,
			Times: 2}), succeeds, 10 * time.Second, 1.02},
		{"wrong bytes once", []registrytest.Fault{{Action: registrytest.ActCorrupt, At: 40e3, Times: 1}}, either,
			10 * time.Second, 2.02},
		{"wrong bytes always", []registrytest.Fault{{Action: registrytest.ActCorrupt, At: 40e3}}, fails,
			10 * time.Second, 0},
		{"a shorter layer", []registrytest.Fault{{Action: registrytest.ActWrongLength, At: cut}}, fails,
			10 * time.Second, 0},
		{"a longer layer", []registrytest.Fault{{Action: registrytest.ActWrongLength, At: 4e6}}, fails,
			10 * time.Second, 0},
		{"no lengths", []registrytest.Fault{{Action: registrytest.ActNoLength}}, succeeds, 5 * time.Second, 1.02},
		{"blobs 429 always", status(429, map[string]string{"Retry-After": "1"}, 0), fails, 10 * time.Second, 0},
		{"blobs 503 always", status(503, nil, 0), fails, 10 * time.Second, 0},
		{"blobs 404 always", status(404, nil, 0), fails, 5 * time.Second, 0},
	}
}

// TestFaults is the fault matrix of the libraries: every pull ends with the right bytes or an error. Only the mirror
// answers them.
func TestFaults(t *testing.T) {
	out := results.New()
	var mu sync.Mutex
	t.Run("matrix", func(t *testing.T) {
		with(t, clients.All(), func(t *testing.T, l clients.Library) {
			n := slices.IndexFunc(clients.All(), func(o clients.Library) bool { return o.Name == l.Name })
			for i, f := range faults() {
				if race.Enabled && i%6 != n%6 {
					continue // there each fault meets one library or two
				}
				t.Run(f.name, func(t *testing.T) {
					t.Parallel()
					r := f.play(t, l)
					mu.Lock()
					defer mu.Unlock()
					out.Add(r...)
				})
			}
		})
	})
	slices.SortStableFunc(out.Results, func(a, b results.Result) int { return strings.Compare(a.Scenario, b.Scenario) })
	publish(t, out)
}

// play pulls an image during the fault, and again after it.
func (f fault) play(t *testing.T, l clients.Library) []results.Result {
	s := newSite(t, registrytest.Config{})
	p := s.image("lib/app", 10)
	s.Fail(largest(p, f.script...)...)
	began := time.Now()
	dir, err := s.pull(l, p.Repository, "v1", login{})
	took, silence := time.Since(began), s.silence.Longest()
	requireNothingWrong(t, dir)
	if f.end == succeeds {
		require.NoError(t, err)
	}
	if f.end == fails {
		require.Error(t, err)
	}
	ended := 0.0
	if err == nil {
		requireRight(t, dir, p.Objects)
		ended = 1
	}
	counts := s.Counts()
	egress := float64(counts.Egress) / float64(p.Bytes())
	assert.Zero(t, counts.Leaks, "no credentials at another host")
	scenario := "fault/" + f.name + "/" + l.Name
	measured := []results.Result{
		{Scenario: scenario, Metric: "right_bytes", Value: ended, Unit: "bool", Better: "higher"},
		{Scenario: scenario, Metric: "seconds", Value: took.Seconds(), Unit: "seconds", Better: "lower"},
		results.Result{Scenario: scenario, Metric: "longest_silence", Value: silence.Seconds(), Unit: "seconds",
			Better: "lower"}.AtMost(f.silence.Seconds()),
		{Scenario: scenario, Metric: "registry_egress_ratio", Value: egress, Unit: "ratio", Better: "lower"},
	}
	if f.egress > 0 {
		measured[3] = measured[3].AtMost(f.egress)
	}
	assert.Less(t, silence, silenceLimit)
	for _, m := range measured {
		if m.Unit != "seconds" { // those are for the reader: a busy machine decides no test
			assert.False(t, m.Missed(), "%s: %.3f %s", m.Metric, m.Value, m.Unit)
		}
	}

	// Soon after the fault, the next client no longer gets the old error.
	s.ClearFaults()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		dir, err := s.pull(l, p.Repository, "v1", login{})
		if assert.NoError(c, err, "after the fault") {
			requireRight(t, dir, p.Objects)
		}
	}, pullLimit, 200*time.Millisecond)
	return measured
}

// A client waits for a slow registry, which does not delay other pulls.
func TestSlowRegistry(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		s := newSite(t, registrytest.Config{})
		slow, quick := s.image("lib/app", 20), s.image("lib/quick", 21)
		_, err := s.pull(l, quick.Repository, "v1", login{})
		require.NoError(t, err)
		// The largest layer stalls in its middle until the fault ends.
		s.Fail(largest(slow, registrytest.Fault{Action: registrytest.ActStall, At: cut, Times: 1})...)
		done := make(chan error, 1)
		go func() {
			dir, err := s.pull(l, slow.Repository, "v1", login{})
			if err == nil {
				requireRight(t, dir, slow.Objects)
			}
			done <- err
		}()
		for s.Counts().Object(slow.Layers()[0].Digest).Bytes < cut {
			time.Sleep(10 * time.Millisecond)
		}
		began := time.Now()
		dir, err := s.pull(l, quick.Repository, "v1", login{})
		require.NoError(t, err)
		requireRight(t, dir, quick.Objects)
		t.Logf("%s pulled a cached image during a stalled pull in %v", l.Name,
			time.Since(began).Round(time.Millisecond))
		s.ClearFaults()
		require.NoError(t, <-done)
	})
}

// A token that expires during a blob does not end the pull.
func TestTokenExpires(t *testing.T) {
	alice := login{"alice", "wonder"}
	cfg := registrytest.Config{Auth: registrytest.Bearer,
		Users: map[string]registrytest.User{alice.user: {Password: alice.password, Pull: []string{"lib/*"}}}}
	each(t, func(t *testing.T, l clients.Library) {
		if !l.OwnLogin {
			t.Skip("this library sends a mirror no credentials, so it has no token that could expire there")
		}
		s := newSite(t, cfg)
		p := s.image("lib/app", 30)
		s.Fail(largest(p,
			registrytest.Fault{Action: registrytest.ActStall, At: cut, Times: 1},
			registrytest.Fault{Action: registrytest.ActTruncate, At: cut + 1, Times: 1},
		)...)
		done := make(chan error, 1)
		var dir string
		go func() {
			var err error
			dir, err = s.pull(l, p.Repository, "v1", alice)
			done <- err
		}()
		for s.Counts().Object(p.Layers()[0].Digest).Bytes < cut {
			time.Sleep(10 * time.Millisecond)
		}
		s.RevokeTokens()
		s.ClearFaults()
		err := <-done
		requireNothingWrong(t, dir)
		t.Logf("%s: %v", l.Name, err)
		if err != nil {
			dir, err = s.pull(l, p.Repository, "v1", alice)
			require.NoError(t, err, "the second try")
		}
		requireRight(t, dir, p.Objects)
	})
}

// A full cache does not end a pull.
func TestFullCache(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		r := registrytest.Start(t, registrytest.Config{})
		s := newSiteWithQuota(t, r, 2<<20) // the largest layer has more
		if l.Servers {
			s.server = r.Host() // where the mirror refuses what the client can get elsewhere
		}
		p := s.image("lib/app", 60)
		for range 2 {
			dir, err := s.pull(l, p.Repository, "v1", login{})
			require.NoError(t, err)
			requireRight(t, dir, p.Objects)
		}
		assert.Less(t, s.silence.Longest(), silenceLimit)
	})
}

// A dead registry is reported at once; cached images are served.
func TestDeadRegistry(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		cfg := registrytest.Config{Dir: t.TempDir()}
		r, err := registrytest.Listen(cfg)
		require.NoError(t, err)
		run := func(r *registrytest.Registry) (kill func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx) }()
			kill = sync.OnceFunc(func() {
				cancel()
				assert.NoError(t, <-done)
			})
			t.Cleanup(kill)
			return kill
		}
		kill := run(r)
		s := newSiteOf(t, r)
		p := s.image("lib/app", 40)
		_, err = s.pull(l, p.Repository, "v1", login{})
		require.NoError(t, err)

		kill()
		for _, reference := range []string{p.Digest, "v1"} {
			began := time.Now()
			dir, err := s.pull(l, p.Repository, reference, login{})
			t.Logf("%s %s: with a warm cache and a dead registry: %.2f s, %v", l.Name, reference,
				time.Since(began).Seconds(), err)
			requireNothingWrong(t, dir)
			// A resolved tag expires.
			if reference == p.Digest {
				require.NoError(t, err, "by digest")
			}
			if err == nil {
				requireRight(t, dir, p.Objects)
			}
		}
		assert.Less(t, s.silence.Longest(), silenceLimit)

		cfg.Addr = r.Host()
		again, err := registrytest.Listen(cfg)
		require.NoError(t, err)
		run(again)
		dir, err := s.pull(l, p.Repository, "v1", login{})
		require.NoError(t, err)
		requireRight(t, dir, p.Objects)
		for _, o := range p.Objects {
			assert.Zero(t, again.Counts().Object(o.Digest).GETs, "the cache held %s %s", o.Kind, o.Digest)
		}
	})
}

var outFile = flag.String("out", "", "output file for the figures (JSON); figures of other scenarios in it are kept")

// publish prints the figures and writes them to the file of -out.
func publish(t *testing.T, out *results.File) {
	var table strings.Builder
	require.NoError(t, out.Print(&table))
	t.Log("\n" + table.String())
	if *outFile == "" {
		return
	}
	require.NoError(t, out.Merge(*outFile))
	require.NoError(t, out.Write(*outFile))
}
