package dfget_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/secret"
)

// fake is the local API of a dfdaemon.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	content  []byte
	etag     string
	cut      []int  // the next answers end after these numbers of bytes
	chunked  bool   // declare no length
	noRange  bool   // answer every Range with 200
	hold     func() // called after the bytes of a cut answer, before it breaks
	modified time.Time
	refuse   *api.FileError
	sources  api.Sources
	tells    bool // the answers tell the sources
	asked    int  // requests for the state of the task
	requests []*http.Request
}

func newFake(t *testing.T, size int) *fake {
	f := &fake{content: make([]byte, size), etag: `"file:` + strings.Repeat("ab", 32) + `"`}
	r := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = r.Read(f.content)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.PathFiles, f.file)
	mux.HandleFunc("GET "+api.PathTasks+"/{id}", func(w http.ResponseWriter, req *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked++
		if `"`+req.PathValue("id")+`"` != f.etag {
			http.NotFound(w, req)
			return
		}
		_ = json.NewEncoder(w).Encode(api.TaskStatus{Received: f.sources})
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) file(w http.ResponseWriter, req *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, req)
	content, etag, refuse, noRange, hold, chunked := f.content, f.etag, f.refuse, f.noRange, f.hold, f.chunked
	if !f.modified.IsZero() {
		w.Header().Set("Last-Modified", f.modified.Format(http.TimeFormat))
	}
	if f.tells {
		text, _ := json.Marshal(f.sources)
		w.Header().Set(api.HeaderSources, string(text))
	}
	cut := -1
	if len(f.cut) > 0 {
		cut, f.cut = f.cut[0], f.cut[1:]
	}
	f.mu.Unlock()
	if refuse != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadGateway)
		_ = json.NewEncoder(w).Encode(refuse)
		return
	}
	w.Header().Set("ETag", etag)
	if cut < 0 && !noRange && !chunked {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content))
		return
	}
	from := 0
	text, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes=")
	if ok && !noRange && req.Header.Get("If-Range") == etag {
		from, _ = strconv.Atoi(strings.TrimSuffix(text, "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
	}
	body := content[from:]
	if !chunked {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if cut >= 0 {
		_, _ = w.Write(body[:cut])
		_ = http.NewResponseController(w).Flush()
		if hold != nil {
			hold()
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body)
}

func (f *fake) request(i int) *http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[i]
}

// settings returns the defaults, as for a command line without flags.
func settings(t *testing.T, f *fake, change func(*config.Dfget)) config.Dfget {
	var s config.Dfget
	require.NoError(t, config.NewForm("dfget", &s).Load(nil))
	if f != nil {
		s.Daemon = config.Address(strings.TrimPrefix(f.URL, "http://"))
	}
	s.Netrc = "none"
	s.Progress = "plain"
	if change != nil {
		change(&s)
	}
	return s
}

const fileURL = "http://files.test/dir/model.bin?Signature=xyz"

// get runs dfget for one URL into dir/model.bin.
func get(ctx context.Context, t *testing.T, f *fake, dir string,
	change func(*config.Dfget)) (stderr string, err error) {
	var out bytes.Buffer
	s := settings(t, f, func(s *config.Dfget) {
		s.Output = filepath.Join(dir, "model.bin")
		if change != nil {
			change(s)
		}
	})
	err = dfget.New(dfget.Config{URLs: []string{fileURL}, Settings: s, Stderr: &out,
		Backoff: time.Millisecond}).Run(ctx)
	return out.String(), err
}

// holds requires that a directory has exactly these files. Nil accepts any bytes.
func holds(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		if content, ok := want[e.Name()]; ok && content != nil {
			assert.True(t, bytes.Equal(content, b), "%s has other bytes (%d, want %d)", e.Name(), len(b), len(content))
		}
	}
	for name := range want {
		assert.Contains(t, names, name)
	}
	assert.Len(t, names, len(want), "%v", names)
}

// A file appears whole, whatever its size.
func TestDownload(t *testing.T) {
	for _, size := range []int{0, 1, 700_001} {
		f, dir := newFake(t, size), t.TempDir()
		f.sources = api.Sources{Peers: 75, Seeds: 15, Origin: 10}
		stderr, err := get(t.Context(), t, f, dir, nil)
		require.NoError(t, err)
		holds(t, dir, map[string][]byte{"model.bin": f.content})
		assert.Contains(t, stderr, "model.bin: ")
		assert.Contains(t, stderr, ", 75% from peers, 15% from seeds, 10% from the origin\n")
		q := f.request(0).URL.Query()
		assert.Equal(t, fileURL, q.Get(api.FileURL))
	}
}

// One request fetches a file if the answer tells where the bytes came from.
func TestToldSourcesNeedNoRequest(t *testing.T) {
	const files = 20
	f, dir := newFake(t, 1000), t.TempDir()
	f.tells, f.sources = true, api.Sources{Peers: 750, Seeds: 250}
	var urls []string
	for i := range files {
		urls = append(urls, fmt.Sprintf("http://files.test/%d", i))
	}
	var out bytes.Buffer
	err := dfget.New(dfget.Config{URLs: urls, Stderr: &out,
		Settings: settings(t, f, func(s *config.Dfget) { s.Output = dir })}).Run(t.Context())
	require.NoError(t, err)
	assert.Equal(t, files, strings.Count(out.String(), ", 75% from peers, 25% from seeds\n"), "%s", out.String())
	assert.Len(t, f.requests, files)
	assert.Zero(t, f.asked)
}

// A broken download resumes where it broke.
func TestResume(t *testing.T) {
	for _, row := range []struct {
		name             string
		chunked, noRange bool
	}{{"with ranges", false, false}, {"without length", true, false}, {"without ranges", false, true}} {
		t.Run(row.name, func(t *testing.T) {
			f, dir := newFake(t, 900_000), t.TempDir()
			f.cut, f.chunked, f.noRange = []int{300_000, 400_000}, row.chunked, row.noRange
			sum := sha256.Sum256(f.content)
			_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Digest = fmt.Sprintf("sha256:%x", sum) })
			require.NoError(t, err)
			holds(t, dir, map[string][]byte{"model.bin": f.content})
			assert.Equal(t, "bytes=300000-", f.request(1).Header.Get("Range"))
			assert.Equal(t, f.etag, f.request(1).Header.Get("If-Range"))
		})
	}
}

