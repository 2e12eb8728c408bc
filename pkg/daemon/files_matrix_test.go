package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/supernode"
)

// cell is one origin of the matrix.
type cell struct {
	personal              bool // the bytes differ for every header and parameter
	validator, vary, says string
	head                  string // how HEAD differs from GET
	ranges                bool
	size                  int
}

func (c cell) String() string {
	return fmt.Sprintf("personal %t, validator %s, vary %q, says %q, head %s, ranges %t, %d bytes", c.personal,
		c.validator, c.vary, c.says, c.head, c.ranges, c.size)
}

// matrix is a web server with one file per cell.
type matrix struct {
	*httptest.Server
	cells []cell
	// random holds all contents: some 10,000 requests would take long to generate theirs.
	random []byte
	mu     sync.Mutex
	whole  map[string]int // GETs that got the whole file, by path
}

// newMatrix returns a matrix without cells.
func newMatrix() *matrix {
	m := &matrix{random: make([]byte, 4<<20), whole: map[string]int{}}
	_, _ = rand.NewChaCha8([32]byte{}).Read(m.random)
	return m
}

func (m *matrix) content(c cell, who string) []byte {
	if !c.personal {
		who = ""
	}
	h := fnv.New64a()
	fmt.Fprint(h, c, who)
	at := int(h.Sum64() % uint64(len(m.random)-c.size))
	return m.random[at : at+c.size]
}

// who holds the parts of a request by which the origin can identify its user.
func who(get func(string) string, query string) string {
	return strings.Join([]string{get("Authorization"), get("Cookie"), get("Accept-Language"), query}, "|")
}

func (m *matrix) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
	c := m.cells[i]
	body := m.content(c, who(r.Header.Get, r.URL.RawQuery))
	h := w.Header()
	switch c.validator {
	case "strong":
		sum := sha256.Sum256(body)
		h.Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
	case "strong for all":
		h.Set("ETag", `"v1"`)
	case "weak":
		h.Set("ETag", `W/"v1"`)
	case "date":
		h.Set("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
	}
	less := r.Method == http.MethodHead && c.head == "says less"
	if c.says != "" && !less {
		h.Set("Cache-Control", c.says)
	}
	if c.vary != "" && !less {
		h.Set("Vary", c.vary)
	}
	if r.Method == http.MethodHead {
		switch c.head {
		case "missing":
			h.Set("Allow", "GET")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		case "another version":
			h.Set("ETag", `"of the head"`)
		}
	}
	if !c.ranges {
		r.Header.Del("Range")
		r.Header.Del("If-None-Match")
	}
	if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
		m.mu.Lock()
		m.whole[r.URL.Path]++
		m.mu.Unlock()
	}
	http.ServeContent(w, r, "f.bin", time.Time{}, bytes.NewReader(body))
}

func (m *matrix) bodies(path string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.whole[path]
}

// asker is one request of the matrix.
type asker struct {
	name    string
	headers map[string]string
	query   string
}

var (
	nobody = asker{name: "nobody"}
	alice  = asker{name: "alice", headers: map[string]string{"Authorization": "Bearer alice"}}
	bob    = asker{name: "bob", headers: map[string]string{"Authorization": "Bearer bob"}}
	cookie = asker{name: "a cookie", headers: map[string]string{"Cookie": "session=1"}}
	cake   = asker{name: "another cookie", headers: map[string]string{"Cookie": "session=2"}}
	german = asker{name: "a German", headers: map[string]string{"Accept-Language": "de"}}
	greek  = asker{name: "a Greek", headers: map[string]string{"Accept-Language": "el"}}
	signed = asker{name: "a signature", query: "sig=1"}
	forged = asker{name: "another signature", query: "sig=2"}
)

// get sends a user's request to a daemon and proves that the bytes are the origin's own for that request.
func (m *matrix) get(t *testing.T, addr string, i int, a asker, from int, version string) (etag string) {
	t.Helper()
	path := "/" + strconv.Itoa(i)
	u := m.URL + path
	if a.query != "" {
		u += "?" + a.query
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
		"http://"+addr+api.PathFiles+"?"+url.Values{api.FileURL: {u}}.Encode(), nil)
	require.NoError(t, err)
	for k, v := range a.headers {
		req.Header.Set(api.ForwardPrefix+k, v)
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		req.Header.Set("If-Range", version)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := readAll(res)
	require.NoError(t, err)
	c := m.cells[i]
	want := m.content(c, who(func(k string) string { return a.headers[k] }, a.query))
	if anonymous := m.content(c, who(func(string) string { return "" }, "")); c.says == "public" && !c.ranges &&
		a.headers["Authorization"] != "" && bytes.HasSuffix(anonymous, b) {
		want = anonymous // the origin allows it, and no bytes belong to another user
	}
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		assert.Equal(t, version, res.Header.Get("ETag"))
		want = want[from:]
	default:
		t.Fatalf("%s: %s: %s", a.name, res.Status, b)
	}
	require.True(t, bytes.Equal(want, b), "%s was given bytes that the origin does not give to that request "+
		"(unshared: %q)", a.name, res.Header.Get(api.HeaderUnshared))
	return res.Header.Get("ETag")
}

