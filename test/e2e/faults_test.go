//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/results"
)

var outFile = flag.String("out", "", "output file for the figures (JSON); figures of other scenarios in it are kept")

// end is the required end of a row's pulls.
type end int

const (
	succeeds end = iota // with the image, for every tool
	fails               // with an error: the image is not available
	either              // with one of them: tools treat a short body differently
)

// row is one fault during a pull of all tools.
type row struct {
	name string
	// script holds faults of all blobs, largest those of the largest layer.
	script, largest []registrytest.Fault
	end             end
	// egress bounds the bytes that the registry sends, in images; 0 means no bound.
	egress float64
	// who are the credentials, only the tools of the pulls; the zero values are none and all.
	who  lab.Login
	only func(lab.Kind) bool
	// spared are tools that must get the image, although others may end either way.
	spared func(lab.Kind) bool
	// hurt are the tools whose dfdaemon ends or is full, so that it has no bystander.
	hurt func(lab.Kind) bool
	// dockerLimit bounds dockerd's own retries, if they may take longer than pullLimit.
	dockerLimit time.Duration
	// midst is called when the registry has sent half of the largest layer.
	midst func(c *tools)
	// before is called before the pulls, after at their end.
	before, after func(c *tools)
}

// The largest layer is cut in its middle; the others are shorter.
const (
	layerMost = 8e6
	cutAt     = 4e6
)

// silenceLogged is the silence beyond which the test prints the log of the mirror.
const silenceLogged = 5 * time.Second

// rows are all faults.
func rows() []row { return append(registryRows(), eventRows()...) }

// registryRows are the rows with faults of the registry.
func registryRows() []row {
	fault := func(a registrytest.Action, at int64, times int) registrytest.Fault {
		return registrytest.Fault{Action: a, At: at, Times: times}
	}
	refuse := func(status, times int, header map[string]string) []registrytest.Fault {
		return []registrytest.Fault{{Action: registrytest.ActStatus, Status: status, Match: "/blobs/", Times: times,
			Header: header}}
	}
	moment := map[string]string{"Retry-After": "1"}
	return []row{
		{name: "none", egress: 1.02},
		{name: "body cut once", largest: []registrytest.Fault{fault(registrytest.ActTruncate, cutAt, 1)}, egress: 1.02},
		// A cut loses the bytes of the piece that it interrupts.
		{name: "body cut five times", largest: []registrytest.Fault{fault(registrytest.ActTruncate, 1e6, 5)},
			egress: 1.06},
		{name: "body reset once", largest: []registrytest.Fault{fault(registrytest.ActReset, cutAt, 1)}, egress: 1.6},
		{name: "body cut, Range ignored", largest: []registrytest.Fault{fault(registrytest.ActTruncate, cutAt, 1),
			fault(registrytest.ActIgnoreRange, 0, 0)}, egress: 1.6},
		{name: "redirect to another host",
			script: []registrytest.Fault{{Action: registrytest.ActRedirect, Match: "/blobs/"}}, egress: 1.02},
		{name: "no lengths", largest: []registrytest.Fault{fault(registrytest.ActNoLength, 0, 0)}, egress: 1.02},
		{name: "blobs 429 once, Retry-After 1 s", script: refuse(429, 1, moment), egress: 1.02},
		{name: "blobs 503 once", script: refuse(503, 1, nil)},
		{name: "headers of blobs 3 s late", script: []registrytest.Fault{{Action: registrytest.ActSlowHeaders,
			DelayMillis: 3000, Match: "/blobs/", Times: 2}}, egress: 1.02},
		{name: "slow registry", before: func(c *tools) { c.slowly(2e6) },
			after: func(c *tools) { c.slowly(0) }, egress: 1.02},
		{name: "wrong bytes once", largest: []registrytest.Fault{fault(registrytest.ActCorrupt, 40e3, 1)}, end: either},
		{name: "a shorter layer, always", largest: []registrytest.Fault{fault(registrytest.ActWrongLength, cutAt, 0)},
			end: fails, only: quick},
		{name: "a longer layer, always",
			largest: []registrytest.Fault{fault(registrytest.ActWrongLength, layerMost+4e6, 0)},
			end:     fails, only: quick},
		{name: "a shorter layer, once",
			largest: []registrytest.Fault{fault(registrytest.ActWrongLength, cutAt, 1)}, end: either},
		{name: "wrong bytes always", largest: []registrytest.Fault{fault(registrytest.ActCorrupt, 40e3, 0)},
			end: fails, only: quick},
		{name: "blobs 503 always", script: refuse(503, 0, nil), end: fails},
		{name: "blobs 429 always", script: refuse(429, 0, nil), end: fails},
	}
}