// Retries end if they bring no byte.
func TestRetriesEnd(t *testing.T) {
	f, dir := newFake(t, 1000), t.TempDir()
	f.cut = []int{10, 0, 0, 0, 0, 0}
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Retries = 2 })
	require.Error(t, err)
	assert.Equal(t, dfget.Unreachable, dfget.ExitCode(err))
	assert.Len(t, f.requests, 3, "one with bytes, which counts as the first failure, and two more")
}

// An origin that is down is not tried as often for each of many files, but an origin that answers is.
func TestADownOriginIsRetriedOnce(t *testing.T) {
	const files, retries, atOnce = 20, 2, 3
	for name, row := range map[string]struct {
		refuse      api.FileError
		least, most int
	}{
		"no answer": {api.FileError{Kind: api.FileUnreachable, Message: "connection refused"}, files,
			files + retries*atOnce},
		"an answer": {api.FileError{Kind: api.FileRefused, Status: http.StatusServiceUnavailable},
			files * (retries + 1), files * (retries + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			f, dir := newFake(t, 1000), t.TempDir()
			f.refuse = &row.refuse
			var urls []string
			for i := range files {
				urls = append(urls, fmt.Sprintf("http://files.test/%d", i))
			}
			err := dfget.New(dfget.Config{URLs: urls, Backoff: time.Millisecond,
				Settings: settings(t, f, func(s *config.Dfget) { s.Output, s.Retries = dir, retries })}).Run(t.Context())
			require.Error(t, err)
			assert.Equal(t, dfget.Unreachable, dfget.ExitCode(err))
			assert.GreaterOrEqual(t, len(f.requests), row.least, "each file is tried")
			assert.LessOrEqual(t, len(f.requests), row.most)
		})
	}
}

// The progress reports each retry with its reason.
func TestRetryNotes(t *testing.T) {
	for _, progress := range []string{"plain", "json", "bar"} {
		t.Run(progress, func(t *testing.T) {
			f, dir := newFake(t, 1000), t.TempDir()
			f.cut = []int{10, 0}
			stderr, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Progress = config.Progress(progress) })
			require.NoError(t, err)
			for i, wait := range []string{"1ms", "2ms"} {
				assert.Contains(t, stderr, "http://files.test/dir/model.bin broke off: unexpected EOF; "+
					fmt.Sprintf("retrying in %s (%d of 5)", wait, i+1))
			}
			assert.NotContains(t, stderr, "xyz")
		})
	}
}

// If a daemon breaks off because of a wrong digest, that is the reason which dfget reports, also without retries.
func TestDigestWrongAtEnd(t *testing.T) {
	for _, row := range []struct {
		retries int
		cut     []int
	}{{0, []int{900}}, {5, []int{900}}, {0, []int{900, 0}}, {5, []int{0, 0}}} {
		f, dir := newFake(t, 1000), t.TempDir()
		f.cut = row.cut // the daemon asks the origin once more, and can end that body short, too
		f.hold = func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.cut) > 0 {
				return
			}
			f.refuse = &api.FileError{Kind: api.FileDigestWrong, Message: "the origin sent another digest"}
		}
		stderr, err := get(t.Context(), t, f, dir, func(s *config.Dfget) {
			s.Retries, s.Digest = row.retries, "sha256:"+strings.Repeat("ab", 32)
		})
		require.ErrorContains(t, err, "the origin sent another digest")
		assert.Equal(t, dfget.WrongDigest, dfget.ExitCode(err))
		assert.Empty(t, stderr)
		assert.Len(t, f.requests, len(row.cut)+1)
		holds(t, dir, nil)
	}
	// A body that breaks off for another reason is reported, and resumed.
	f, dir := newFake(t, 1000), t.TempDir()
	f.cut = []int{900}
	stderr, err := get(t.Context(), t, f, dir, func(s *config.Dfget) {
		s.Digest = fmt.Sprintf("sha256:%x", sha256.Sum256(f.content))
	})
	require.NoError(t, err)
	assert.Contains(t, stderr, "broke off: unexpected EOF; asking again\n")
}

