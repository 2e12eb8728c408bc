package clients_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/clients"
	"github.com/darter-io/darter/test/registrytest"
)

var alone = flag.Bool("alone", false,
	"measure the libraries with a faulty mirror and without Darter; docs/clients.md has the results")

// aloneLimit bounds one pull; after it, the library "waits".
const aloneLimit = 45 * time.Second

// misbehaviour is a fault of the mirror, for all requests or for the GETs of the largest layer.
type misbehaviour struct {
	name       string
	all, layer []registrytest.Fault
}

func misbehaviours() []misbehaviour {
	status := func(match string, code int) []registrytest.Fault {
		return []registrytest.Fault{{Action: registrytest.ActStatus, Status: code, Match: match}}
	}
	body := func(a registrytest.Action, at int64, times int) registrytest.Fault {
		return registrytest.Fault{Action: a, At: at, Times: times}
	}
	return []misbehaviour{
		{"is well", nil, nil},
		{"manifests 404", status("/manifests/", 404), nil},
		{"manifests 503", status("/manifests/", 503), nil},
		{"layers 404", status("/blobs/", 404), nil},
		{"layers 503", status("/blobs/", 503), nil},
		{"layers 429", status("/blobs/", 429), nil},
		{"cut once", nil, []registrytest.Fault{body(registrytest.ActTruncate, cut, 1)}},
		{"cut at every try, after 500 kB", nil, []registrytest.Fault{body(registrytest.ActTruncate, 500e3, 0)}},
		{"cut at every try, after 0 B", nil, []registrytest.Fault{body(registrytest.ActTruncate, cut, 1),
			body(registrytest.ActTruncate, 0, 0)}},
		{"cut, Range ignored", nil, []registrytest.Fault{body(registrytest.ActTruncate, cut, 1),
			body(registrytest.ActIgnoreRange, 0, 0)}},
		{"reset once", nil, []registrytest.Fault{body(registrytest.ActReset, cut, 1)}},
		{"wrong bytes", nil, []registrytest.Fault{body(registrytest.ActCorrupt, 40e3, 0)}},
		{"no headers", nil, []registrytest.Fault{{Action: registrytest.ActSlowHeaders, DelayMillis: 600_000}}},
		{"stands still in the body", nil, []registrytest.Fault{body(registrytest.ActStall, cut, 0)}},
	}
}

// TestWhatLibrariesDoWithoutDarter measures the libraries, not Darter: the mirror is a registry with faults, and the
// server behind it is the same registry without.
func TestWhatLibrariesDoWithoutDarter(t *testing.T) {
	if !*alone {
		t.Skip("measures the libraries without Darter; make clients-alone, or -args -alone, runs it")
	}
	cells := map[string]string{}
	var mu sync.Mutex
	t.Run("all", func(t *testing.T) {
		each(t, func(t *testing.T, l clients.Library) {
			for _, m := range misbehaviours() {
				cell := m.play(t, l)
				mu.Lock()
				cells[m.name+l.Name] = cell
				mu.Unlock()
			}
		})
	})
	table := &strings.Builder{}
	w := tabwriter.NewWriter(table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "the mirror")
	for _, l := range clients.All() {
		fmt.Fprintf(w, "\t%s %s", l.Name, l.Version())
	}
	for _, m := range misbehaviours() {
		fmt.Fprint(w, "\n"+m.name)
		for _, l := range clients.All() {
			fmt.Fprint(w, "\t"+cells[m.name+l.Name])
		}
	}
	w.Flush()
	t.Log("\n" + table.String())
}

// play pulls with a library, and returns how the pull ended, its duration, and the GETs of the largest layer at the
// mirror.
func (m misbehaviour) play(t *testing.T, l clients.Library) string {
	mirror, server := registrytest.Start(t, registrytest.Config{}), registrytest.Start(t, registrytest.Config{})
	img, err := registrytest.NewImage(50, sizes)
	require.NoError(t, err)
	var p registrytest.Pushed
	for _, at := range []struct {
		*registrytest.Registry
		repository string
	}{{server, "lib/app"}, {mirror, clients.Registry + "/lib/app"}, {mirror, "lib/app"}} {
		p, err = at.Push(t.Context(), at.repository, "v1", img)
		require.NoError(t, err)
	}
	script := append([]registrytest.Fault{}, m.all...)
	for _, f := range m.layer {
		f.Match = "lib/app/blobs/" + p.Layers()[0].Digest
		script = append(script, f)
	}
	mirror.Reset()
	server.Reset()
	mirror.Fail(script...)
	ctx, cancel := context.WithTimeout(t.Context(), aloneLimit)
	defer cancel()
	dir := pulledDir(t)
	began := time.Now()
	ended := make(chan error, 1)
	go func() {
		ended <- l.Pull(ctx, clients.Request{Mirror: mirror.Host(), Server: server.Host(), Repository: "lib/app",
			Reference: "v1", Dir: dir})
	}()
	var how string
	select {
	case err = <-ended:
		how = "mirror"
		if server.Counts().Egress > 0 {
			how = "elsewhere"
		}
		if err != nil {
			how = "FAILS"
			t.Logf("%s, %s: %v", m.name, l.Name, err)
		}
		if ctx.Err() != nil {
			how = "waits"
		}
	case <-time.After(aloneLimit + 2*time.Second):
		how = "waits"
	}
	took := time.Since(began)
	mirror.ClearFaults()
	asked := mirror.Counts().Object(p.Layers()[0].Digest)
	return fmt.Sprintf("%s %.1f s, %d GETs (%d with Range)", how, took.Seconds(), asked.GETs, len(asked.Ranges))
}