// shares returns, by the rules of docs/files.md, whether the origin sends only one body for both requests.
func (c cell) shares(first, second asker) bool {
	credential := map[string]string{alice.name: "Authorization", bob.name: "Authorization", cookie.name: "Cookie",
		cake.name: "Cookie", signed.name: "", forged.name: ""}
	header, personal := credential[first.name]
	switch {
	case c.personal && first.name != second.name, c.validator == "none", c.says == "private", c.says == "no-store",
		c.vary == "*", c.head == "another version":
		return false
	case c.head == "says less" && (c.says != "" || c.vary != ""):
		return false // it depends on the ignored parameters
	case first.name == second.name:
		return !personal || c.ranges // otherwise each node once requests a range in vain
	case !personal:
		return false
	case header == "Authorization" && c.says == "public" && c.head != "says less":
		return c.vary != "Authorization" && c.ranges
	}
	return strings.HasPrefix(c.validator, "strong") && c.ranges && (header == "" || c.vary != header)
}

func TestFilesMatrix(t *testing.T) {
	t.Parallel()
	heads := []struct {
		head   string
		ranges bool
	}{{"same", true}, {"same", false}, {"missing", true}, {"says less", true}, {"another version", true},
		{"missing", false}}
	m := newMatrix()
	n := 0
	for _, personal := range []bool{false, true} {
		for _, validator := range []string{"strong", "strong for all", "weak", "date", "none"} {
			for _, vary := range []string{"", "Authorization", "Accept-Language", "*"} {
				for _, says := range []string{"", "public", "private", "no-store"} {
					for k := range 2 {
						h := heads[(n+3*k)%len(heads)]
						m.cells = append(m.cells, cell{personal, validator, vary, says, h.head, h.ranges,
							[]int{2_000, 300_000}[n/len(heads)%2]})
					}
					n++
				}
			}
		}
	}
	m.Server = httptest.NewServer(m)
	defer m.Close()
	t.Logf("%d origins", len(m.cells))

	const word secret.String = "a secret that is long enough for a cluster"
	for _, nodes := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			clear(m.whole)
			var top config.Supernode
			require.NoError(t, config.NewForm("supernode", &top).Load([]string{
				"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "s"), "DARTER_CACHE_QUOTA=1GiB",
				"DARTER_API_LISTEN=127.0.0.1:0",
				"DARTER_PEER_LISTEN=127.0.0.1:0", "DARTER_ADMIN_LISTEN=127.0.0.1:0",
				"DARTER_CLUSTER_SECRET=" + word.Reveal(),
			}))
			top.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
			var owners []config.Address
			if nodes > 1 {
				s, err := supernode.New(top, nil)
				require.NoError(t, err)
				run(t, s)
				owners = []config.Address{config.Address(s.Addrs()["api"])}
			}
			var addrs []string
			for i := range nodes {
				cfg := settings(t, nil, fmt.Sprintf("matrix%d", i))
				cfg.Cluster.Secret, cfg.Supernodes = word, owners
				d, err := daemon.New(cfg, nil)
				require.NoError(t, err)
				run(t, d)
				addrs = append(addrs, d.Addrs()["api"])
			}
			for i, c := range m.cells {
				if nodes > 1 && i%3 != 0 || i%matrixStep != 0 {
					continue
				}
				t.Run(c.String(), func(t *testing.T) {
					path, turn := "/"+strconv.Itoa(i), 0
					get := func(a asker, from int, version string) (string, int) {
						before := m.bodies(path)
						turn++
						etag := m.get(t, addrs[turn%len(addrs)], i, a, from, version)
						return etag, m.bodies(path) - before
					}
					for _, pair := range [][2]asker{{nobody, nobody}, {alice, bob}, {cookie, cake}, {signed, forged},
						{german, german},
						{alice, alice}, {german, greek}, {nobody, nobody}} {
						etag, _ := get(pair[0], 0, "")
						_, more := get(pair[1], 0, "")
						// Without HEAD and Range, the probe is a GET with a body of its own.
						if c.shares(pair[0], pair[1]) && (c.head != "missing" || c.ranges) {
							assert.Zero(t, more, "%s after %s", pair[1].name, pair[0].name)
						}
						get(pair[1], 1000, etag)
					}
				})
			}
		})
	}
}