// The last error says what the next run can use.
func TestErrorNamesPart(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	f.cut = []int{1000}
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Retries = 0 })
	part := filepath.Join(dir, "model.bin.part")
	require.ErrorContains(t, err,
		"broke off: unexpected EOF\n1000 B is kept in "+part+"; the same command resumes the download")
	assert.Equal(t, dfget.Unreachable, dfget.ExitCode(err))
	_, err = get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	assert.Equal(t, "bytes=1000-", f.request(1).Header.Get("Range"))
	f.refuse = &api.FileError{Kind: api.FileForbidden, Message: "no"}
	_, err = get(t.Context(), t, f, dir, nil)
	assert.NotContains(t, err.Error(), "kept")
}

// Ctrl-C keeps the partial file, and the same command resumes.
func TestInterrupt(t *testing.T) {
	f, dir := newFake(t, 900_000), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	f.cut = []int{500_000}
	f.hold = func() {
		// dfget keeps only the bytes that it has written.
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if info, err := os.Stat(filepath.Join(dir, "model.bin.part")); err == nil && info.Size() == 500_000 {
				break
			}
		}
		cancel()
	}
	_, err := get(ctx, t, f, dir, nil)
	require.Error(t, err)
	assert.Equal(t, dfget.Interrupted, dfget.ExitCode(err))
	assert.ErrorContains(t, err, "the same command resumes the download")
	holds(t, dir, map[string][]byte{"model.bin.part": f.content[:500_000], "model.bin.part.id": nil})

	sum := sha256.Sum256(f.content)
	stderr, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Digest = fmt.Sprintf("sha256:%x", sum) })
	require.NoError(t, err)
	assert.Equal(t, "bytes=500000-", f.request(1).Header.Get("Range"))
	assert.Contains(t, stderr, "from an earlier run")
	holds(t, dir, map[string][]byte{"model.bin": f.content})
}

// A complete partial file is only renamed.
func TestCompletePart(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part"), f.content, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part.id"), []byte(f.etag+"\n"), 0o600))
	_, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"model.bin": f.content})
}

// A partial file of unknown version is not used.
func TestPartWithoutNote(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part"), []byte("something else"), 0o600))
	_, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"model.bin": f.content})
}

// A file that changed since its partial file was kept is downloaded from the start.
func TestPartOfOldVersion(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part"), []byte("old bytes"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part.id"), []byte(`"file:old"`), 0o600))
	stderr, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	assert.Contains(t, stderr, "starting over")
	holds(t, dir, map[string][]byte{"model.bin": f.content})
}

// A part that was begun in another way is not called a changed file.
func TestPartOfOtherWay(t *testing.T) {
	for id, want := range map[string]string{
		`direct 5000 "v1"`: "model.bin.part is of a direct download, which a dfdaemon cannot resume: starting over",
		`"file:old"`:       "model.bin.part is of another version of the file, or of a request with other headers",
	} {
		f, dir := newFake(t, 5000), t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part"), []byte("old bytes"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part.id"), []byte(id), 0o600))
		stderr, err := get(t.Context(), t, f, dir, nil)
		require.NoError(t, err)
		assert.Contains(t, stderr, want)
		assert.NotContains(t, stderr, "changed")
		holds(t, dir, map[string][]byte{"model.bin": f.content})
	}
}

// A change during the download is an error with its own code.
func TestChangeDuringDownload(t *testing.T) {
	f, dir := newFake(t, 900_000), t.TempDir()
	f.cut = []int{300_000}
	f.hold = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.etag, f.content = `"file:other"`, []byte("another version")
	}
	_, err := get(t.Context(), t, f, dir, nil)
	require.Error(t, err)
	assert.Equal(t, dfget.Changed, dfget.ExitCode(err))
	assert.ErrorContains(t, err, "changed at its origin during the download")
	holds(t, dir, map[string][]byte{})
}

// A wrong digest leaves no new file.
func TestWrongDigest(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin"), []byte("the former version"), 0o600))
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Digest = "sha256:" + strings.Repeat("0", 64) })
	require.Error(t, err)
	assert.Equal(t, dfget.WrongDigest, dfget.ExitCode(err))
	assert.NotContains(t, err.Error(), "xyz", "no signature in an error")
	holds(t, dir, map[string][]byte{"model.bin": []byte("the former version")})
	assert.Equal(t, "sha256:"+strings.Repeat("0", 64), f.request(0).URL.Query().Get(api.FileDigest))
}