// eventRows are the rows with events during the pulls, and with other states of the cluster.
func eventRows() []row {
	fault := func(a registrytest.Action, at int64, times int) registrytest.Fault {
		return registrytest.Fault{Action: a, At: at, Times: times}
	}
	restartAll := func(change func(args []string) []string) func(c *tools) {
		return func(c *tools) {
			for _, u := range c.users {
				u.restartWith(c.t, change)
			}
		}
	}
	unchanged := func(args []string) []string { return args }
	return []row{
		// dockerd waits 5, 10, 15, 20 and 25 s between its retries with the expired token.
		{name: "token ends in mid-blob", who: alice, only: ownLogin, end: either, dockerLimit: 5 * time.Minute,
			largest: []registrytest.Fault{
				fault(registrytest.ActStall, cutAt, 1), fault(registrytest.ActTruncate, cutAt+1, 1),
			}, midst: func(c *tools) {
				c.admin(http.MethodPost, "/revoke-tokens", nil, nil)
				c.admin(http.MethodDelete, "/faults", nil, nil)
			}},
		{name: "supernode killed in the middle", before: func(c *tools) { c.slowly(4e6) }, midst: func(c *tools) {
			require.NoError(c.t, c.supernode.Kill())
			c.slowly(0)
		}, after: func(c *tools) { c.startSupernode() }},
		{name: "dfdaemons of others killed in the middle", before: func(c *tools) { c.slowly(4e6) },
			midst: func(c *tools) {
				for _, u := range c.only(first) {
					require.NoError(c.t, u.dfdaemon.Kill())
				}
				c.slowly(0)
			}, after: func(c *tools) {
				for _, u := range c.only(first) {
					u.startDfdaemon(c.t)
				}
			}, end: either, spared: second, hurt: first},
		{name: "supernode and the dfdaemons of others killed in the middle", before: func(c *tools) { c.slowly(4e6) },
			midst: func(c *tools) {
				require.NoError(c.t, c.supernode.Kill())
				for _, u := range c.only(first) {
					require.NoError(c.t, u.dfdaemon.Kill())
				}
				c.slowly(0)
			}, after: func(c *tools) {
				c.startSupernode()
				for _, u := range c.only(first) {
					u.startDfdaemon(c.t)
				}
			}, end: either, spared: second, hurt: first},
		{name: "registry dead, warm swarm", before: func(c *tools) {
			for kind, o := range c.pulls(c.only(first), c.ref(*c.pushed), lab.Login{}) {
				require.NoError(c.t, o.err, "%s", kind)
			}
			require.NoError(c.t, c.process.Kill())
		}, after: func(c *tools) { c.startRegistry() }, only: second, end: either, hurt: everybody},
		{name: "disk of the dfdaemon full", only: quick, before: func(c *tools) {
			for _, u := range c.only(quick) {
				u.restartOn(c.t, "6m")
			}
		}, hurt: quick, after: func(c *tools) {
			for _, u := range c.only(quick) {
				u.restartOn(c.t, "")
			}
		}},
		{name: "disk of the supernode full", before: func(c *tools) { c.restartSupernode("6m") },
			after: func(c *tools) { c.restartSupernode("") }},
		{name: "supernode dead", before: func(c *tools) {
			c.awaitStandbys()
			require.NoError(c.t, c.supernode.Kill())
		}, after: func(c *tools) { c.startSupernode() }, egress: 1.02},
		{name: "supernode dead from the start", before: func(c *tools) {
			c.awaitStandbys()
			require.NoError(c.t, c.supernode.Kill())
			restartAll(unchanged)(c)
		}, after: func(c *tools) { c.startSupernode() }, egress: 1.02},
		{name: "no supernode configured", before: restartAll(func(args []string) []string {
			return slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--supernodes=") })
		}), after: restartAll(unchanged)},
	}
}

// awaitStandbys waits until all dfdaemons know the same standbys: a supernode that has just restarted has not announced
// them to all yet.
func (c *tools) awaitStandbys() {
	require.EventuallyWithT(c.t, func(t *assert.CollectT) {
		var known []string
		for _, u := range c.users {
			s, err := c.status(u.puller)
			if !assert.NoError(t, err) {
				return
			}
			if known == nil {
				known = s.Standbys
			}
			assert.NotEmpty(t, s.Standbys, "%s", u.Name)
			assert.Equal(t, known, s.Standbys, "%s", u.Name)
		}
	}, time.Minute, 100*time.Millisecond)
}

