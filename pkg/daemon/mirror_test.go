package daemon_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/supernode"
	"github.com/darter-io/darter/test/programs"
	"github.com/darter-io/darter/test/registrytest"
)

// runtime pulls an image as containerd does: HEAD by tag, a token of its own for the challenge,
// the manifest by digest, and then all of its blobs at once.
type runtime struct {
	mirror, ns    string
	prefix        string // the registry as the first part of the path, for a client without ns
	authorization string
	roots         *x509.CertPool // of a registry with TLS, for logins
	// late counts the responses of a mirror on a loaded machine that report a timeout. The runtime then
	// tries again, as real ones do. Nil: it does not.
	late *atomic.Int64
}

// lateTries is how often a runtime tries again: each attempt takes up to 10 s on a loaded machine.
const lateTries = 10

func (c *runtime) do(method, path string) (res *http.Response, body []byte, err error) {
	for range lateTries {
		res, body, err = c.once(method, path)
		outOfTime := err == nil &&
			(res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusGatewayTimeout)
		if !outOfTime || c.late == nil {
			break
		}
		c.late.Add(1)
	}
	return res, body, err
}

func (c *runtime) once(method, path string) (*http.Response, []byte, error) {
	target := "http://" + c.mirror + "/v2/" + path + "?ns=" + url.QueryEscape(c.ns)
	if c.prefix != "" {
		target = "http://" + c.mirror + "/v2/" + c.prefix + "/" + path
	}
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", strings.Join(oci.ManifestTypes(), ", "))
	if c.authorization != "" {
		req.Header.Set("Authorization", c.authorization)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := readAll(res)
	return res, b, err
}

// readAll reads a body into one buffer of its length, if that is known and no more than 16 MiB. The growing buffers of
// io.ReadAll cost more than the transfer.
func readAll(res *http.Response) ([]byte, error) {
	var b bytes.Buffer
	if res.Request.Method != http.MethodHead {
		b.Grow(int(min(max(res.ContentLength, 0), 16<<20)) + bytes.MinRead)
	}
	_, err := b.ReadFrom(res.Body)
	return b.Bytes(), err
}

// login answers a Bearer challenge.
func (c *runtime) login(challenge, user, password string) error {
	fields := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimPrefix(challenge, "Bearer "), ",") {
		k, v, _ := strings.Cut(part, "=")
		fields[k] = strings.Trim(v, `"`)
	}
	req, err := http.NewRequest(http.MethodGet,
		fields["realm"]+"?"+url.Values{"service": {fields["service"]}, "scope": {fields["scope"]}}.Encode(), nil)
	if err != nil {
		return err
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token == "" {
		return fmt.Errorf("no token: %s %v", res.Status, err)
	}
	c.authorization = "Bearer " + answer.Token
	return nil
}

func (c *runtime) pull(repository, tag, user, password string) error {
	res, _, err := c.do(http.MethodHead, repository+"/manifests/"+tag)
	if err == nil && res.StatusCode == http.StatusUnauthorized && user != "" {
		if err = c.login(res.Header.Get("WWW-Authenticate"), user, password); err == nil {
			res, _, err = c.do(http.MethodHead, repository+"/manifests/"+tag)
		}
	}
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("resolving %s: %v %v", tag, res, err)
	}
	digest := res.Header.Get("Docker-Content-Digest")
	_, manifest, err := c.do(http.MethodGet, repository+"/manifests/"+digest)
	if err != nil || string(oci.DigestOf(manifest)) != digest {
		return fmt.Errorf("manifest %s: %.200s %v", digest, manifest, err)
	}
	var g errgroup.Group
	for _, ref := range oci.References("", manifest) {
		g.Go(func() error {
			res, b, err := c.do(http.MethodGet, repository+"/blobs/"+string(ref.ID))
			if err == nil && oci.DigestOf(b) != ref.ID {
				err = fmt.Errorf("blob %s: %s, %d bytes", ref.ID, res.Status, len(b))
			}
			return err
		})
	}
	return g.Wait()
}