// A partial file is deleted only after an error that makes it useless.
func TestPartAfterDaemonError(t *testing.T) {
	for _, row := range []struct {
		kind api.FileErrorKind
		kept bool
	}{
		{api.FileDigestWrong, false}, {api.FileChanged, false},
		{api.FileUnreachable, true}, {api.FileNoSpace, true}, {api.FileRefused, true}, {api.FileInternal, true},
	} {
		t.Run(string(row.kind), func(t *testing.T) {
			f, dir := newFake(t, 5000), t.TempDir()
			part := f.content[:1000]
			require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin"), []byte("the former version"), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part"), part, 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "model.bin.part.id"), []byte(f.etag+"\n"), 0o600))
			f.refuse = &api.FileError{Kind: row.kind, Status: 403, Message: "the daemon's message"}
			_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) {
				s.Retries, s.Digest = 0, "sha256:"+strings.Repeat("0", 64)
			})
			require.ErrorContains(t, err, "the daemon's message")
			want := map[string][]byte{"model.bin": []byte("the former version")}
			if row.kept {
				want["model.bin.part"], want["model.bin.part.id"] = part, nil
			}
			holds(t, dir, want)
		})
	}
}

func TestExitCodes(t *testing.T) {
	for _, row := range []struct {
		refuse api.FileError
		want   dfget.Code
		tries  int
	}{
		{api.FileError{Kind: api.FileBadRequest}, dfget.Usage, 1},
		{api.FileError{Kind: api.FileForbidden}, dfget.Denied, 1},
		{api.FileError{Kind: api.FileRefused, Status: 401}, dfget.Denied, 1},
		{api.FileError{Kind: api.FileRefused, Status: 403}, dfget.Denied, 1},
		{api.FileError{Kind: api.FileRefused, Status: 404}, dfget.NotFound, 1},
		{api.FileError{Kind: api.FileRefused, Status: 410}, dfget.NotFound, 1},
		{api.FileError{Kind: api.FileRefused, Status: 418}, dfget.Failed, 1},
		{api.FileError{Kind: api.FileRefused, Status: 501}, dfget.Unreachable, 1},
		{api.FileError{Kind: api.FileRefused, Status: 503}, dfget.Unreachable, 3},
		{api.FileError{Kind: api.FileUnreachable}, dfget.Unreachable, 3},
		{api.FileError{Kind: api.FileUnreachable, Untrusted: true}, dfget.Unreachable, 1},
		{api.FileError{Kind: api.FileUnreachable, Final: true}, dfget.Unreachable, 1},
		{api.FileError{Kind: api.FileChanged}, dfget.Changed, 1},
		{api.FileError{Kind: api.FileDigestWrong}, dfget.WrongDigest, 1},
		{api.FileError{Kind: api.FileNoSpace}, dfget.Disk, 1},
		{api.FileError{Kind: api.FileInternal}, dfget.Failed, 1},
	} {
		t.Run(fmt.Sprint(row.refuse.Kind, row.refuse.Status), func(t *testing.T) {
			f, dir := newFake(t, 10), t.TempDir()
			row.refuse.Message = "the daemon's message"
			f.refuse = &row.refuse
			_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Retries = 2 })
			require.ErrorContains(t, err, "the daemon's message")
			assert.Equal(t, row.want, dfget.ExitCode(err))
			assert.Len(t, f.requests, row.tries)
			holds(t, dir, map[string][]byte{})
		})
	}
}

// Without a dfdaemon the error says what to do.
func TestNoDaemon(t *testing.T) {
	f, dir := newFake(t, 10), t.TempDir()
	f.Close()
	_, err := get(t.Context(), t, f, dir, nil)
	require.Error(t, err)
	assert.Equal(t, dfget.NoDaemon, dfget.ExitCode(err))
	assert.ErrorContains(t, err, "start one on this machine with: dfdaemon")
	assert.ErrorContains(t, err, "--direct")
	holds(t, dir, map[string][]byte{})
}

// Another program at the daemon's address is reported as such.
func TestNotADaemon(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, err := get(t.Context(), t, &fake{Server: other}, t.TempDir(), nil)
	require.ErrorContains(t, err, "is not a dfdaemon")
}

// A timeout keeps the partial file.
func TestTimeout(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	part := filepath.Join(dir, "model.bin.part")
	require.NoError(t, os.WriteFile(part, f.content[:1000], 0o600))
	require.NoError(t, os.WriteFile(part+".id", []byte(f.etag+"\n"), 0o600))
	release := make(chan struct{})
	f.cut, f.hold = []int{0}, func() { <-release }
	defer close(release)
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Timeout = 300 * time.Millisecond })
	require.ErrorContains(t, err, "not done within 300ms (--timeout); 1000 B is kept in "+part)
	assert.Equal(t, dfget.Timeout, dfget.ExitCode(err))
	holds(t, dir, map[string][]byte{"model.bin.part": f.content[:1000], "model.bin.part.id": nil})
}

