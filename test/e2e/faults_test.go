//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/results"
)

var outFile = flag.String("out", "", "file to write what was measured to (JSON); figures of other scenarios in it are kept")

// end is how the pulls of a row have to end, once they have ended at all.
type end int

const (
	right  end = iota // with the image, for every tool
	told              // with an error: the image cannot be had
	either            // with one of them: it hangs on what a tool makes of a short body
)

// row is something that goes wrong while all tools pull an image.
type row struct {
	name string
	// script are faults of all blobs, largest are faults of the largest layer.
	script, largest []registrytest.Fault
	end             end
	// egress is the most that the registry may send, in images; 0 asks nobody.
	egress float64
	// who pulls, and with which tools; the zero values are nobody and all.
	who  lab.Login
	only func(lab.Kind) bool
	// spared are tools that must get the image although others may end either way.
	spared func(lab.Kind) bool
	// hurt tells whose dfdaemon ends or has no room: who else pulls through it is no bystander.
	hurt func(lab.Kind) bool
	// dockerLimit is how long dockerd's own tries may take, where that is more than pullLimit.
	dockerLimit time.Duration
	// midst is called as soon as the registry has sent half of the largest layer.
	midst func(c *tools)
	// before is called before the pulls, after when they have ended.
	before, after func(c *tools)
}

// The largest layer is cut in its middle, which the others do not reach.
const (
	layerMost = 8e6
	cutAt     = 4e6
)

// silenceTold is the silence beyond which the log of the mirror is shown.
const silenceTold = 5 * time.Second

