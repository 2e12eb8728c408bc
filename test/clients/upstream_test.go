package clients_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/clients"
	"github.com/darter-io/darter/test/race"
	"github.com/darter-io/darter/test/registrytest"
)

var update = flag.Bool("update", false, "write the table of upstream requests to docs/clients.md")

// asked counts requests at a registry and its token service, and tokens those at the latter.
type asked struct{ all, tokens int }

func (a asked) String() string { return fmt.Sprintf("%d, %d", a.all, a.tokens) }

// farm is a registry, a supernode and two nodes.
type farm struct {
	*registrytest.Registry
	t     *testing.T
	nodes []string // the mirrors, as host:port
	seed  uint64   // of the last image
}

func newFarm(t *testing.T, cfg registrytest.Config, upstream ...string) *farm {
	f := &farm{Registry: registrytest.Start(t, cfg), t: t}
	settings := nodeSettings{url: f.URL(), upstream: upstream, env: []string{
		"DARTER_CLUSTER_SECRET=a secret that is long enough for a cluster",
	}}
	top := settings
	top.env = append([]string{"DARTER_ADMIN_LISTEN=127.0.0.1:0"}, settings.env...)
	var lead config.Supernode
	require.NoError(t, config.NewForm("supernode", &lead).Load(top.config(t)))
	s, err := supernode.New(lead, nil)
	require.NoError(t, err)
	runProgram(t, "supernode", s, &lines{})
	settings.env = append(settings.env, "DARTER_SUPERNODES="+s.Addrs()["api"],
		"DARTER_MIRROR_TAG_LIFE=10m", // on a slow machine, too, the second pull comes within it
		"DARTER_MIRROR_RIGHTS_UNREACHABLE=serve-cached")
	for range 2 {
		f.nodes = append(f.nodes, startNode(t, &lines{}, settings).Addrs()["mirror"])
	}
	return f
}

// push pushes an image under its name and under the one by which clients without mirrors ask a mirror for it.
func (f *farm) push(repository string) (p registrytest.Pushed) {
	f.seed++
	img, err := registrytest.NewImage(100+f.seed, []int64{50e3, 20e3, 10e3})
	require.NoError(f.t, err)
	for _, name := range []string{clients.Registry + "/" + repository, repository} {
		p, err = f.Push(f.t.Context(), name, "v1", img)
		require.NoError(f.t, err)
	}
	return p
}

// pull counts the requests of one pull, with those that it leaves to the mirror's background. blobs are those for the
// image's blobs.
func (f *farm) pull(l clients.Library, mirror, server string, p registrytest.Pushed, who login) (n asked, blobs int) {
	f.t.Helper()
	f.Reset()
	dir := pulledDir(f.t)
	require.NoError(f.t, l.Pull(f.t.Context(), clients.Request{Mirror: mirror, Server: server, Repository: p.Repository,
		Reference: "v1", User: who.user, Password: who.password, Dir: dir}), l.Name)
	requireRight(f.t, dir, p.Objects)
	c := f.Counts()
	for quiet := 0; quiet < 5; quiet++ { // a late one counts for the next pull, which has room for it
		time.Sleep(20 * time.Millisecond)
		if now := f.Counts(); now.Requests != c.Requests {
			c, quiet = now, -1
		}
	}
	for _, o := range p.Layers() {
		of := c.Object(o.Digest)
		blobs += of.GETs + of.HEADs
	}
	return asked{c.Requests, c.Tokens}, blobs
}

// row is one row of the table.
type row struct {
	access, client                 string
	direct, cold, again, elsewhere asked
}

func (r row) label() string { return "| " + r.access + " | " + r.client + " |" }

func (r row) String() string {
	return fmt.Sprintf("%s %v | %v | %v | %v |", r.label(), r.direct, r.cold, r.again, r.elsewhere)
}

// above is by how much a cold pull of some rows exceeds a direct one; of all others it asks no more often. Clients that
// get the manifest by its tag cost a lookup beside the GET (1). A lookup whether anonymous clients may read costs a
// token (1), or also a request (2). crane brings a token for the mirror's name of the repository, which the registry
// refuses (2). The supernode logs in beside the node (2).
var above = map[string]int{
	"public, tokens containers-image": 1, "public, tokens crane": 3, "public, tokens oras": 1,
	"public, tokens regclient": 1,

	"private, password crane": 1, "private, password oras": 1, "private, password regclient": 1,

	"private, tokens containerd-2": 1, "private, tokens crane": 5, "private, tokens oras": 2,
	"private, tokens regclient": 2,

	"private, tokens, the node's login buildkit": 2, "private, tokens, the node's login containers-image": 3,
}

