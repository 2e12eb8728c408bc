package dfget_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/dfget"
)

// startDaemon runs a dfdaemon of its own and returns its local API's address.
func startDaemon(t *testing.T) config.Address {
	var cfg config.Dfdaemon
	require.NoError(t, config.NewForm("dfdaemon", &cfg).Load([]string{
		"DARTER_NODE_DATA_DIR=" + filepath.Join(t.TempDir(), "d"), "DARTER_CACHE_QUOTA=1GiB",
		"DARTER_MIRROR_LISTEN=127.0.0.1:0", "DARTER_API_LISTEN=127.0.0.1:0", "DARTER_PEER_LISTEN=127.0.0.1:0",
		"DARTER_DRAIN_TIMEOUT=5s", "DARTER_FILES_PROXY=none",
	}))
	cfg.Files.AllowAddresses = []config.Network{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}}
	d, err := daemon.New(cfg, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	return config.Address(d.Addrs()["api"])
}

// recorder keeps the requests of a server.
type recorder struct {
	mu       sync.Mutex
	requests []*http.Request
}

func (h *recorder) add(r *http.Request) (number int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r)
	return len(h.requests)
}

// count returns the number of requests that match.
func (h *recorder) count(match func(*http.Request) bool) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.requests {
		if match(r) {
			n++
		}
	}
	return n
}

func isGet(r *http.Request) bool { return r.Method == http.MethodGet }

// fetchFunc downloads a URL to a file.
type fetchFunc = func(url, file string, change func(*config.Dfget)) error

// ways runs a test through a dfdaemon and directly.
func ways(t *testing.T, test func(t *testing.T, direct bool, fetch fetchFunc)) {
	for name, direct := range map[string]bool{"through the daemon": false, "directly": true} {
		t.Run(name, func(t *testing.T) {
			var at config.Address
			if !direct {
				at = startDaemon(t)
			}
			test(t, direct, func(url, file string, change func(*config.Dfget)) error {
				set := settings(t, nil, func(s *config.Dfget) {
					s.Direct, s.Output = direct, file
					if !direct {
						s.Daemon = at
					}
					if change != nil {
						change(s)
					}
				})
				return dfget.New(dfget.Config{
					URLs: []string{url}, Backoff: time.Millisecond, Settings: set,
				}).Run(t.Context())
			})
		})
	}
}

// A direct download whose first answer had no length resumes: the validator alone names the version.
func TestResumeWithoutFirstLength(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 10_000)
	var ranges []string
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		w.Header().Set("ETag", `"v1"`)
		if len(ranges) > 1 {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
			return
		}
		_, _ = w.Write(content[:50_000])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer o.Close()
	dir := t.TempDir()
	var stderr bytes.Buffer
	set := settings(t, nil, func(s *config.Dfget) { s.Direct, s.Output = true, filepath.Join(dir, "f") })
	require.NoError(t, dfget.New(dfget.Config{URLs: []string{o.URL + "/f"}, Backoff: time.Millisecond, Settings: set,
		Stderr: &stderr}).Run(t.Context()))
	holds(t, dir, map[string][]byte{"f": content})
	assert.Equal(t, []string{"", "bytes=50000-"}, ranges)
	assert.NotContains(t, stderr.String(), "starting over")
}

// A file has the time when its origin modified it.
func TestOriginTime(t *testing.T) {
	modified := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", modified, strings.NewReader("content"))
	}))
	defer o.Close()
	ways(t, func(t *testing.T, _ bool, fetch fetchFunc) {
		for _, noCache := range []bool{false, true} {
			file := filepath.Join(t.TempDir(), "f")
			require.NoError(t, fetch(o.URL+"/f", file, func(s *config.Dfget) { s.NoCache = noCache }))
			info, err := os.Stat(file)
			require.NoError(t, err)
			assert.True(t, info.ModTime().Equal(modified), info.ModTime())
		}
	})
}