// A rate limit that cannot meet the timeout ends with the timeout's code.
func TestTimeoutWithRateLimit(t *testing.T) {
	f, dir := newFake(t, 2<<20), t.TempDir()
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) {
		s.Timeout, s.LimitRate = 100*time.Millisecond, 1<<20
	})
	require.ErrorContains(t, err, "not done within 100ms (--timeout)")
	assert.Equal(t, dfget.Timeout, dfget.ExitCode(err))
}

// Standard output gets the bytes in order, also after a break.
func TestStdout(t *testing.T) {
	f := newFake(t, 900_000)
	f.cut = []int{300_000}
	var out bytes.Buffer
	err := dfget.New(dfget.Config{URLs: []string{fileURL}, Stdout: &out, Backoff: time.Millisecond,
		Settings: settings(t, f, func(s *config.Dfget) { s.Output = "-" })}).Run(t.Context())
	require.NoError(t, err)
	assert.True(t, bytes.Equal(f.content, out.Bytes()))
}

// A symbolic link stays one: the file that it leads to is replaced, also if that does not exist yet.
func TestSymlinkTarget(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	other := t.TempDir()
	relative, err := filepath.Rel(dir, filepath.Join(other, "link"))
	require.NoError(t, err)
	link := filepath.Join(dir, "model.bin")
	require.NoError(t, os.Symlink(relative, link))
	require.NoError(t, os.Symlink(filepath.Join(other, "file"), filepath.Join(other, "link")))
	for range 2 {
		_, err := get(t.Context(), t, f, dir, nil)
		require.NoError(t, err)
		to, err := os.Readlink(link)
		require.NoError(t, err)
		assert.Equal(t, relative, to)
		holds(t, other, map[string][]byte{"file": f.content, "link": f.content})
		holds(t, dir, map[string][]byte{"model.bin": f.content})
		require.NoError(t, os.WriteFile(filepath.Join(other, "file"), []byte("old"), 0o600))
	}
	require.NoError(t, os.Remove(filepath.Join(other, "link")))
	require.NoError(t, os.Symlink(link, filepath.Join(other, "link")))
	_, err = get(t.Context(), t, f, dir, nil)
	require.ErrorContains(t, err, "too many symbolic links")
	assert.Equal(t, dfget.Disk, dfget.ExitCode(err))
}

// A file keeps the permissions of the one that it replaces, and the origin's time of its modification.
func TestModeAndTime(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	f.modified = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	path := filepath.Join(dir, "model.bin")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o440))
	f.cut = []int{1000}
	f.hold = func() {
		info, err := os.Stat(path + ".part")
		if assert.NoError(t, err) {
			assert.Equal(t, os.FileMode(0o640), info.Mode())
		}
	}
	_, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"model.bin": f.content})
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o440), info.Mode())
	assert.True(t, info.ModTime().Equal(f.modified), info.ModTime())
}

// A file keeps no time of an answer whose bytes were given up.
func TestTimeOfFormerAnswer(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	f.modified, f.etag = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), ""
	former := f.modified
	f.cut = []int{1000}
	f.hold = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.modified = time.Time{}
	}
	_, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	info, err := os.Stat(filepath.Join(dir, "model.bin"))
	require.NoError(t, err)
	assert.False(t, info.ModTime().Equal(former), "the origin says no time any more")
}

// The error of a target that cannot be created says why.
func TestTargetErrors(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for output, want := range map[string]string{
		"/proc/a":                        "cannot create /proc/a.part: the directory /proc takes no new files",
		filepath.Join(dir, "file", "a"):  filepath.Join(dir, "file") + " is not a directory",
		filepath.Join(dir, "file/b/c"):   filepath.Join(dir, "file/b") + " is not a directory",
		filepath.Join(dir, "none/a"):     "the directory " + filepath.Join(dir, "none") + " for a does not exist",
		strings.Repeat("a", 300):         "file name too long",
		filepath.Join(dir, "none") + "/": "the directory " + filepath.Join(dir, "none") + " for model.bin does not exist",
	} {
		_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Output = output })
		require.ErrorContains(t, err, want)
		assert.Equal(t, dfget.Disk, dfget.ExitCode(err))
	}
}

// A pipe is written to, and not replaced.
func TestPipe(t *testing.T) {
	f, dir := newFake(t, 900_000), t.TempDir()
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "model.bin"), 0o600))
	read := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(filepath.Join(dir, "model.bin"))
		read <- b
	}()
	_, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(f.content, <-read))
	info, err := os.Stat(filepath.Join(dir, "model.bin"))
	require.NoError(t, err)
	assert.NotZero(t, info.Mode()&os.ModeNamedPipe, "the pipe is still a pipe")
}