// remembered is how long the mirror remembers a challenge for certain: pulls that take longer cost more.
const remembered = 9 * time.Second

// measure pulls a new image directly, cold, once more, and from another node. It returns what is wrong with the counts,
// and whether the pulls took too long for them to mean anything.
func (f *farm) measure(l clients.Library, access string, direct, through login) (r row, wrong []string, slow bool) {
	p := f.push(fmt.Sprintf("lib/app%d", f.seed))
	server := ""
	if l.Name == "buildkit" {
		server = f.Host() // it has credentials for the registry's name alone
	}
	r = row{access: access, client: l.Name}
	var blobs [3]int
	r.direct, _ = f.pull(l, f.Host(), server, p, direct)
	began := time.Now()
	r.cold, blobs[0] = f.pull(l, f.nodes[0], "", p, through)
	r.again, blobs[1] = f.pull(l, f.nodes[0], "", p, through)
	r.elsewhere, blobs[2] = f.pull(l, f.nodes[1], "", p, through)
	expect := func(ok bool, what string) {
		if !ok {
			wrong = append(wrong, what)
		}
	}
	expect(r.cold.all <= r.direct.all+above[access+" "+l.Name], "a cold pull asks too often")
	expect(blobs[0] == len(p.Layers()), "a cold pull asks for each layer once")
	expect(r.again.all <= r.direct.all, "a second pull asks more often than a direct one")
	expect(r.elsewhere.all <= r.direct.all, "a pull from another node asks more often than a direct one")
	expect(r.again.tokens <= r.direct.tokens+1, "a second pull takes more tokens than a direct one and a question")
	expect(blobs[1] == 0 && blobs[2] == 0, "a warm pull asks for a layer")
	return r, wrong, time.Since(began) > remembered
}

// tableStart and tableEnd enclose the table in docs/clients.md.
const (
	tableFile  = "../../docs/clients.md"
	tableStart = "| Image | Client | Directly | Cold | Again | From another node |\n|---|---|---|---|---|---|\n"
)

// documented returns the page and where its table begins and ends.
func documented(t *testing.T) (page string, from, to int) {
	b, err := os.ReadFile(tableFile)
	require.NoError(t, err)
	page = string(b)
	from = strings.Index(page, tableStart)
	require.Positive(t, from, "the table of upstream requests")
	from += len(tableStart)
	return page, from, from - 1 + strings.Index(page[from-1:], "\n\n") + 1
}