// A file comes whole from every kind of origin, also if the origin breaks off once.
func TestOrigins(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, err := zip.Write(content)
	require.NoError(t, err)
	require.NoError(t, zip.Close())

	// write sends a body, or breaks off in its middle if cut is true.
	write := func(w http.ResponseWriter, b []byte, cut bool) {
		if !cut {
			_, _ = w.Write(b)
			return
		}
		_, _ = w.Write(b[:len(b)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for _, origin := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, cut bool)
	}{
		{"ranges and length", func(w http.ResponseWriter, r *http.Request, cut bool) {
			if cut {
				w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				write(w, content, cut)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}},
		{"no ranges", func(w http.ResponseWriter, r *http.Request, cut bool) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			if r.Method != http.MethodHead {
				write(w, content, cut)
			}
		}},
		{"no length", func(w http.ResponseWriter, r *http.Request, cut bool) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush() // chunked from here on
			if r.Method != http.MethodHead {
				write(w, content, cut)
			}
		}},
		{"no HEAD", func(w http.ResponseWriter, r *http.Request, cut bool) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}},
		{"gzip to every request", func(w http.ResponseWriter, r *http.Request, cut bool) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", strconv.Itoa(packed.Len()))
			if r.Method != http.MethodHead {
				write(w, packed.Bytes(), cut)
			}
		}},
	} {
		for _, cut := range []bool{false, true} {
			if cut && origin.name == "no HEAD" {
				continue // its bodies are those of the first origin
			}
			t.Run(fmt.Sprintf("%s, cut %t", origin.name, cut), func(t *testing.T) {
				ways(t, func(t *testing.T, _ bool, fetch fetchFunc) {
					var h recorder
					var once sync.Once
					s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						h.add(r)
						now := false
						if cut && isGet(r) && r.Header.Get("Range") != "bytes=0-0" {
							once.Do(func() { now = true })
						}
						w.Header().Set("ETag", `"v1"`)
						origin.answer(w, r, now)
					}))
					defer s.Close()
					dir := t.TempDir()
					require.NoError(t, fetch(s.URL+"/f", filepath.Join(dir, "f"), func(c *config.Dfget) {
						c.Digest = sum
					}))
					holds(t, dir, map[string][]byte{"f": content})
					assert.Zero(t, h.count(func(r *http.Request) bool {
						return r.Header.Get("Accept-Encoding") != "identity"
					}), "every request asks for identity")
				})
			})
		}
	}
}

// A change of the file has its own exit code, both between the daemon's HEAD and its GET and in the middle of
// the body.
func TestChangingOrigin(t *testing.T) {
	old, next := bytes.Repeat([]byte("old "), 500_000), bytes.Repeat([]byte("new "), 500_000)
	for name, middle := range map[string]bool{"after the HEAD": false, "in the middle": true} {
		t.Run(name, func(t *testing.T) {
			ways(t, func(t *testing.T, direct bool, fetch fetchFunc) {
				if direct && !middle {
					t.Skip("a direct download sends no HEAD; the daemon's case runs this")
				}
				var mu sync.Mutex
				changed, change := false, true
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					defer mu.Unlock()
					began := !changed && isGet(r) && change
					if began {
						changed = true
					}
					if changed && !(began && middle) {
						w.Header().Set("ETag", `"v2"`)
						http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(next))
						return
					}
					w.Header().Set("ETag", `"v1"`)
					if began {
						w.Header().Set("Content-Length", strconv.Itoa(len(old)))
						_, _ = w.Write(old[:len(old)*3/4])
						_ = http.NewResponseController(w).Flush()
						panic(http.ErrAbortHandler)
					}
					http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(old))
				}))
				defer s.Close()
				dir := t.TempDir()
				err := fetch(s.URL+"/f", filepath.Join(dir, "f"), nil)
				require.Error(t, err)
				assert.Equal(t, dfget.Changed, dfget.ExitCode(err), "%v", err)
				assert.ErrorContains(t, err, "changed")
				assert.ErrorContains(t, err, "during the download")
				assert.ErrorContains(t, err, "start again")
				holds(t, dir, map[string][]byte{})
				require.NoError(t, fetch(s.URL+"/f", filepath.Join(dir, "f"), nil))
				holds(t, dir, map[string][]byte{"f": next})
			})
		})
	}
}