// Several files go into a directory; one failure does not stop the others.
func TestSeveralFiles(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	run := func(urls ...string) error {
		set := settings(t, f, func(s *config.Dfget) { s.Output = dir })
		return dfget.New(dfget.Config{URLs: urls, Settings: set, Backoff: time.Millisecond}).Run(t.Context())
	}
	require.NoError(t, run("http://files.test/a", "http://files.test/x/b?c=d", "https://files.test/e%20f"))
	holds(t, dir, map[string][]byte{"a": f.content, "b": f.content, "e f": f.content})

	require.NoError(t, os.Mkdir(filepath.Join(dir, "g"), 0o700))
	err := run("http://files.test/g", "http://files.test/h")
	assert.Equal(t, dfget.Disk, dfget.ExitCode(err))
	assert.ErrorContains(t, err, "is a directory")
	assert.FileExists(t, filepath.Join(dir, "h"))

	for _, row := range []struct {
		want string
		urls []string
	}{
		{"two URLs have the same target", []string{"http://a/x", "http://b/x"}},
		{"names no file", []string{"http://a/"}},
		{"names no file", []string{"http://a/x/.."}},
		{"only http:// and https://", []string{"ftp://a/x"}},
		{"only http:// and https://", []string{"/etc/passwd"}},
		{"there is no URL", nil},
	} {
		err := run(row.urls...)
		require.ErrorContains(t, err, row.want)
		assert.Equal(t, dfget.Usage, dfget.ExitCode(err))
	}
}

// A header that would be dropped is an error.
func TestOwnHeaders(t *testing.T) {
	f, dir := newFake(t, 10), t.TempDir()
	for _, direct := range []bool{false, true} {
		for _, name := range []string{"Range", "If-None-Match", "Accept-Encoding", "Content-Length"} {
			_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) {
				s.Direct, s.Header = direct, []config.Header{{Name: name, Value: "bytes=0-9"}}
			})
			require.ErrorContains(t, err, "-H "+name+": dfget sets this header itself")
			assert.Equal(t, dfget.Usage, dfget.ExitCode(err))
		}
	}
	assert.Empty(t, f.requests)
	holds(t, dir, nil)
}

// Two dfgets never write one file.
func TestLockedPart(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	file, err := os.Create(filepath.Join(dir, "model.bin.part"))
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, unix.Flock(int(file.Fd()), syscall.LOCK_EX))
	_, err = get(t.Context(), t, f, dir, nil)
	require.ErrorContains(t, err, "another dfget writes ")
	assert.Equal(t, dfget.Disk, dfget.ExitCode(err))
	assert.FileExists(t, filepath.Join(dir, "model.bin.part"), "the other dfget's file")
}

// Credentials go to the daemon in headers only.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	netrc, word := filepath.Join(dir, "netrc"), filepath.Join(dir, "word")
	entries := "machine files.test login nina password n1\ndefault login anon password n2\n"
	require.NoError(t, os.WriteFile(netrc, []byte(entries), 0o600))
	require.NoError(t, os.WriteFile(word, []byte("geheim\n"), 0o600))
	header := func(user, password string) string {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for _, row := range []struct {
		name, url, want string
		environ         []string
		change          func(*config.Dfget)
	}{
		{"URL", "http://uma:u%401@files.test/f", header("uma", "u@1"), nil, nil},
		{"flags", "http://files.test/f", header("karl", "geheim"), nil, func(s *config.Dfget) {
			s.User, s.PasswordFile = "karl", word
		}},
		{"netrc", "http://files.test:8080/f", header("nina", "n1"), []string{"NETRC=" + netrc}, func(s *config.Dfget) {
			s.Netrc = ""
		}},
		{"netrc default", "http://other.test/f", header("anon", "n2"), nil, func(s *config.Dfget) { s.Netrc = netrc }},
		{"none", "http://files.test/f", "", []string{"NETRC=" + netrc}, nil},
		{"header", "http://files.test/f", "Bearer abc", nil, func(s *config.Dfget) {
			s.Header = []config.Header{{Name: "Authorization", Value: secret.String("Bearer abc")}}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFake(t, 10)
			var stderr bytes.Buffer
			set := settings(t, f, func(s *config.Dfget) {
				s.Output, s.Progress = "-", "json"
				if row.change != nil {
					row.change(s)
				}
			})
			err := dfget.New(dfget.Config{
				URLs: []string{row.url}, Stdout: io.Discard, Stderr: &stderr, Environ: row.environ, Settings: set,
			}).Run(t.Context())
			require.NoError(t, err)
			req := f.request(0)
			assert.Equal(t, row.want, req.Header.Get(api.ForwardPrefix+"Authorization"))
			assert.Empty(t, req.Header.Get("Authorization"))
			asked, err := url.Parse(req.URL.Query().Get(api.FileURL))
			require.NoError(t, err)
			assert.Nil(t, asked.User)
			assert.NotContains(t, stderr.String(), "u%401")
		})
	}
}