// first and second are two halves of the tools.
func first(k lab.Kind) bool {
	return k == lab.KindContainerd1 || k == lab.KindPodman || k == lab.KindBuildah
}
func second(k lab.Kind) bool { return !first(k) }

func everybody(lab.Kind) bool { return true }

// quick are the tools that give up at once; dockerd retries for 75 s.
func quick(k lab.Kind) bool { return k != lab.KindDocker }

// restartWith restarts a user's dfdaemon with other arguments, until its next restart.
func (u *user) restartWith(t testing.TB, change func(args []string) []string) {
	t.Helper()
	require.NoError(t, u.dfdaemon.Stop(time.Minute))
	kept := u.args
	u.args = change(slices.Clone(kept))
	u.startDfdaemon(t)
	u.args = kept
}

// restartSupernode restarts the supernode on a file system of the given size, or on its old data if empty.
func (c *tools) restartSupernode(size string) {
	c.t.Helper()
	require.NoError(c.t, c.supernode.Stop(time.Minute))
	if size == "" {
		c.startSupernode()
		return
	}
	c.startSupernode(small(c.t, c.machine, size)...)
}

// small mounts a file system of the given size on a node. It returns arguments that place a program's data there, with
// a quota larger than the file system. Appended to others they take precedence.
func small(t testing.TB, n *lab.Node, size string) []string {
	t.Helper()
	dir := filepath.Join(n.Dir, "small")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	out, err := n.Command(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return []string{"--node-data-dir=" + dir, "--cache-quota=1GB"}
}

// restartOn restarts a user's dfdaemon on a file system of the given size, or on its old data if empty.
func (u *user) restartOn(t testing.TB, size string) {
	t.Helper()
	u.restartWith(t, func(args []string) []string {
		if size == "" {
			return args
		}
		return append(args, small(t, u.Node, size)...)
	})
}

// faultLabs is how many labs share the rows of the fault matrix. Most of a row is a tool's wait before it tries again.
const faultLabs = 2

// TestToolFaults is the fault matrix of the tools: every pull ends with the right image or an error. Tools that can use
// the registry after the mirror's refusal are configured to.
func TestToolFaults(t *testing.T) {
	needTools(t)
	all := rows()
	measured := make([][]results.Result, len(all))
	t.Run("labs", func(t *testing.T) {
		for l := range faultLabs {
			t.Run(strconv.Itoa(l+1), func(t *testing.T) {
				t.Parallel()
				c := withTools(t, true)
				image := c.pushSeed(99, "lib/beside", bystanderLayer)
				c.bystanderImage = &image
				for _, u := range c.users {
					_, err := c.pullCached(t.Context(), u)
					require.NoError(t, err, "%s, the first pull", u.Name)
				}
				for i := l; i < len(all); i += faultLabs {
					t.Run(all[i].name, func(t *testing.T) {
						outer := c.t
						c.t = t
						defer func() { c.t = outer }()
						measured[i] = all[i].play(c, uint64(100+i))
					})
				}
			})
		}
	})
	out := results.New()
	for _, m := range measured {
		out.Add(m...)
	}
	publish(t, out)
}

// play pulls an image with all tools concurrently during the row's fault, and again after it.
func (r row) play(c *tools, seed uint64) (measured []results.Result) {
	t := c.t
	repository := fmt.Sprintf("lib/row-%d", seed)
	if r.who.User != "" {
		repository = fmt.Sprintf("team/row-%d", seed)
	}
	pushed := c.pushSeed(seed, repository, layerMost, 3e6, 50e3)
	c.pushed, c.dockerLimit = &pushed, r.dockerLimit
	if r.before != nil {
		r.before(c)
	}
	var script []registrytest.Fault
	for _, f := range r.script {
		// Limit the faults to this row's image.
		f.Match = repository + f.Match
		script = append(script, f)
	}
	for _, f := range r.largest {
		f.Match = "GET " + repository + "/blobs/" + pushed.Layers()[0].Digest
		script = append(script, f)
	}
	if script != nil {
		c.admin(http.MethodPost, "/faults", script, nil)
	}
	users := c.users
	if r.only != nil {
		users = c.only(r.only)
	}
	stop := c.stand(func(k lab.Kind) bool { return r.hurt == nil || !r.hurt(k) })
	done := make(chan map[lab.Kind]outcome, 1)
	go func() { done <- c.pulls(users, c.ref(pushed), r.who) }()
	if r.midst != nil {
		deadline := time.Now().Add(pullLimit)
		for c.counts().Object(pushed.Layers()[0].Digest).Bytes < cutAt {
			require.True(t, time.Now().Before(deadline), "the registry never sent half of the largest layer")
			time.Sleep(10 * time.Millisecond)
		}
		r.midst(c)
	}
	ended := <-done
	undisturbed := stop()
	var counts registrytest.Counts
	if c.process.Err() == nil {
		counts = c.counts()
	}
	if r.after != nil {
		r.after(c)
	}
	c.admin(http.MethodDelete, "/faults", nil, nil)

	egress := float64(counts.Egress) / float64(pushed.Bytes)
	assert.Zero(t, counts.Leaks, "no credentials at another host")
	if r.egress > 0 {
		assert.LessOrEqual(t, egress, r.egress, "bytes sent over bytes of the image")
	}
	scenario := "fault/" + r.name
	measured = append(measured, results.Result{
		Scenario: scenario, Metric: "registry_egress_ratio", Value: egress, Unit: "ratio", Better: "lower",
	})
	for _, u := range users {
		measured = append(measured, r.judge(c, u, ended[u.kind], pushed)...)
	}
	t.Logf("the registry sent %.3f × the image; %s", egress, undisturbed)
	assert.NoError(t, undisturbed.err, "a bystander who pulls another image from the same dfdaemons")
	assert.Less(t, undisturbed.longest, bystanderLimit, "a bystander who pulls another image from the same dfdaemons")
	if undisturbed.pulls > 0 {
		measured = append(measured, results.Result{Scenario: scenario, Metric: "beside_longest",
			Value: undisturbed.longest.Seconds(), Unit: "seconds", Better: "lower"})
	}
	c.settle(pushed, r.who)
	return measured
}

// judge checks the end of one tool's pull, and returns its figures.
func (r row) judge(c *tools, u *user, o outcome, pushed registrytest.PushAnswer) []results.Result {
	t, scenario := c.t, "fault/"+r.name
	how := "the image"
	if o.err != nil {
		how = o.err.Error()
		how = how[max(0, len(how)-300):]
		assert.NotContains(t, o.err.Error(), "stuck", "%s", u.kind)
	}
	t.Logf("%-12s %5.1f s, silence %4.1f s: %s", u.kind, o.took.Seconds(), o.silence.Seconds(),
		strings.Join(strings.Fields(how), " "))
	if o.silence > silenceLogged {
		log := u.dfdaemon.Log()
		t.Logf("the dfdaemon of %s logged:\n%s", u.Name, log[max(0, len(log)-4<<10):])
		log = c.supernode.Log()
		t.Logf("the supernode logged:\n%s", log[max(0, len(log)-4<<10):])
	}
	if r.end == succeeds || r.spared != nil && r.spared(u.kind) {
		assert.NoError(t, o.err, "%s", u.kind)
	}
	if r.end == fails {
		assert.Error(t, o.err, "%s", u.kind)
	}
	value := 0.0
	if o.err == nil {
		c.requireFiles(u, pushed)
		value = 1
	}
	name := scenario + "/" + string(u.kind)
	return []results.Result{
		{Scenario: name, Metric: "right_bytes", Value: value, Unit: "bool", Better: "higher"},
		{Scenario: name, Metric: "seconds", Value: o.took.Seconds(), Unit: "seconds", Better: "lower"},
		{Scenario: name, Metric: "longest_silence", Value: o.silence.Seconds(), Unit: "seconds", Better: "lower"},
	}
}

// settle pulls an image again with every tool after the fault.
func (c *tools) settle(pushed registrytest.PushAnswer, who lab.Login) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	left := c.users
	for len(left) > 0 {
		ended := c.pulls(left, c.ref(pushed), who)
		var failed []*user
		for _, u := range left {
			if ended[u.kind].err != nil {
				failed = append(failed, u)
				continue
			}
			c.requireFiles(u, pushed)
		}
		if left = failed; len(left) > 0 && time.Now().After(deadline) {
			require.NoError(c.t, ended[left[0].kind].err, "%s, after the fault", left[0].kind)
		}
	}
}

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