// This test counts the requests and bytes of one registry while a whole cluster pulls an image. A host
// whose owner does not reply in time asks the registry itself and logs it; a client without a byte in time
// gets an error and tries again. Without such events, the registry gets one request for each object and one
// for the tag. On a loaded machine, the test allows one more for each logged event.
func TestCrowdLooksUpOnce(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	for name, c := range map[string]struct {
		auth           registrytest.Auth
		user, password string
	}{
		"a public image":           {registrytest.None, "", ""},
		"a private one, by tokens": {registrytest.Bearer, "alice", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{Auth: c.auth,
				Users: map[string]registrytest.User{"alice": {Password: "a", Pull: []string{"*"}}}})
			p := image(t, r, 2e6, 1e6, 300e3)
			s, _ := lead(t, r, word)
			mirrors := make([]string, crowd)
			var silences, late atomic.Int64
			watch := func(line []byte) {
				if bytes.Contains(line, []byte("owner does not answer")) ||
					bytes.Contains(line, []byte("owner did not hear")) {
					silences.Add(1)
				}
			}
			for i := range mirrors {
				cfg := settings(t, r, fmt.Sprint("node", i))
				cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
				cfg.Mirror.TagLife = time.Hour // longer than the test on a slow machine
				d, _ := start(t, cfg, watch)
				mirrors[i] = d.Addrs()["mirror"]
			}
			for range 2 { // the second pull is warm
				var g errgroup.Group
				for _, mirror := range mirrors {
					g.Go(func() error {
						return (&runtime{mirror: mirror, ns: r.Host(), late: &late}).pull(p.Repository,
							"v1", c.user, c.password)
					})
				}
				require.NoError(t, g.Wait())
			}
			counts := r.Counts()
			tag, manifest := counts.Objects[p.Repository+"/manifests/v1"],
				counts.Objects[p.Repository+"/manifests/"+p.Digest]
			most := 1 + int(silences.Load()+late.Load())
			t.Logf("by tag %+v, by digest %+v, egress %d of %d, %d times an owner was silent, %d times an answer was "+
				"late", tag.Statuses, manifest.Statuses, counts.Egress, p.Bytes(), silences.Load(), late.Load())
			var sent int64
			for _, o := range p.Objects {
				key := p.Repository + "/blobs/" + o.Digest
				if o.Kind == "manifest" {
					key = p.Repository + "/manifests/" + o.Digest
				} else {
					assert.Zero(t, counts.Objects[key].HEADs, "the manifest vouches for it")
				}
				assert.Positive(t, counts.Objects[key].GETs)
				assert.LessOrEqual(t, counts.Objects[key].GETs, most, "%s: one GET for each object", o.Kind)
				sent += counts.Objects[key].Bytes
			}
			assert.LessOrEqual(t, float64(sent), 1.01*float64(most)*float64(p.Bytes()))
			assert.Zero(t, tag.GETs)
			resolutions := tag.Statuses[http.StatusOK]
			assert.Positive(t, resolutions)
			assert.LessOrEqual(t, resolutions, most, "one resolution of the tag in its life")
			yes := manifest.HEADs - manifest.Statuses[http.StatusUnauthorized]
			if c.auth == registrytest.None {
				assert.Less(t, yes, most, "what anonymous clients may read is asked once")
			} else {
				assert.GreaterOrEqual(t, yes+resolutions, 2*crowd,
					"one HEAD for each token, by digest or to resolve the tag")
				assert.LessOrEqual(t, yes+resolutions, 2*crowd+most-1, "and no more")
			}
		})
	}
}