func TestJSONProgress(t *testing.T) {
	f, dir := newFake(t, 5000), t.TempDir()
	f.sources = api.Sources{Peers: 1, Origin: 3}
	stderr, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Progress = "json" })
	require.NoError(t, err)
	var events []dfget.Event
	for line := range strings.Lines(stderr) {
		var e dfget.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e), line)
		events = append(events, e)
		assert.NotContains(t, line, "xyz", "no signature in an event")
	}
	require.GreaterOrEqual(t, len(events), 2)
	assert.Equal(t, "start", events[0].Event)
	last := events[len(events)-1]
	assert.Equal(t, "done", last.Event)
	assert.Equal(t, int64(5000), last.Done)
	assert.Equal(t, int64(5000), *last.Length)
	assert.InDelta(t, 0.25, *last.FromPeers, 0.001)
	assert.Equal(t, api.Sources{Peers: 1, Origin: 3}, *last.Sources)
	assert.Equal(t, strings.Trim(f.etag, `"`), string(last.Task))

	f.refuse = &api.FileError{Kind: api.FileRefused, Status: 404, Message: "GET: 404 Not Found"}
	stderr, err = get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Progress = "json" })
	require.Error(t, err)
	var e dfget.Event
	require.NoError(t, json.Unmarshal([]byte(stderr), &e), stderr)
	assert.Equal(t, "failed", e.Event)
	assert.Equal(t, dfget.NotFound, e.Code)
	assert.True(t, dfget.Reported(err))
}

// The error of a full node names --direct.
func TestNodeStoreFull(t *testing.T) {
	f := newFake(t, 10)
	f.refuse = &api.FileError{Kind: api.FileNoSpace, Message: "no space left in the piece store"}
	_, err := get(t.Context(), t, f, t.TempDir(), nil)
	require.ErrorContains(t, err, "--direct")
	assert.Equal(t, dfget.Disk, dfget.ExitCode(err))
}

// The error of a denied download names the credentials that could help.
func TestDenied(t *testing.T) {
	for _, row := range []struct {
		status int
		auth   string
		want   string
	}{
		{401, "", "--user and --password-file"},
		{401, "joe:wrong@", "does not accept"},
		{403, "", "does not accept"},
		{407, "", "HTTPS_PROXY"},
	} {
		f := newFake(t, 10)
		f.refuse = &api.FileError{Kind: api.FileRefused, Status: row.status, Message: "GET http://files.test/f: no"}
		set := settings(t, f, func(s *config.Dfget) { s.Output = filepath.Join(t.TempDir(), "f") })
		urls := []string{"http://" + row.auth + "files.test/f"}
		err := dfget.New(dfget.Config{URLs: urls, Settings: set}).Run(t.Context())
		require.ErrorContains(t, err, row.want)
		assert.Equal(t, 1, strings.Count(err.Error(), "http://files.test/f"), "the error names the URL once")
		assert.NotContains(t, err.Error(), "wrong")
		assert.Equal(t, dfget.Denied, dfget.ExitCode(err))
	}
}

// watched is a terminal that closes seen at the first write of want.
type watched struct {
	mu   sync.Mutex
	all  bytes.Buffer
	want string
	seen chan struct{}
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := strings.Contains(w.all.String(), w.want)
	w.all.Write(b)
	if !before && strings.Contains(w.all.String(), w.want) {
		close(w.seen)
	}
	return len(b), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

// A long name leaves space for its bar.
func TestBarOfLongName(t *testing.T) {
	f, dir := newFake(t, 900_000), t.TempDir()
	drawn := &watched{want: " 50% 439 KiB ", seen: make(chan struct{})}
	f.cut, f.hold = []int{450_000}, func() {
		select {
		case <-drawn.seen:
		case <-time.After(time.Minute): // the assertions below fail
		}
	}
	name := strings.Repeat("long", 40) + ".bin"
	s := settings(t, f, func(s *config.Dfget) { s.Output, s.Progress = filepath.Join(dir, name), "bar" })
	require.NoError(t, dfget.New(dfget.Config{
		URLs: []string{fileURL}, Settings: s, Stderr: drawn, Backoff: time.Millisecond,
	}).Run(t.Context()))
	assert.Contains(t, drawn.String(), "longlonglon…onglong.bin")
	assert.Contains(t, drawn.String(), "50% 439 KiB ")
	assert.Contains(t, drawn.String(), name+": 879 KiB in ", "the summary has the whole name")
}

func TestBars(t *testing.T) {
	f, dir := newFake(t, 900_000), t.TempDir()
	drawn := &watched{want: "50% 439 KiB ", seen: make(chan struct{})}
	f.cut, f.hold = []int{450_000}, func() {
		select {
		case <-drawn.seen:
		case <-time.After(time.Minute): // the assertions below fail
		}
	}
	s := settings(t, f, func(s *config.Dfget) { s.Output, s.Progress = filepath.Join(dir, "model.bin"), "bar" })
	require.NoError(t, dfget.New(dfget.Config{
		URLs: []string{fileURL}, Settings: s, Stderr: drawn, Backoff: time.Millisecond,
	}).Run(t.Context()))
	stderr := drawn.String()
	assert.Contains(t, stderr, "[=")
	assert.Contains(t, stderr, "50% 439 KiB ")
	assert.Contains(t, stderr, "model.bin: 879 KiB in ")
}

func TestRateLimit(t *testing.T) {
	f, dir := newFake(t, 768<<10), t.TempDir()
	started := time.Now()
	_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.LimitRate = 2 << 20 })
	require.NoError(t, err)
	// The first quarter of a MiB is the burst; the rest takes a quarter of a second.
	assert.GreaterOrEqual(t, time.Since(started), 240*time.Millisecond)
	holds(t, dir, map[string][]byte{"model.bin": f.content})
}

