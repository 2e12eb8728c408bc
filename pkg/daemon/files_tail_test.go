package daemon

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
)

// bodyOf returns a file that differs between users only in its last bytes.
func bodyOf(user string, size int) []byte {
	b := make([]byte, size)
	copy(b[size-32:], user)
	return b
}

func TestEndOfAFileIsVerified(t *testing.T) {
	t.Parallel()
	const alice, bob = "Bearer alice", "Bearer bob"
	for _, size := range []int{300_000, 1 << 20, 20 << 20} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			begun, comparing := make(chan struct{}), make(chan struct{})
			var once, second sync.Once
			origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user := r.Header.Get("Authorization")
				body, asked := bodyOf(user, size), r.Header.Get("Range")
				w.Header().Set("ETag", `"v1"`)
				if user == bob && asked != "" && !strings.HasPrefix(asked, "bytes=0-") {
					second.Do(func() { close(comparing) })
				}
				if user == alice && r.Method == http.MethodGet && asked == "" {
					w.Header().Set("Content-Length", strconv.Itoa(size))
					_, _ = w.Write(body[:size/2])
					_ = http.NewResponseController(w).Flush()
					once.Do(func() { close(begun) })
					// The file must be incomplete when bob's comparison begins.
					select {
					case <-comparing:
					case <-r.Context().Done():
					}
					_, _ = w.Write(body[size/2:])
					return
				}
				http.ServeContent(w, r, "f.bin", time.Time{}, bytes.NewReader(body))
			}))
			defer origin.Close()
			f, srv, _ := front(t, true)
			f.pulls.embedded = func() bool { return false }
			get := func(user string) (int, []byte, error) {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
					srv.URL+api.PathFiles+"?"+url.Values{api.FileURL: {origin.URL + "/f.bin"}}.Encode(), nil)
				require.NoError(t, err)
				req.Header.Set(api.ForwardPrefix+"Authorization", user)
				res, err := http.DefaultClient.Do(req)
				require.NoError(t, err)
				defer res.Body.Close()
				var got bytes.Buffer
				_, err = got.ReadFrom(res.Body)
				return res.StatusCode, got.Bytes(), err
			}
			// A user gets its own bytes, or a body that ends before another user's bytes, because the download may
			// request the rest with either user's credentials. The next request succeeds.
			whole := func(user string) {
				own := bodyOf(user, size)
				code, b, err := get(user)
				assert.Equal(t, http.StatusOK, code)
				assert.True(t, bytes.HasPrefix(own, b), "%s has another's bytes", user)
				if err != nil {
					assert.Greater(t, size, 16<<20)
					_, b, err = get(user)
				}
				assert.NoError(t, err, user)
				assert.True(t, bytes.Equal(own, b), user)
			}
			var all sync.WaitGroup
			all.Go(func() { whole(alice) })
			<-begun
			whole(bob)
			all.Wait()
		})
	}
}

func TestHEADWithAWrongLength(t *testing.T) {
	content := bytes.Repeat([]byte("file"), 5000)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)+5))
			return
		}
		http.ServeContent(w, r, "f.bin", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	_, srv, _ := front(t, true)
	res, b := ask(t, srv, url.Values{api.FileURL: {origin.URL + "/f.bin"}})
	assert.Equal(t, http.StatusOK, res.StatusCode, "%.300s", b)
	assert.True(t, bytes.Equal(content, b))
	assert.NotEmpty(t, res.Header.Get(api.HeaderUnshared))
}

func TestTagNamesNoFileOfADigest(t *testing.T) {
	_, srv, o := front(t, true)
	wrong := "sha256:" + strings.Repeat("0", 64)
	q := url.Values{api.FileURL: {o.URL + "/f.bin"}, api.FileTag: {"\x00" + wrong}}
	res, b := ask(t, srv, q)
	assert.Equal(t, http.StatusBadRequest, res.StatusCode)
	assert.Equal(t, api.FileBadRequest, refused(t, b).Kind)
	res, _ = ask(t, srv, url.Values{api.FileURL: {o.URL + "/f.bin"}, api.FileApplication: {"a\nb"}})
	assert.Equal(t, http.StatusBadRequest, res.StatusCode)
}