// Without a supernode that answers, a few dfdaemons lead: those that it named before it died, or
// those of the settings if there never was one.
func TestCrowdWithoutSupernodeLooksUpOnce(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	for _, named := range []bool{true, false} {
		t.Run(fmt.Sprintf("by a supernode that died: %t", named), func(t *testing.T) {
			r := registrytest.Start(t, registrytest.Config{Auth: registrytest.Bearer,
				Users: map[string]registrytest.User{"alice": {Password: "a", Pull: []string{"*"}}}})
			p := image(t, r, 2e6, 1e6, 300e3)
			ports, err := programs.FreeAddrs(3)
			require.NoError(t, err)
			leaders := []config.Address{config.Address(ports[0]), config.Address(ports[1]), config.Address(ports[2])}
			dead, stop := "", func() {}
			if named {
				var s *supernode.Supernode
				s, stop = lead(t, r, word)
				dead = s.Addrs()["api"]
				leaders = []config.Address{config.Address(dead)}
			}
			var silences, late atomic.Int64
			watch := func(line []byte) {
				known := dead != "" && bytes.Contains(line, []byte("owner="+dead))
				if !known && bytes.Contains(line, []byte("owner does not answer")) ||
					bytes.Contains(line, []byte("owner did not hear")) {
					silences.Add(1)
				}
			}
			daemons := make([]*daemon.Daemon, crowd)
			for i := range daemons {
				cfg := settings(t, r, fmt.Sprint("node", i))
				cfg.Cluster.Secret, cfg.Supernodes, cfg.Mirror.TagLife = word, leaders, time.Hour
				if !named && i < len(leaders) {
					cfg.Peer.Listen = leaders[i]
				}
				daemons[i], _ = start(t, cfg, watch)
			}
			standbys := standbysOf(t, daemons)
			for i, d := range daemons {
				require.EventuallyWithT(t, func(c *assert.CollectT) {
					s, alive := status(t, d.Addrs()["api"]), 0
					for _, o := range s.Owners {
						if o.Alive {
							alive++
						}
					}
					if named {
						assert.Equal(c, standbys, s.Standbys)
					} else if i < len(leaders) {
						assert.Equal(c, len(leaders)-1, alive)
					} else {
						assert.Equal(c, len(leaders), alive)
					}
				}, 2*time.Minute, 50*time.Millisecond)
			}
			stop()
			silences.Store(0)
			r.Reset()
			var g errgroup.Group
			for _, d := range daemons {
				g.Go(func() error {
					return (&runtime{mirror: d.Addrs()["mirror"], ns: r.Host(), late: &late}).pull(p.Repository, "v1",
						"alice", "a")
				})
			}
			require.NoError(t, g.Wait())
			counts, most := r.Counts(), 1+int(silences.Load()+late.Load())
			t.Logf("egress %d of %d, %d times an owner was silent, %d times an answer was late",
				counts.Egress, p.Bytes(),
				silences.Load(), late.Load())
			for _, o := range p.Objects {
				key := p.Repository + "/blobs/" + o.Digest
				if o.Kind == "manifest" {
					key = p.Repository + "/manifests/" + o.Digest
				}
				assert.Positive(t, counts.Objects[key].GETs)
				assert.LessOrEqual(t, counts.Objects[key].GETs, most, "%s: one GET for each object", o.Kind)
			}
			assert.LessOrEqual(t, counts.Objects[p.Repository+"/manifests/v1"].Statuses[http.StatusOK], most,
				"one resolution of the tag")
		})
	}
}

