package preheat_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

var now = time.Date(2026, 8, 1, 10, 0, 0, 0, time.UTC)

func record() preheat.Record {
	return preheat.New(strings.Repeat("0123456789abcdef", 2), preheat.Spec{Kind: preheat.Image,
		Reference: "registry.test/web:1", Headers: map[string]secret.String{"authorization": "Bearer hunter2"}}, now)
}

// TestMergeKeepsCredentialsApart: a record of the same ID with another registry gets no credentials.
func TestMergeKeepsCredentialsApart(t *testing.T) {
	known := record()
	posed := known
	posed.Spec.Headers, posed.Spec.Reference = nil, "evil.test/web:1"
	assert.Empty(t, posed.Merge(known).Spec.Headers)
	assert.Equal(t, "registry.test/web:1", known.Merge(posed).Spec.Reference)
	lost := known
	lost.Spec.Headers = nil
	assert.Equal(t, known.Spec.Headers, lost.Merge(known).Spec.Headers, "a supernode that was restarted gets them back")
}

// TestLongErrorsStayReadable: an error that was cut inside of a letter would not be read again from the journal.
func TestLongErrorsStayReadable(t *testing.T) {
	r := record()
	r.End = &preheat.End{State: preheat.Failed, At: now, Error: preheat.Cut("a" + strings.Repeat("é", preheat.TextMax))}
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var again preheat.Record
	require.NoError(t, json.Unmarshal(b, &again))
	assert.NoError(t, again.Check())
	r.Resolved = &preheat.Resolved{Digest: "x"}
	assert.ErrorIs(t, r.Check(), preheat.ErrInvalid, "an empty list of objects would be complete everywhere")
}

// TestZoneWithoutHosts: a zone whose name is wrong is not ready.
func TestZoneWithoutHosts(t *testing.T) {
	r := record()
	r.Spec.Scope.Zones = []string{"a", "typo"}
	id := oci.DigestOf([]byte("x"))
	r.Resolved = &preheat.Resolved{Digest: id, Objects: []preheat.Object{{ID: id, Kind: task.Manifest, Size: 1}}}
	hosts := []preheat.Host{{Host: host.Host{ID: host.NewID(), Zone: "a"}, Seen: now,
		Report: &preheat.Report{Job: r.ID, State: preheat.Success}}}
	p := r.Plan(now, hosts)
	assert.False(t, p.Ready)
	assert.Nil(t, p.End)
	p = r.Plan(r.Spec.Deadline, []preheat.Host{{Host: hosts[0].Host, Seen: r.Spec.Deadline, Report: hosts[0].Report}})
	require.NotNil(t, p.End)
	assert.Contains(t, p.End.Error, `no host of zone "typo"`)
}

// TestMerge: supernodes that learn the same changes in any order remember the same.
func TestMerge(t *testing.T) {
	base := record()
	change := func(f func(*preheat.Record)) preheat.Record {
		r := base
		f(&r)
		return r
	}
	bare := base
	bare.Spec.Headers = nil
	digest := func(c string) *preheat.Resolved {
		return &preheat.Resolved{Digest: task.ID("sha256:" + strings.Repeat(c, 64))}
	}
	all := []preheat.Record{
		bare,
		change(func(r *preheat.Record) { r.Control = preheat.Control{Rev: 1, Paused: true} }),
		change(func(r *preheat.Record) { r.Control = preheat.Control{Rev: 2} }),
		change(func(r *preheat.Record) { r.Control = preheat.Control{Rev: 2, Paused: true} }),
		change(func(r *preheat.Record) { r.Open = 2 }),
		change(func(r *preheat.Record) { r.Resolved = digest("b") }),
		change(func(r *preheat.Record) { r.Resolved = digest("a") }),
		change(func(r *preheat.Record) { r.End = &preheat.End{State: preheat.Success, At: now.Add(time.Minute)} }),
		change(func(r *preheat.Record) { r.End = &preheat.End{State: preheat.Failed, At: now.Add(time.Second)} }),
		change(func(r *preheat.Record) { r.Called = true }),
	}
	forth, back := all[0], all[len(all)-1]
	for i := range all {
		forth, back = forth.Merge(all[i]), back.Merge(all[len(all)-1-i])
	}
	assert.Equal(t, forth, back)
	assert.Equal(t, forth, forth.Merge(forth))
	assert.Equal(t, forth, forth.Merge(bare), "an old record changes nothing")
	assert.Equal(t, preheat.Control{Rev: 2, Paused: true}, forth.Control)
	assert.Equal(t, 2, forth.Open)
	assert.Equal(t, digest("a"), forth.Resolved)
	assert.Equal(t, preheat.Failed, forth.End.State)
	assert.False(t, forth.Lacks())
	assert.True(t, bare.Lacks(), "the credentials were in memory alone")
}

func TestRecordCheck(t *testing.T) {
	good := record()
	require.NoError(t, good.Check())
	for name, change := range map[string]func(*preheat.Record){
		"id":      func(r *preheat.Record) { r.ID = "../x" },
		"spec":    func(r *preheat.Record) { r.Spec.Kind = "all" },
		"year":    func(r *preheat.Record) { r.Created = now.AddDate(99999, 0, 0) },
		"wave":    func(r *preheat.Record) { r.Open = -1 },
		"end":     func(r *preheat.Record) { r.End = &preheat.End{State: preheat.Running} },
		"digest":  func(r *preheat.Record) { r.Resolved = &preheat.Resolved{Objects: []preheat.Object{{ID: "x"}}} },
		"objects": func(r *preheat.Record) { r.Resolved = &preheat.Resolved{Objects: make([]preheat.Object, 5000)} },
	} {
		bad := good
		change(&bad)
		assert.Error(t, bad.Check(), name)
	}
}

// TestOrderHidesCredentials: only a host that fetches gets the credentials, and no log shows them.
func TestOrderHidesCredentials(t *testing.T) {
	r := record()
	r.Resolved = &preheat.Resolved{Digest: "sha256:" + task.ID(strings.Repeat("a", 64))}
	o, ok := r.Order(now, preheat.Member{Run: true})
	require.True(t, ok)
	require.NoError(t, o.Check())
	assert.Equal(t, "Bearer hunter2", o.Authorization)
	assert.NotContains(t, o.String()+o.GoString(), "hunter2")
	o, _ = r.Order(now, preheat.Member{})
	assert.Empty(t, o.Authorization, "a host that waits for its wave")
	r.Spec.Headers = nil
	o, _ = r.Order(now, preheat.Member{Run: true})
	assert.False(t, o.Run, "without its credentials the job fetches nothing")
	_, ok = r.Order(now.Add(48*time.Hour), preheat.Member{})
	assert.False(t, ok, "a job that is long over")
}

func TestReport(t *testing.T) {
	r := preheat.Report{Job: record().ID, State: preheat.Running}
	for _, i := range []int{0, 9, 4095} {
		assert.False(t, r.Has(i))
		r.Hold(i)
		assert.True(t, r.Has(i))
	}
	assert.False(t, r.Has(1))
	require.NoError(t, r.Check())
	r.Hold(4096)
	require.Error(t, r.Check())
	assert.Error(t, preheat.Report{Job: r.Job, State: preheat.Paused}.Check())
}

func TestNumberOf(t *testing.T) {
	assert.Equal(t, int64(0x0123456789abc), record().Number())
	assert.Equal(t, int64(1<<52-1), preheat.NumberOf(strings.Repeat("f", 32)), "every JSON parser holds it exactly")
	assert.Equal(t, int64(1), preheat.NumberOf(strings.Repeat("0", 32)))
	assert.False(t, preheat.IsID("latest"))
}