// A redirect to another host carries no credentials.
func TestRedirectCredentials(t *testing.T) {
	ways(t, func(t *testing.T, _ bool, fetch fetchFunc) {
		content := bytes.Repeat([]byte("elsewhere "), 50_000)
		var home, away recorder
		storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			away.add(r)
			w.Header().Set("ETag", `"v1"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}))
		defer storage.Close()
		// Another name for the same address is another host.
		_, port, err := net.SplitHostPort(storage.Listener.Addr().String())
		require.NoError(t, err)
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			home.add(r)
			if user, password, _ := r.BasicAuth(); user != "nina" || password != "n1" ||
				r.Header.Get("X-Token") != "t1" {
				http.Error(w, "no", http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, "http://localhost:"+port+"/storage/f?sig=abc", http.StatusTemporaryRedirect)
		}))
		defer front.Close()
		dir := t.TempDir()
		u := strings.Replace(front.URL, "://", "://nina:n1@", 1) + "/f"
		require.NoError(t, fetch(u, filepath.Join(dir, "f"), func(s *config.Dfget) {
			s.Header = []config.Header{{Name: "X-Token", Value: "t1"}, {Name: "Cookie", Value: "c=1"}}
		}))
		holds(t, dir, map[string][]byte{"f": content})
		all := func(*http.Request) bool { return true }
		assert.Positive(t, away.count(all))
		assert.Zero(t, away.count(func(r *http.Request) bool {
			return r.Header.Get("Authorization") != "" || r.Header.Get("X-Token") != "" || r.Header.Get("Cookie") != ""
		}), "no secret goes to the other host")
		authorized := func(r *http.Request) bool { return r.Header.Get("Authorization") != "" }
		assert.Equal(t, home.count(all), home.count(authorized))
	})
}

// Headers of -H reach the origin alike in both ways: an Authorization before .netrc, and repeated ones together.
func TestRepeatedHeaders(t *testing.T) {
	ways(t, func(t *testing.T, _ bool, fetch fetchFunc) {
		var h recorder
		o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.add(r)
			w.Header().Set("ETag", `"v1"`)
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("content"))
		}))
		defer o.Close()
		dir := t.TempDir()
		netrc := filepath.Join(dir, "netrc")
		require.NoError(t, os.WriteFile(netrc, []byte("machine 127.0.0.1 login nina password n1"), 0o600))
		require.NoError(t, fetch(o.URL+"/f", filepath.Join(dir, "f"), func(s *config.Dfget) {
			s.Netrc = netrc
			for _, text := range []string{"authorization: Bearer abc", "Accept: a/b", "ACCEPT: c/d", "cookie: a=1",
				"Cookie: b=2"} {
				var one config.Header
				require.NoError(t, one.UnmarshalText([]byte(text)))
				s.Header = append(s.Header, one)
			}
		}))
		assert.Positive(t, h.count(isGet))
		assert.Zero(t, h.count(func(r *http.Request) bool {
			t.Log(r.Method, r.Header)
			return r.Header.Get("Authorization") != "Bearer abc" || r.Header.Get("Accept") != "a/b, c/d" ||
				r.Header.Get("Cookie") != "a=1; b=2"
		}))
	})
}

// A download resumes with a new signature after the first one expired.
func TestNewSignature(t *testing.T) {
	ways(t, func(t *testing.T, direct bool, fetch fetchFunc) {
		content := bytes.Repeat([]byte("signed "), 300_000)
		var h recorder
		var mu sync.Mutex
		valid := "1"
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.add(r)
			mu.Lock()
			defer mu.Unlock()
			if r.URL.Query().Get("X-Amz-Signature") != valid {
				http.Error(w, "the signature is not valid", http.StatusForbidden)
				return
			}
			w.Header().Set("ETag", `"v1"`)
			if isGet(r) && valid == "1" {
				valid = "2"
				w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				_, _ = w.Write(content[:1<<20+5])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		}))
		defer s.Close()
		dir := t.TempDir()
		err := fetch(s.URL+"/f?part=1&X-Amz-Signature=1", filepath.Join(dir, "f"), nil)
		require.Error(t, err)
		assert.Equal(t, dfget.Denied, dfget.ExitCode(err), "%v", err)
		assert.NotContains(t, err.Error(), "X-Amz", "no error prints the signature")
		require.NoError(t, fetch(s.URL+"/f?part=1&X-Amz-Signature=2", filepath.Join(dir, "f"), nil))
		holds(t, dir, map[string][]byte{"f": content})
		wholes := h.count(func(r *http.Request) bool { return isGet(r) && r.Header.Get("Range") == "" })
		assert.Equal(t, 1, wholes, "the second run uses the bytes of the first")
	})
}

// A cached file needs the credentials that the origin requires, from every source of credentials.
func TestCachedFileCredentials(t *testing.T) {
	content := []byte("for nina alone")
	var h recorder
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.add(r)
		if user, password, _ := r.BasicAuth(); user != "nina" || password != "n1" {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	at, dir := startDaemon(t), t.TempDir()
	u, err := url.Parse(origin.URL + "/f")
	require.NoError(t, err)
	netrc := func(text string) func(*config.Dfget) {
		p := filepath.Join(t.TempDir(), "netrc")
		require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
		return func(s *config.Dfget) { s.Netrc = p }
	}
	password := func(user, word string) func(*config.Dfget) {
		p := filepath.Join(t.TempDir(), "word")
		require.NoError(t, os.WriteFile(p, []byte(word), 0o600))
		return func(s *config.Dfget) { s.User, s.PasswordFile = user, p }
	}
	with := func(user *url.Userinfo) string {
		u := *u
		u.User = user
		return u.String()
	}
	for _, row := range []struct {
		name, url string
		change    func(*config.Dfget)
		want      dfget.Code
	}{
		{"the right netrc", with(nil), netrc("machine 127.0.0.1 login nina password n1"), dfget.OK},
		{"a wrong netrc", with(nil), netrc("machine 127.0.0.1 login nina password n2"), dfget.Denied},
		{"another host's netrc", with(nil), netrc("machine files.test login nina password n1"), dfget.Denied},
		{"none", with(nil), nil, dfget.Denied},
		{"right ones in the URL", with(url.UserPassword("nina", "n1")), nil, dfget.OK},
		{"wrong ones in the URL", with(url.UserPassword("nina", "n2")), nil, dfget.Denied},
		{"the right flags", with(nil), password("nina", "n1\n"), dfget.OK},
		{"wrong flags", with(nil), password("otto", "n1\n"), dfget.Denied},
		{"a wrong header", with(nil), func(s *config.Dfget) {
			s.Header = []config.Header{{Name: "Authorization", Value: "Basic bmluYTpuMg=="}}
		}, dfget.Denied},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(row.name, " ", "-"))
			err := dfget.New(dfget.Config{URLs: []string{row.url}, Settings: settings(t, nil, func(s *config.Dfget) {
				s.Daemon, s.Output = at, file
				if row.change != nil {
					row.change(s)
				}
			})}).Run(t.Context())
			assert.Equal(t, row.want, dfget.ExitCode(err), "%v", err)
			if row.want != dfget.OK {
				assert.NoFileExists(t, file)
				return
			}
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, content, b)
		})
	}
	authorized := func(r *http.Request) bool {
		_, password, _ := r.BasicAuth()
		return isGet(r) && password == "n1"
	}
	assert.Equal(t, 1, h.count(authorized), "all but the first run used the cache")
}