// Lists of standbys can differ for a moment, for example after a restart of a supernode. Nodes that forward
// lookups to each other in a ring must not wait for each other.
func TestNodesThatDisagreeOnTheOwner(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	r := registrytest.Start(t, registrytest.Config{})
	ports, err := programs.FreeAddrs(3)
	require.NoError(t, err)
	daemons := make([]*daemon.Daemon, len(ports))
	for i := range daemons {
		cfg := settings(t, r, fmt.Sprint("node", i))
		cfg.Cluster.Secret, cfg.Peer.Listen = word, config.Address(ports[i])
		cfg.Supernodes = []config.Address{config.Address(ports[(i+1)%len(ports)])}
		daemons[i], _ = start(t, cfg)
	}
	for _, d := range daemons {
		require.EventuallyWithT(t, func(c *assert.CollectT) {
			if s := status(t, d.Addrs()["api"]); assert.Len(c, s.Owners, 1) {
				assert.True(c, s.Owners[0].Alive)
			}
		}, time.Minute, 50*time.Millisecond)
	}
	for _, pulling := range []int{1, len(daemons)} {
		img, err := registrytest.NewImage(uint64(pulling), []int64{2e6, 1e6, 300e3})
		require.NoError(t, err)
		p, err := r.Push(t.Context(), "team/app", fmt.Sprint("v", pulling), img)
		require.NoError(t, err)
		r.Reset()
		var g errgroup.Group
		for _, d := range daemons[:pulling] {
			g.Go(func() error {
				return (&runtime{mirror: d.Addrs()["mirror"], ns: r.Host()}).pull(p.Repository,
					fmt.Sprint("v", pulling), "", "")
			})
		}
		require.NoError(t, g.Wait(), "%d of %d pull", pulling, len(daemons))
		egress := r.Counts().Egress
		t.Logf("%d of %d pull: egress %d of %d", pulling, len(daemons), egress, p.Bytes())
		assert.LessOrEqual(t, egress, int64(len(daemons))*p.Bytes()+10e3, "no more copies than there are opinions")
	}
}

// standbysOf lists the standbys that a supernode names after all daemons announced. Before that, it may
// name others.
func standbysOf(t *testing.T, daemons []*daemon.Daemon) (list []string) {
	var ids []string
	addrs := map[string]string{}
	for _, d := range daemons {
		h := status(t, d.Addrs()["api"]).Host
		ids = append(ids, string(h.ID))
		addrs[string(h.ID)] = h.Addr
	}
	for _, id := range rendezvous.Order("standbys", ids)[:3] {
		list = append(list, addrs[id])
	}
	slices.Sort(list)
	return list
}

// The client of one registry waits for a blob that another registry sends, which then
// refuses it, for example with a challenge that would send the client's login to another host.
func TestRefusalIsOfOneRegistry(t *testing.T) {
	t.Parallel()
	for _, status := range []int{401, 404, 429, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			evil, good := registrytest.Start(t, registrytest.Config{}), registrytest.Start(t, registrytest.Config{})
			content := bytes.Repeat([]byte("the same layer in both "), 1000)
			var digest string
			for _, r := range []*registrytest.Registry{evil, good} {
				var err error
				digest, err = r.PushBlob(t.Context(), "team/app", content)
				require.NoError(t, err)
				r.Reset()
			}
			evil.Fail(registrytest.Fault{Action: registrytest.ActSlowHeaders, DelayMillis: 1000}, registrytest.Fault{
				Action: registrytest.ActStatus, Status: status,
				Header: map[string]string{"Www-Authenticate": `Bearer realm="https://evil.test/token"`},
			})
			cfg := settings(t, evil, "node")
			cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Host: good.Host(), URLs: []string{good.URL()},
				PlainHTTP: true})
			d, _ := start(t, cfg)
			at := func(r *registrytest.Registry) string {
				return "http://" + d.Addrs()["mirror"] + "/v2/team/app/blobs/" + digest + "?ns=" + r.Host()
			}
			var first errgroup.Group
			first.Go(func() error {
				// Its request may arrive after the other registry's blob, and get that.
				if err := get(t.Context(), at(evil), digest, oci.MediaTypeBlob, nil); err != nil {
					assert.ErrorContains(t, err,
						fmt.Sprint(": ", map[bool]int{true: 503, false: status}[status == 429]))
				}
				return nil
			})
			require.Eventually(t, func() bool { return evil.Counts().Object(digest).GETs > 0 }, time.Minute,
				time.Millisecond)
			require.NoError(t, get(t.Context(), at(good), digest, oci.MediaTypeBlob, nil))
			require.NoError(t, first.Wait())
		})
	}
}

