//go:build linux

package e2e

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
	"github.com/darter-io/darter/test/silence"
)

var alone = flag.Bool("alone", false,
	"measure the tools with a faulty mirror and without Darter; docs/clients.md has the results")

// aloneLimit bounds one pull; after it, the tool "waits".
const aloneLimit = 45 * time.Second

// misbehaviour is a fault of the mirror.
type misbehaviour struct {
	name string
	// script holds faults of all requests, layer those of the GETs of the largest layer.
	script, layer []registrytest.Fault
}

func misbehaviours() []misbehaviour {
	status := func(match string, code, times int) []registrytest.Fault {
		return []registrytest.Fault{{Action: registrytest.ActStatus, Status: code, Match: match, Times: times}}
	}
	body := func(a registrytest.Action, at int64, times int) registrytest.Fault {
		return registrytest.Fault{Action: a, At: at, Times: times}
	}
	return []misbehaviour{
		{"is well", nil, nil},
		{"manifests 404", status("/manifests/", 404, 0), nil},
		{"manifests 503", status("/manifests/", 503, 0), nil},
		{"manifests 401, no challenge", status("/manifests/", 401, 0), nil},
		{"layers 404", status("/blobs/", 404, 0), nil},
		{"layers 500", status("/blobs/", 500, 0), nil},
		{"layers 503", status("/blobs/", 503, 0), nil},
		{"layers 429", status("/blobs/", 429, 0), nil},
		{"cut once", nil, []registrytest.Fault{body(registrytest.ActTruncate, cutAt, 1)}},
		{"cut at every try, after 1 MB", nil, []registrytest.Fault{body(registrytest.ActTruncate, 1e6, 0)}},
		{"cut at every try, after 0 B", nil, []registrytest.Fault{body(registrytest.ActTruncate, cutAt, 1),
			body(registrytest.ActTruncate, 0, 0)}},
		{"cut, Range ignored", nil, []registrytest.Fault{body(registrytest.ActTruncate, cutAt, 1),
			body(registrytest.ActIgnoreRange, 0, 0)}},
		{"reset once", nil, []registrytest.Fault{body(registrytest.ActReset, cutAt, 1)}},
		{"wrong bytes", nil, []registrytest.Fault{body(registrytest.ActCorrupt, 40e3, 0)}},
		{"headers 10 s late, once", nil, []registrytest.Fault{{Action: registrytest.ActSlowHeaders,
			DelayMillis: 10_000, Times: 1}}},
		{"no headers", nil, []registrytest.Fault{{Action: registrytest.ActSlowHeaders, DelayMillis: 600_000}}},
		{"stands still in the body", nil, []registrytest.Fault{body(registrytest.ActStall, cutAt, 0)}},
	}
}

// TestWhatToolsDoWithoutDarter measures the tools, not Darter: the mirror is a registry with faults, and the server
// behind it is the same registry without.
func TestWhatToolsDoWithoutDarter(t *testing.T) {
	if !*alone {
		t.Skip("measures the tools without Darter; make clients-alone, or -args -alone, runs it")
	}
	needTools(t)
	require.NoError(t, programs.Build(t.Context(), bin, "./test/registrytest/cmd/registry"))
	l := lab.New(t, lab.Config{Nodes: len(lab.Kinds())})
	registries := map[string]*cluster{}
	for i, name := range []string{"mirror", "server"} {
		addr := fmt.Sprintf("%s:%d", l.Registry.Addr, 5000+1000*i)
		c := &cluster{Lab: l, t: t, registry: "docker.io", admins: fmt.Sprintf("127.0.0.1:%d", 5001+1000*i),
			url: "http://" + addr}
		_, err := l.Registry.Start(name, filepath.Join(bin, "registry"), "-listen", addr,
			"-admin", c.admins, "-storage", l.Registry.Addr+":0")
		require.NoError(t, err)
		require.NoError(t, l.Registry.WaitFor(t.Context(), c.url+"/v2/", 30*time.Second))
		registries[name] = c
	}
	mirror, server := registries["mirror"], registries["server"]
	users := make([]*user, len(lab.Kinds()))
	var g errgroup.Group
	for i, kind := range lab.Kinds() {
		u := &user{puller: &puller{Node: l.Nodes[i]}, kind: kind}
		u.silence = &silence.Relay{Dial: func(ctx context.Context) (net.Conn, error) {
			return u.Dial(ctx, "tcp", strings.TrimPrefix(mirror.url, "http://"))
		}}
		listener, err := u.Listen(toolMirror)
		require.NoError(t, err)
		t.Cleanup(func() { listener.Close() })
		go u.silence.Serve(listener)
		users[i] = u
		g.Go(func() (err error) {
			if u.tool, err = u.Tool(kind, toolMirror, strings.TrimPrefix(server.url, "http://")); err == nil {
				u.version, err = u.tool.Version(t.Context())
			}
			return err
		})
	}
	require.NoError(t, g.Wait())

	table := &strings.Builder{}
	w := tabwriter.NewWriter(table, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "the mirror")
	for _, u := range users {
		fmt.Fprintf(w, "\t%s %s", u.kind, u.version)
	}
	fmt.Fprintln(w)
	for i, r := range misbehaviours() {
		seed := uint64(500 + i)
		repository := fmt.Sprintf("lib/alone-%d", seed)
		pushed := server.pushSeed(seed, repository, layerMost, 50e3)
		mirror.pushSeed(seed, repository, layerMost, 50e3)
		mirror.pushSeed(seed, "docker.io/"+repository, layerMost, 50e3)
		script := r.script
		for _, f := range r.layer {
			f.Match = repository + "/blobs/" + pushed.Layers()[0].Digest
			script = append(script, f)
		}
		fmt.Fprint(w, r.name)
		for _, u := range users {
			// One tool after the other, so that each meets every fault.
			fmt.Fprintf(w, "\t%s", u.meet(t, r.name, mirror, server, pushed, script))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	t.Log("\n" + table.String())
}

// meet pulls an image while the mirror has faults, and returns the end of the pull, its duration, and the GETs of the
// largest layer at the mirror.
func (u *user) meet(
	t *testing.T, name string, mirror, server *cluster, pushed registrytest.PushAnswer, script []registrytest.Fault,
) string {
	server.admin(http.MethodPost, "/reset", nil, nil)
	mirror.admin(http.MethodPost, "/reset", nil, nil)
	if script != nil {
		mirror.admin(http.MethodPost, "/faults", script, nil)
	}
	u.silence.Reset()
	ctx, cancel := context.WithTimeout(t.Context(), aloneLimit)
	began := time.Now()
	err := u.tool.Pull(ctx, server.ref(pushed), lab.Login{})
	took := time.Since(began).Seconds()
	late := ctx.Err() != nil
	cancel()
	mirror.admin(http.MethodDelete, "/faults", nil, nil)
	how := "mirror"
	switch elsewhere := server.counts().Egress > 0; {
	case late:
		how = "waits"
	case err != nil && strings.Contains(err.Error(), "registry-1.docker.io"), err == nil && elsewhere:
		how = "elsewhere"
	case err != nil:
		how = "FAILS"
		t.Logf("%s, %s: %.600s", name, u.kind, err)
	}
	asked := mirror.counts().Object(pushed.Layers()[0].Digest)
	return fmt.Sprintf("%s %.1f s, %d GETs %s", how, took, asked.GETs, ranges(asked))
}

// ranges returns the number of requests with Range as text.
func ranges(tally registrytest.Tally) string {
	if len(tally.Ranges) == 0 {
		return ""
	}
	return fmt.Sprintf("(%d with Range)", len(tally.Ranges))
}