func rows() []row {
	fault := func(a registrytest.Action, at int64, times int) registrytest.Fault {
		return registrytest.Fault{Action: a, At: at, Times: times}
	}
	refuse := func(status, times int, header map[string]string) []registrytest.Fault {
		return []registrytest.Fault{{Action: registrytest.ActStatus, Status: status, Match: "/blobs/", Times: times, Header: header}}
	}
	restartAll := func(change func(args []string) []string) func(c *tools) {
		return func(c *tools) {
			for _, u := range c.users {
				u.restartWith(c.t, change)
			}
		}
	}
	unchanged := func(args []string) []string { return args }
	moment := map[string]string{"Retry-After": "1"}
	return []row{
		{name: "none", egress: 1.02},
		{name: "body cut once", largest: []registrytest.Fault{fault(registrytest.ActTruncate, cutAt, 1)}, egress: 1.02},
		// Of the piece that a cut runs through nothing is kept.
		{name: "body cut five times", largest: []registrytest.Fault{fault(registrytest.ActTruncate, 1e6, 5)}, egress: 1.06},
		{name: "body reset once", largest: []registrytest.Fault{fault(registrytest.ActReset, cutAt, 1)}, egress: 1.6},
		{name: "body cut, Range ignored", largest: []registrytest.Fault{fault(registrytest.ActTruncate, cutAt, 1), fault(registrytest.ActIgnoreRange, 0, 0)}, egress: 1.6},
		{name: "redirect to another host", script: []registrytest.Fault{{Action: registrytest.ActRedirect, Match: "/blobs/"}}, egress: 1.02},
		{name: "no lengths", largest: []registrytest.Fault{fault(registrytest.ActNoLength, 0, 0)}, egress: 1.02},
		{name: "blobs 429 once, Retry-After 1 s", script: refuse(429, 1, moment), egress: 1.02},
		{name: "blobs 503 once", script: refuse(503, 1, nil)},
		{name: "headers of blobs 3 s late", script: []registrytest.Fault{{Action: registrytest.ActSlowHeaders, DelayMillis: 3000, Match: "/blobs/", Times: 2}}, egress: 1.02},
		{name: "slow registry", before: func(c *tools) { c.slowly(2e6) }, after: func(c *tools) { c.slowly(0) }, egress: 1.02},
		{name: "wrong bytes once", largest: []registrytest.Fault{fault(registrytest.ActCorrupt, 40e3, 1)}, end: either},
		{name: "a shorter layer, always", largest: []registrytest.Fault{fault(registrytest.ActWrongLength, cutAt, 0)}, end: told, only: quick},
		{name: "a longer layer, always", largest: []registrytest.Fault{fault(registrytest.ActWrongLength, layerMost+4e6, 0)}, end: told, only: quick},
		{name: "a shorter layer, once", largest: []registrytest.Fault{fault(registrytest.ActWrongLength, cutAt, 1)}, end: either},
		{name: "wrong bytes always", largest: []registrytest.Fault{fault(registrytest.ActCorrupt, 40e3, 0)}, end: told, only: quick},
		{name: "blobs 503 always", script: refuse(503, 0, nil), end: told},
		{name: "blobs 429 always", script: refuse(429, 0, nil), end: told},
		// dockerd waits 5, 10, 15, 20 and 25 s between its tries with the token that is no good any more.
		{name: "token ends in mid-blob", who: alice, only: ownLogin, end: either, dockerLimit: 5 * time.Minute, largest: []registrytest.Fault{
			fault(registrytest.ActStall, cutAt, 1), fault(registrytest.ActTruncate, cutAt+1, 1),
		}, midst: func(c *tools) {
			c.admin(http.MethodPost, "/revoke-tokens", nil, nil)
			c.admin(http.MethodDelete, "/faults", nil, nil)
		}},
		{name: "supernode killed in the middle", before: func(c *tools) { c.slowly(4e6) }, midst: func(c *tools) {
			require.NoError(c.t, c.supernode.Kill())
			c.slowly(0)
		}, after: func(c *tools) { c.startSupernode() }},
		{name: "dfdaemons of others killed in the middle", before: func(c *tools) { c.slowly(4e6) }, midst: func(c *tools) {
			for _, u := range c.only(first) {
				require.NoError(c.t, u.dfdaemon.Kill())
			}
			c.slowly(0)
		}, after: func(c *tools) {
			for _, u := range c.only(first) {
				u.startDfdaemon(c.t)
			}
		}, end: either, spared: second, hurt: first},
		{name: "supernode and the dfdaemons of others killed in the middle", before: func(c *tools) { c.slowly(4e6) }, midst: func(c *tools) {
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
		{name: "disk of the supernode full", before: func(c *tools) { c.restartSupernode("6m") }, after: func(c *tools) { c.restartSupernode("") }},
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

// awaitStandbys waits until every dfdaemon knows whom to ask when the supernode dies, and all know
// the same: a supernode that was restarted a moment ago has not told all of them yet.
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

// first and second are halves of the tools.
func first(k lab.Kind) bool {
	return k == lab.KindContainerd1 || k == lab.KindPodman || k == lab.KindBuildah
}
func second(k lab.Kind) bool { return !first(k) }

func everybody(lab.Kind) bool { return true }

// quick are the tools that give up at once; dockerd takes 75 s of its own.
func quick(k lab.Kind) bool { return k != lab.KindDocker }

// restartWith starts a user's dfdaemon anew with other arguments, this once.
func (u *user) restartWith(t testing.TB, change func(args []string) []string) {
	t.Helper()
	require.NoError(t, u.dfdaemon.Stop(time.Minute))
	kept := u.args
	u.args = change(slices.Clone(kept))
	u.startDfdaemon(t)
	u.args = kept
}

// restartSupernode starts the supernode anew, on a file system of so many bytes; empty goes back
// to its old data.
func (c *tools) restartSupernode(size string) {
	c.t.Helper()
	require.NoError(c.t, c.supernode.Stop(time.Minute))
	if size == "" {
		c.startSupernode()
		return
	}
	c.startSupernode(small(c.t, c.machine, size)...)
}

// small mounts a file system of so many bytes on a node, and returns the arguments by which a
// program keeps its data there and believes that there is room enough: of two flags the last one
// counts.
func small(t testing.TB, n *lab.Node, size string) []string {
	t.Helper()
	dir := filepath.Join(n.Dir, "small")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	out, err := n.Command(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return []string{"--node-data-dir=" + dir, "--cache-quota=1GB"}
}

// restartOn starts a user's dfdaemon anew, on a file system of its own of so many bytes; empty
// goes back to its old data.
func (u *user) restartOn(t testing.TB, size string) {
	t.Helper()
	u.restartWith(t, func(args []string) []string {
		if size == "" {
			return args
		}
		return append(args, small(t, u.Node, size)...)
	})
}

// TestEveryToolEndsWithTheRightImageOrAnErrorWhateverGoesWrong is the fault matrix. Tools that
// can ask the registry itself where the mirror refuses are configured to.
func TestEveryToolEndsWithTheRightImageOrAnErrorWhateverGoesWrong(t *testing.T) {
	c := withTools(t, true)
	out := results.New()
	beside := c.pushSeed(99, "lib/beside", besideMost)
	c.beside = &beside
	for _, u := range c.users {
		_, err := c.pullBeside(t.Context(), u)
		require.NoError(t, err, "%s, the first time", u.Name)
	}
	for i, r := range rows() {
		t.Run(r.name, func(t *testing.T) {
			outer := c.t
			c.t = t
			defer func() { c.t = outer }()
			out.Add(r.play(c, uint64(100+i))...)
		})
	}
	publish(t, out)
}

// play pulls an image with every tool at once while the row's fault lasts, and once more when
// it is over.
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
		// What others pull is not meant.
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
	beside := c.stand(func(k lab.Kind) bool { return r.hurt == nil || !r.hurt(k) })
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
	undisturbed := beside()
	var counts registrytest.Counts
	if c.process.Err() == nil {
		counts = c.counts()
	}
	if r.after != nil {
		r.after(c)
	}
	c.admin(http.MethodDelete, "/faults", nil, nil)

	egress := float64(counts.Egress) / float64(pushed.Bytes)
	assert.Zero(t, counts.Leaks, "credentials at another host")
	if r.egress > 0 {
		assert.LessOrEqual(t, egress, r.egress, "bytes sent over bytes of the image")
	}
	scenario := "fault/" + r.name
	measured = append(measured, results.Result{Scenario: scenario, Metric: "registry_egress_ratio", Value: egress, Unit: "ratio", Better: "lower"})
	for _, u := range users {
		o := ended[u.kind]
		how := "the image"
		if o.err != nil {
			how = o.err.Error()
			how = how[max(0, len(how)-300):]
			assert.NotContains(t, o.err.Error(), "stuck", "%s", u.kind)
		}
		t.Logf("%-12s %5.1f s, silence %4.1f s: %s", u.kind, o.took.Seconds(), o.silence.Seconds(), strings.Join(strings.Fields(how), " "))
		if o.silence > silenceTold {
			log := u.dfdaemon.Log()
			t.Logf("the dfdaemon of %s logged:\n%s", u.Name, log[max(0, len(log)-4<<10):])
			log = c.supernode.Log()
			t.Logf("the supernode logged:\n%s", log[max(0, len(log)-4<<10):])
		}
		if r.end == right || r.spared != nil && r.spared(u.kind) {
			assert.NoError(t, o.err, "%s", u.kind)
		}
		if r.end == told {
			assert.Error(t, o.err, "%s", u.kind)
		}
		value := 0.0
		if o.err == nil {
			c.requireFiles(u, pushed)
			value = 1
		}
		name := scenario + "/" + string(u.kind)
		measured = append(measured,
			results.Result{Scenario: name, Metric: "right_bytes", Value: value, Unit: "bool", Better: "higher"},
			results.Result{Scenario: name, Metric: "seconds", Value: o.took.Seconds(), Unit: "seconds", Better: "lower"},
			results.Result{Scenario: name, Metric: "longest_silence", Value: o.silence.Seconds(), Unit: "seconds", Better: "lower"})
	}
	t.Logf("the registry sent %.3f × the image; %s", egress, undisturbed)
	assert.NoError(t, undisturbed.err, "somebody who pulls another image by the same dfdaemons")
	assert.Less(t, undisturbed.longest, besideLimit, "somebody who pulls another image by the same dfdaemons")
	if undisturbed.pulls > 0 {
		measured = append(measured, results.Result{Scenario: scenario, Metric: "beside_longest", Value: undisturbed.longest.Seconds(), Unit: "seconds", Better: "lower"})
	}
	c.settle(pushed, r.who)
	return measured
}

// settle pulls an image again with every tool, now that nothing is wrong any more.
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
			require.NoError(c.t, ended[left[0].kind].err, "%s, although nothing is wrong any more", left[0].kind)
		}
	}
}

// publish prints what was measured and writes it to the file of -out.
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