// The client of one node waits for a blob that is downloaded with the token of another node's client, or of
// another client of its own node, which the registry then refuses. The registry sends a blob to one token only,
// although it grants it to all tokens.
func TestRefusalIsOfOneToken(t *testing.T) {
	t.Parallel()
	const word = "a secret that is long enough for a cluster"
	for _, status := range []int{401, 403, 404} {
		for _, nodes := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d, %d nodes", status, nodes), func(t *testing.T) {
				r := registrytest.Start(t, registrytest.Config{})
				digest, err := r.PushBlob(t.Context(), "team/app", bytes.Repeat([]byte("a private layer "), 1000))
				require.NoError(t, err)
				at, err := url.Parse(r.URL())
				require.NoError(t, err)
				behind, asked, waits := httputil.NewSingleHostReverseProxy(at), make(chan struct{}), make(chan struct{})
				var refused atomic.Int64
				front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") &&
						req.Header.Get("Authorization") != "Bearer good" {
						if refused.Add(1) == 1 {
							close(asked)
							<-waits
							time.Sleep(500 * time.Millisecond) // usually enough for the other request
						}
						http.Error(w, "not for you", status)
						return
					}
					behind.ServeHTTP(w, req)
				}))
				defer front.Close()
				upstream := config.Upstream{Host: r.Host(), URLs: []string{front.URL}, PlainHTTP: true}
				s, _ := leadTo(t, upstream, word)
				var mirrors []string
				for i := range nodes {
					cfg := settings(t, r, fmt.Sprint("node", i))
					cfg.Cluster.Secret, cfg.Supernodes = word, []config.Address{config.Address(s.Addrs()["api"])}
					cfg.Upstreams = []config.Upstream{upstream}
					d, _ := start(t, cfg)
					mirrors = append(mirrors, d.Addrs()["mirror"])
				}
				pull := func(mirror, token string) (int, string) {
					c := runtime{mirror: mirror, ns: r.Host(), authorization: "Bearer " + token}
					res, b, err := c.do(http.MethodGet, "team/app/blobs/"+digest)
					if !assert.NoError(t, err) {
						return 0, ""
					}
					return res.StatusCode, string(oci.DigestOf(b))
				}
				var clients errgroup.Group
				clients.Go(func() error {
					// It may learn of it only after the download with the other token.
					got, _ := pull(mirrors[0], "bad")
					assert.Contains(t, []int{status, http.StatusOK}, got)
					return nil
				})
				<-asked
				clients.Go(func() error {
					got, content := pull(mirrors[nodes-1], "good")
					assert.Equal(t, http.StatusOK, got)
					assert.Equal(t, digest, content)
					return nil
				})
				close(waits)
				require.NoError(t, clients.Wait())
			})
		}
	}
}

func TestListenerPerRegistry(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	p := image(t, r, 10e3)
	cfg := settings(t, r, "node")
	cfg.Mirror.Listeners = []config.MirrorListener{{Listen: "127.0.0.1:0", Upstream: r.Host()}}
	d, _ := start(t, cfg)
	path := "/v2/" + p.Repository + "/manifests/" + p.Digest
	require.NoError(t, get(t.Context(), "http://"+d.Addrs()["mirror of "+r.Host()]+path, p.Digest,
		oci.MediaTypeManifest, nil))
	require.ErrorContains(t, get(t.Context(), "http://"+d.Addrs()["mirror"]+path, p.Digest, oci.MediaTypeManifest, nil),
		"403", "docker.io is not listed")
	require.NoError(t, get(t.Context(), "http://"+d.Addrs()["mirror"]+"/v2/", string(oci.DigestOf([]byte("{}"))),
		"", nil))
}