// Direct downloads resume, too.
func TestDirect(t *testing.T) {
	content := bytes.Repeat([]byte("direct "), 100_000)
	var mu sync.Mutex
	var asked []*http.Request
	etag, cut := `"v1"`, 300_000
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r)
		if r.Header.Get("X-Word") != "sesame" {
			http.Error(w, "say the word", http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", etag)
		if cut > 0 {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			_, _ = w.Write(content[:cut])
			cut = 0
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer origin.Close()
	dir := t.TempDir()
	run := func(name, word string, retries int) error {
		set := settings(t, nil, func(s *config.Dfget) {
			s.Direct, s.Output, s.Retries = true, filepath.Join(dir, name), retries
			s.Header = []config.Header{{Name: "X-Word", Value: secret.String(word)}}
		})
		return dfget.New(dfget.Config{
			URLs: []string{origin.URL + "/x"}, Backoff: time.Millisecond, Settings: set,
		}).Run(t.Context())
	}
	require.NoError(t, run("a", "sesame", 3))
	assert.Equal(t, "bytes=300000-", asked[1].Header.Get("Range"))
	holds(t, dir, map[string][]byte{"a": content})
	assert.Equal(t, dfget.Denied, dfget.ExitCode(run("b", "guess", 3)))

	cut = 300_000
	assert.Equal(t, dfget.Unreachable, dfget.ExitCode(run("a", "sesame", 0)), "the part is kept")
	etag, content = `"v2"`, []byte("the new version")
	require.NoError(t, run("a", "sesame", 0), "the file has changed: a new start")
	holds(t, dir, map[string][]byte{"a": content})
}

// A download without a validator starts over after a break.
func TestNoValidator(t *testing.T) {
	f, dir := newFake(t, 500_000), t.TempDir()
	f.etag, f.noRange, f.cut = "", true, []int{200_000, 1000}
	stderr, err := get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"model.bin": f.content})
	assert.Contains(t, stderr, "starting over")
	assert.Empty(t, f.request(1).Header.Get("Range"), "without a validator, a range could be of another version")

	// The file changes meanwhile, with the same length: no byte of the old version stays.
	dir = t.TempDir()
	former := f.content
	f.content = bytes.Repeat([]byte("n"), len(former))
	f.cut, f.hold = []int{200_000}, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.content = former
	}
	_, err = get(t.Context(), t, f, dir, nil)
	require.NoError(t, err)
	holds(t, dir, map[string][]byte{"model.bin": former})

	t.Run("on standard output it fails", func(t *testing.T) {
		f.hold, f.cut = nil, []int{200_000}
		var out bytes.Buffer
		set := settings(t, f, func(s *config.Dfget) { s.Output = "-" })
		err := dfget.New(dfget.Config{
			URLs: []string{fileURL}, Stdout: &out, Backoff: time.Millisecond, Settings: set,
		}).Run(t.Context())
		assert.Equal(t, dfget.Unreachable, dfget.ExitCode(err), "%v", err)
		assert.ErrorContains(t, err, "start again")
		assert.True(t, bytes.HasPrefix(former, out.Bytes()), "no version is mixed")
	})
	t.Run("after the last try nothing is kept", func(t *testing.T) {
		f.cut = []int{200_000}
		dir := t.TempDir()
		_, err := get(t.Context(), t, f, dir, func(s *config.Dfget) { s.Retries = 0 })
		require.Error(t, err)
		assert.NotContains(t, err.Error(), "is kept")
		holds(t, dir, map[string][]byte{})
	})
}

// --no-cache and --max-age go to the daemon.
func TestCacheLimits(t *testing.T) {
	f := newFake(t, 10)
	for _, row := range []struct{ args, name, want string }{
		{"--no-cache", api.FileNoCache, "true"},
		{"--max-age=10m", api.FileMaxAge, "10m0s"},
		{"--max-age=0s", api.FileMaxAge, "0s"},
		{"--max-age=any", api.FileMaxAge, ""},
	} {
		_, err := get(t.Context(), t, f, t.TempDir(), func(s *config.Dfget) {
			if value, ok := strings.CutPrefix(row.args, "--max-age="); ok {
				require.NoError(t, s.MaxAge.UnmarshalText([]byte(value)))
			} else {
				s.NoCache = true
			}
		})
		require.NoError(t, err)
		f.mu.Lock()
		last := f.requests[len(f.requests)-1]
		f.mu.Unlock()
		assert.Equal(t, row.want, last.URL.Query().Get(row.name), row.args)
	}
	var age config.MaxAge
	assert.Error(t, age.UnmarshalText([]byte("-1s")))
	assert.Error(t, age.UnmarshalText([]byte("soon")))
}
