package diskstore_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

var sentMetadata = piece.Metadata{Length: 8 << 20, PieceSize: 1 << 20}

func filled(t testing.TB, name string, cfg diskstore.Config,
	facts piece.Metadata) (*diskstore.Store, piece.Replica, []byte) {
	t.Helper()
	s := mustOpen(t, cfg)
	content := storetest.Content(name, facts.Length)
	r, err := s.Create(storetest.ID(name), facts)
	require.NoError(t, err)
	for i := range piece.Index(facts.Layout().Count()) {
		require.NoError(t, storetest.Write(r, content, i))
	}
	return s, r, content
}

// sent copies a whole task to a TCP connection and through an HTTP server, 256 KiB at a time, and compares the
// received bytes.
func sent(t *testing.T) {
	s, r, content := filled(t, "a", diskstore.Config{Dir: t.TempDir()}, sentMetadata)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var g sync.WaitGroup
	g.Go(func() {
		c, err := l.Accept()
		if !assert.NoError(t, err) {
			return
		}
		defer c.Close()
		for off := int64(0); off < sentMetadata.Length; off += 256 << 10 {
			_, err := r.CopyTo(c, off, 256<<10)
			assert.NoError(t, err)
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	g.Wait()
	assert.True(t, bytes.Equal(content, got), "over TCP")

	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.FormatInt(sentMetadata.Length, 10))
		w.Header().Set("Content-Type", "application/octet-stream")
		_, err := r.CopyTo(w, 0, sentMetadata.Length)
		assert.NoError(t, err)
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	require.NoError(t, err)
	got, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.True(t, bytes.Equal(content, got), "over HTTP")
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// The kernel moves bytes from the file to the socket.
func TestSendfile(t *testing.T) {
	const self = "DARTER_TEST_UNDER_STRACE"
	if os.Getenv(self) != "" {
		sent(t)
		return
	}
	without := t.Skipf // in CI a missing tool is a failure
	if os.Getenv("CI") == "true" {
		without = t.Fatalf
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		without("needs strace; install it with: apt-get install strace")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(context.Background(), strace, "-f", "-e", "trace=sendfile,pread64,read", "-o", trace,
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), self+"=1")
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("PTRACE_TRACEME")) || bytes.Contains(out, []byte("ptrace(")) {
		without("needs the right to trace; run as root or allow ptrace (kernel.yama.ptrace_scope): %s", out)
	}
	require.NoError(t, err, "%s", out)
	log, err := os.ReadFile(trace)
	require.NoError(t, err)
	moved := int64(0)
	for _, m := range regexp.MustCompile(`sendfile\(\d+, \d+, [^)]*\)\s+= (\d+)|sendfile resumed>.*\)\s+= (\d+)`).
		FindAllSubmatch(log, -1) {
		n, err := strconv.ParseInt(string(m[1])+string(m[2]), 10, 64)
		require.NoError(t, err)
		moved += n
	}
	// net/http may read and send the first 512 bytes itself.
	assert.GreaterOrEqual(t, moved, 2*sentMetadata.Length-1024, "bytes moved by sendfile")
	assert.NotRegexp(t, `pread64\(\d+, .*, (262144|32768), \d+\)`, string(log), "no byte passes through this process")
}

// socket is a connection whose ReadFrom can move files.
type socket struct {
	io.Writer
	from []io.Reader
}

func (s *socket) ReadFrom(r io.Reader) (int64, error) {
	s.from = append(s.from, r)
	return io.Copy(s.Writer, r)
}

// A connection with ReadFrom gets the file itself.
func TestReaderFromGetsTheFile(t *testing.T) {
	s, r, content := filled(t, "a", diskstore.Config{Dir: t.TempDir()}, crashMetadata)
	var out bytes.Buffer
	w := &socket{Writer: &out}
	n, err := r.CopyTo(w, 500, 3000)
	require.NoError(t, err)
	assert.Equal(t, int64(3000), n)
	assert.Equal(t, content[500:3500], out.Bytes())
	require.Len(t, w.from, 1, "one call for all pieces of the range")
	limited, ok := w.from[0].(*io.LimitedReader)
	require.True(t, ok, "%T", w.from[0])
	assert.IsType(t, &os.File{}, limited.R)
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// Concurrent readers have their own offsets.
func TestConcurrentReads(t *testing.T) {
	s, r, content := filled(t, "a", diskstore.Config{Dir: t.TempDir()}, crashMetadata)
	var g sync.WaitGroup
	for k := range int64(32) {
		g.Go(func() {
			for n := range int64(50) {
				off := (k*283 + n*17) % 8000
				var out bytes.Buffer
				_, err := r.CopyTo(&out, off, 1000)
				assert.NoError(t, err)
				assert.True(t, bytes.Equal(content[off:off+1000], out.Bytes()), "1000 bytes at %d", off)
			}
		})
	}
	g.Wait()
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

func BenchmarkWritePiece(b *testing.B) {
	for _, size := range []int64{128 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			facts := piece.Metadata{Length: 64 * size, PieceSize: size}
			s := mustOpen(b, diskstore.Config{Dir: b.TempDir(), FS: quick{}})
			data := storetest.Content("a", size)
			d := piece.Sum(data)
			b.SetBytes(size)
			b.ReportAllocs()
			var r piece.Replica
			i := piece.Index(0)
			for n := 0; b.Loop(); n++ {
				if i %= 64; i == 0 {
					b.StopTimer()
					if r != nil {
						require.NoError(b, s.Remove(r.ID()))
						require.NoError(b, r.Close())
					}
					var err error
					r, err = s.Create(storetest.ID(fmt.Sprint(n)), facts)
					require.NoError(b, err)
					b.StartTimer()
				}
				if err := r.WritePiece(i, data, d); err != nil {
					b.Fatal(err)
				}
				i++
			}
			require.NoError(b, r.Close())
			require.NoError(b, s.Close())
		})
	}
}

func BenchmarkOpen512Pieces(b *testing.B) {
	s, r, _ := filled(b, "a", diskstore.Config{Dir: b.TempDir(), FS: quick{}}, piece.MetadataFor(64<<20, ""))
	require.NoError(b, r.Close())
	require.NoError(b, s.Close())
	s = mustOpen(b, diskstore.Config{Dir: s.Dir()})
	b.ReportAllocs()
	for b.Loop() {
		r, err := s.Open(storetest.ID("a"))
		if err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
	require.NoError(b, s.Close())
}

func BenchmarkStart2000Tasks(b *testing.B) {
	dir := b.TempDir()
	s := mustOpen(b, diskstore.Config{Dir: dir, FS: quick{}})
	for k := range 2000 {
		r, err := s.Create(storetest.ID(fmt.Sprint(k)), crashMetadata)
		require.NoError(b, err)
		require.NoError(b, r.Close())
	}
	require.NoError(b, s.Close())
	for b.Loop() {
		require.NoError(b, mustOpen(b, diskstore.Config{Dir: dir}).Close())
	}
}