// TestUpstreamRequests counts what the registry and its token service are asked, directly and through Darter, and
// compares the counts with docs/clients.md, which -update writes. A count may be less. An answer that lives ten seconds
// may have ended on a slow machine, so a row that is wrong is measured again, and one that took longer decides nothing.
func TestUpstreamRequests(t *testing.T) {
	race.Skip(t, "it counts requests, and other tests pull in the same way")
	t.Parallel()
	alice := login{"alice", "wonder"}
	users := map[string]registrytest.User{alice.user: {Password: alice.password, Pull: []string{"*"}}}
	file := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(file, []byte(alice.password), 0o600))
	page, from, to := documented(t)
	known := map[string]row{}
	for line := range strings.Lines(page[from:to]) {
		var r row
		cells := strings.Split(line, "|")
		require.Len(t, cells, 8, line)
		r.access, r.client = strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])
		for i, a := range []*asked{&r.direct, &r.cold, &r.again, &r.elsewhere} {
			_, err := fmt.Sscanf(strings.TrimSpace(cells[3+i]), "%d, %d", &a.all, &a.tokens)
			require.NoError(t, err, line)
		}
		known[r.label()] = r
	}
	within := func(r row) bool {
		k, ok := known[r.label()]
		return *update || ok && r.direct == k.direct && r.cold.all <= k.cold.all && r.again.all <= k.again.all &&
			r.elsewhere.all <= k.elsewhere.all
	}
	rows := map[string][]row{}
	var mu sync.Mutex
	kinds := []struct {
		name            string
		cfg             registrytest.Config
		node            []string
		direct, through login
	}{
		{"public, tokens", registrytest.Config{Auth: registrytest.Bearer,
			Users: map[string]registrytest.User{"": {Pull: []string{"*"}}}}, nil, login{}, login{}},
		{"private, password", registrytest.Config{Auth: registrytest.Basic, Users: users}, nil, alice, alice},
		{"private, tokens", registrytest.Config{Auth: registrytest.Bearer, Users: users}, nil, alice, alice},
		{"private, tokens, the node's login", registrytest.Config{Auth: registrytest.Bearer, Users: users},
			[]string{"username: " + alice.user, "passwordFile: " + file}, alice, login{}},
	}
	t.Run("count", func(t *testing.T) {
		for _, kind := range kinds {
			t.Run(kind.name, func(t *testing.T) {
				t.Parallel()
				f := newFarm(t, kind.cfg, kind.node...)
				for _, l := range clients.All() {
					switch {
					case l.Name == "containerd-1" || l.Name == "containerd-2-parallel":
						continue // they ask as containerd-2 does
					case kind.direct != login{} && l.OwnLogin != (kind.node == nil):
						continue
					}
					r, wrong, slow := f.measure(l, kind.name, kind.direct, kind.through)
					for try := 1; try < 3 && (len(wrong) > 0 || !within(r)); try++ {
						t.Logf("measuring again: %v %v", r, wrong)
						r, wrong, slow = f.measure(l, kind.name, kind.direct, kind.through)
					}
					if slow && (len(wrong) > 0 || !within(r)) && !*update {
						t.Logf("this machine is too slow for %v %v", r, wrong)
						wrong, r = nil, known[r.label()]
					}
					assert.Empty(t, wrong, "%v", r)
					assert.True(t, within(r), "docs/clients.md has other counts: %v\nmeasured: %v\nMend the cause, or run "+
						"the test with -update.", known[r.label()], r)
					mu.Lock()
					rows[kind.name] = append(rows[kind.name], r)
					mu.Unlock()
				}
			})
		}
	})
	var table strings.Builder
	var labels []string
	for _, kind := range kinds {
		for _, r := range rows[kind.name] {
			labels = append(labels, r.label())
			fmt.Fprintln(&table, r)
		}
	}
	t.Log("\n" + tableStart + table.String())
	if *update && !t.Failed() {
		require.NoError(t, os.WriteFile(tableFile, []byte(page[:from]+table.String()+page[to:]), 0o644))
		return
	}
	for label := range known {
		assert.True(t, slices.Contains(labels, label), "docs/clients.md has a row that nothing measures: %s", label)
	}
}

// TestDeadRegistryWithPasswords has a registry that asks for passwords and is down. Clients that ask without
// credentials first hear its challenge from the mirror, come with their password, and get what the mirror granted to
// it. After a reload of the settings the mirror knows neither.
func TestDeadRegistryWithPasswords(t *testing.T) {
	alice := login{"alice", "wonder"}
	each(t, func(t *testing.T, l clients.Library) {
		if !slices.Contains([]string{"containerd-2", "oras", "regclient"}, l.Name) {
			return // it does not ask without credentials first, or as one of these
		}
		r, err := registrytest.Listen(registrytest.Config{Auth: registrytest.Basic,
			Users: map[string]registrytest.User{alice.user: {Password: alice.password, Pull: []string{"lib/*"}}}})
		require.NoError(t, err)
		ctx, kill := context.WithCancel(context.Background())
		defer kill()
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		settings := nodeSettings{url: r.URL(), env: []string{"DARTER_MIRROR_RIGHTS_UNREACHABLE=serve-cached",
			"DARTER_MIRROR_TAG_STALE=1h"}}.dfdaemon(t)
		s := &site{Registry: r, t: t, log: &lines{}}
		d := startWith(t, s.log, settings)
		s.mirror = d.Addrs()["mirror"]
		p := s.image("lib/app", 70)
		_, err = s.pull(l, p.Repository, "v1", alice)
		require.NoError(t, err)
		kill()
		require.NoError(t, <-ended)

		dir, err := s.pull(l, p.Repository, "v1", alice)
		require.NoError(t, err, "with its login")
		requireRight(t, dir, p.Objects)
		get := func(who login) int {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.mirror+
				"/v2/lib/app/manifests/"+p.Digest+"?ns="+clients.Registry, nil)
			require.NoError(t, err)
			if who.user != "" {
				req.SetBasicAuth(who.user, who.password)
			}
			res, err := http.DefaultClient.Do(req)
			require.NoError(t, err)
			res.Body.Close()
			return res.StatusCode
		}
		nobody := login{}
		assert.Equal(t, http.StatusOK, get(alice))
		assert.Equal(t, http.StatusBadGateway, get(login{alice.user, "wrong"}), "no grant for another password")
		assert.Equal(t, http.StatusUnauthorized, get(nobody))
		require.NoError(t, d.Reload(&settings))
		assert.Equal(t, http.StatusBadGateway, get(nobody))
		assert.Equal(t, http.StatusBadGateway, get(alice))
	})
}
