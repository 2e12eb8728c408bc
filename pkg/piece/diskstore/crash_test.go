package diskstore_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/diskstore"
	"github.com/darter-io/darter/pkg/piece/storetest"
)

// childDir is the variable with the directory that this binary, run as a child, writes to.
const childDir = "DARTER_TEST_DISKSTORE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

var childMetadata = piece.Metadata{Length: 200*4096 - 100, PieceSize: 4096}

// child writes pieces of eight tasks, four at a time, and prints each stored one, until it is killed.
func child(dir string) {
	s, err := diskstore.Open(diskstore.Config{Dir: dir, SyncBytes: 64 << 10})
	if err != nil {
		panic(err)
	}
	var g sync.WaitGroup
	for w := range 4 {
		g.Go(func() {
			for k := w; ; k += 4 {
				name := fmt.Sprint(k % 8)
				content := storetest.Content(name, childMetadata.Length)
				r, err := s.Create(storetest.ID(name), childMetadata)
				if err != nil {
					panic(err)
				}
				for range 20 {
					i := piece.Index(rand.IntN(200))
					if err := storetest.Write(r, content, i); err != nil {
						panic(err)
					}
					fmt.Printf("%s %d\n", name, i)
				}
				r.Close()
			}
		})
	}
	g.Wait()
}

// A killed process loses no piece that it has reported as written.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	for round := range 5 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		var trouble bytes.Buffer
		cmd.Stderr = &trouble
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		reported := map[string]map[piece.Index]bool{}
		lines := bufio.NewScanner(out)
		count := 0
		for lines.Scan() {
			name, index, ok := strings.Cut(lines.Text(), " ")
			require.True(t, ok, lines.Text())
			i, err := strconv.Atoi(index)
			require.NoError(t, err)
			if reported[name] == nil {
				reported[name] = map[piece.Index]bool{}
			}
			reported[name][piece.Index(i)] = true
			if count++; count == 150*(round+1) {
				require.NoError(t, cmd.Process.Kill()) // the pipe is read to its end
			}
		}
		require.Error(t, cmd.Wait(), "it was killed: %s", &trouble)
		require.GreaterOrEqual(t, count, 150*(round+1), "%s", &trouble)

		s := mustOpen(t, diskstore.Config{Dir: dir})
		for name, pieces := range reported {
			r, err := s.Open(storetest.ID(name))
			require.NoError(t, err)
			storetest.Check(t, r, storetest.Content(name, childMetadata.Length))
			for i := range pieces {
				assert.True(t, r.Has(i), "task %s piece %d was reported as stored", name, i)
			}
			require.NoError(t, r.Close())
		}
		require.NoError(t, s.Close())
	}
}

// quick is the operating system's file layer without fsync, for tests that open hundreds of stores.
type quick struct{ diskstore.OS }

func (quick) Datasync(diskstore.File) error { return nil }
func (quick) SyncDir(string) error          { return nil }
func (quick) SyncAll(*os.File) error        { return errors.ErrUnsupported }

var crashMetadata = piece.Metadata{Length: 9*1000 + 37, PieceSize: 1000, MediaType: "text/plain"}

// crashed returns the directory of a store that was neither closed nor synced after the given pieces were
// written, and the bytes of the task.
func crashed(t *testing.T, pieces ...piece.Index) (dir string, content []byte) {
	content = storetest.Content("a", crashMetadata.Length)
	live := t.TempDir()
	s := mustOpen(t, diskstore.Config{Dir: live, FS: quick{}})
	r, err := s.Create(storetest.ID("a"), crashMetadata)
	require.NoError(t, err)
	for k, i := range pieces {
		require.NoError(t, storetest.Write(r, content, i))
		if k == 2 {
			run := piece.DigestRun{Metadata: crashMetadata, First: 0, Digests: make([]piece.Digest, 3),
				Signature: make([]byte, 64)}
			require.NoError(t, r.AddRuns([]piece.DigestRun{run}, [][]byte{{1, 2, 3}}))
		}
	}
	dir = copyTree(t, live)
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
	return dir, content
}

func fileOf(dir, name, file string) string {
	id := strings.Replace(string(storetest.ID(name)), ":", "-", 1)
	return filepath.Join(dir, "tasks", id[len("sha256-"):][:2], id, file)
}

func copyTree(t testing.TB, from string) string {
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// A torn journal keeps its complete records.
func TestTornJournal(t *testing.T) {
	t.Parallel()
	image, content := crashed(t, 3, 0, 9, 1, 2)
	journal, err := os.ReadFile(fileOf(image, "a", "journal"))
	require.NoError(t, err)
	work := copyTree(t, image)
	last := -1
	for cut := 0; cut <= len(journal); cut++ {
		// Every offset in the header and in the last two records, which are pieces, every
		// fifth in between.
		if cut > 150 && cut < len(journal)-90 && cut%5 != 0 {
			continue
		}
		require.NoError(t, os.RemoveAll(filepath.Join(work, "tasks")))
		require.NoError(t, os.CopyFS(filepath.Join(work, "tasks"), os.DirFS(filepath.Join(image, "tasks"))))
		require.NoError(t, os.Truncate(fileOf(work, "a", "journal"), int64(cut)))
		s := mustOpen(t, diskstore.Config{Dir: work, FS: quick{}})
		r, err := s.Open(storetest.ID("a"))
		if err != nil {
			require.ErrorIs(t, err, piece.ErrNotFound)
			require.Equal(t, -1, last, "cut at %d: once the header is there the task is", cut)
			r, err = s.Create(storetest.ID("a"), crashMetadata)
			require.NoError(t, err)
			require.Zero(t, storetest.Check(t, r, content))
		} else {
			have := storetest.Check(t, r, content)
			require.GreaterOrEqual(t, have, last, "cut at %d: a longer journal keeps no less", cut)
			last = have
		}
		require.NoError(t, storetest.Write(r, content, 5), "cut at %d", cut)
		have := storetest.Check(t, r, content)
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())

		s = mustOpen(t, diskstore.Config{Dir: work, FS: quick{}})
		r, err = s.Open(storetest.ID("a"))
		require.NoError(t, err)
		require.Equal(t, have, storetest.Check(t, r, content), "cut at %d", cut)
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	}
	assert.Equal(t, 5, last, "the whole journal has all pieces")
}

// A damaged journal never leads to a wrong piece.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	image, content := crashed(t, 3, 0, 9, 1, 2)
	journal, err := os.ReadFile(fileOf(image, "a", "journal"))
	require.NoError(t, err)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	work := copyTree(t, image)
	for at := 0; at < len(journal); at += 1 + r.IntN(5) {
		require.NoError(t, os.RemoveAll(filepath.Join(work, "aside")))
		require.NoError(t, os.RemoveAll(filepath.Join(work, "tasks")))
		require.NoError(t, os.CopyFS(filepath.Join(work, "tasks"), os.DirFS(filepath.Join(image, "tasks"))))
		bad := bytes.Clone(journal)
		bad[at] ^= 1 << r.IntN(8)
		require.NoError(t, os.WriteFile(fileOf(work, "a", "journal"), bad, 0o600))
		s := mustOpen(t, diskstore.Config{Dir: work, FS: quick{}})
		rep, err := s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err, "byte %d", at)
		require.Less(t, storetest.Check(t, rep, content), 6, "byte %d", at)
		require.NoError(t, rep.Close())
		require.NoError(t, s.Close())
	}
}

// Bits that flip during an unclean stop are found.
func TestFlippedBits(t *testing.T) {
	image, content := crashed(t, 3, 0, 9, 1, 2)
	l := crashMetadata.Layout()
	for _, i := range []piece.Index{3, 9, 2} {
		work := copyTree(t, image)
		flip(t, fileOf(work, "a", "data"), l.Offset(i)+l.Size(i)/2)
		var log bytes.Buffer
		s := mustOpen(t, diskstore.Config{Dir: work, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		assert.Equal(t, 4, s.Inventory()[0].Have, "known before the task is opened")
		r, err := s.Open(storetest.ID("a"))
		require.NoError(t, err)
		assert.False(t, r.Has(i))
		assert.Equal(t, 4, storetest.Check(t, r, content))
		assert.Contains(t, log.String(), fmt.Sprintf("piece=%d ", i))
		require.NoError(t, storetest.Write(r, content, i))
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
		s = mustOpen(t, diskstore.Config{Dir: work})
		r, err = s.Open(storetest.ID("a"))
		require.NoError(t, err)
		assert.Equal(t, 5, storetest.Check(t, r, content))
		require.NoError(t, r.Close())
		require.NoError(t, s.Close())
	}
}

func flip(t testing.TB, path string, at int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	require.NoError(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// A data file that became shorter or vanished gives no wrong piece.
func TestShortDataFile(t *testing.T) {
	image, content := crashed(t, 3, 0, 9, 1, 2)
	s := mustOpen(t, diskstore.Config{Dir: image})
	require.NoError(t, s.Close()) // marks everything

	short := copyTree(t, image)
	require.NoError(t, os.Truncate(fileOf(short, "a", "data"), 2500))
	s = mustOpen(t, diskstore.Config{Dir: short})
	r, err := s.Open(storetest.ID("a"))
	require.NoError(t, err)
	assert.Equal(t, 2, storetest.Check(t, r, content), "0 and 1 are whole")
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())

	gone := copyTree(t, image)
	require.NoError(t, os.Remove(fileOf(gone, "a", "data")))
	s = mustOpen(t, diskstore.Config{Dir: gone})
	assert.Empty(t, s.Inventory())
	require.NoError(t, s.Close())

	// The store has the task in its inventory, but not open.
	s = mustOpen(t, diskstore.Config{Dir: image})
	require.NoError(t, os.Remove(fileOf(image, "a", "data")))
	_, err = s.Open(storetest.ID("a"))
	require.ErrorIs(t, err, piece.ErrNotFound)
	r, err = s.Create(storetest.ID("a"), crashMetadata)
	require.NoError(t, err)
	assert.Zero(t, storetest.Check(t, r, content))
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// A task of a newer version stays in aside/ for that version.
func TestNewerVersion(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"version of the header": func(j []byte) []byte {
			binary.BigEndian.PutUint32(j[8:], 2)
			return j
		},
		"kind of a record": func(j []byte) []byte { return append(j, framed([]byte{77, 1, 2})...) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, content := crashed(t, 3, 0, 9)
			path := fileOf(dir, "a", "journal")
			old, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, change(bytes.Clone(old)), 0o600))
			var log bytes.Buffer
			cfg := diskstore.Config{Dir: dir, Quota: 1 << 20, Logger: slog.New(slog.NewTextHandler(&log, nil))}
			s := mustOpen(t, cfg)
			assert.Empty(t, s.Inventory())
			assert.Contains(t, log.String(), "newer version")
			assert.NotZero(t, s.Usage().Used, "it counts in the quota")
			require.NoError(t, s.Close())
			aside := filepath.Join(dir, "aside", filepath.Base(filepath.Dir(path)))
			assert.DirExists(t, aside)

			s = mustOpen(t, cfg)
			assert.Empty(t, s.Inventory(), "it is still unreadable")
			require.NoError(t, s.Close())

			// With a known version in the journal, this program can read it.
			require.NoError(t, os.WriteFile(filepath.Join(aside, "journal"), old, 0o600))
			s = mustOpen(t, cfg)
			r, err := s.Open(storetest.ID("a"))
			require.NoError(t, err)
			assert.Equal(t, 3, storetest.Check(t, r, content))
			require.NoError(t, r.Close())
			require.NoError(t, s.Close())
		})
	}

	t.Run("a task in aside/ is evicted first", func(t *testing.T) {
		dir, _ := crashed(t, 3)
		path := fileOf(dir, "a", "journal")
		j, err := os.ReadFile(path)
		require.NoError(t, err)
		binary.BigEndian.PutUint32(j[8:], 2)
		require.NoError(t, os.WriteFile(path, j, 0o600))
		s := mustOpen(t, diskstore.Config{Dir: dir, Quota: 60 << 10, HighWater: 1, LowWater: 1})
		for _, name := range []string{"b", "c"} { // each some 19 KiB
			r, err := s.Create(storetest.ID(name), crashMetadata)
			require.NoError(t, err)
			require.NoError(t, r.Close())
		}
		r, err := s.Create(storetest.ID("d"), crashMetadata)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		assert.Len(t, s.Inventory(), 3)
		left, err := os.ReadDir(filepath.Join(dir, "aside"))
		require.NoError(t, err)
		assert.Empty(t, left)
		require.NoError(t, s.Close())
	})
}

// A reader skips an unknown optional record.
func TestOptionalRecord(t *testing.T) {
	dir, content := crashed(t, 3, 0, 9)
	path := fileOf(dir, "a", "journal")
	j, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(j, framed([]byte{200, 1, 2})...), 0o600))
	s := mustOpen(t, diskstore.Config{Dir: dir})
	r, err := s.Open(storetest.ID("a"))
	require.NoError(t, err)
	assert.Equal(t, 3, storetest.Check(t, r, content))
	require.NoError(t, r.Close())
	require.NoError(t, s.Close())
}

// power is a file layer that computes the state of a disk after a power cut: all synced bytes, and any sectors of
// the others.
type power struct {
	quick
	mu     sync.Mutex
	writes []written // not synced yet
	stable map[string][]byte
}

type written struct {
	file string
	off  int64
	data []byte
}

func (p *power) OpenFile(name string, flag int, perm fs.FileMode) (diskstore.File, error) {
	f, err := p.quick.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &powerFile{File: f, p: p, name: filepath.Base(name)}, nil
}

func (p *power) Allocate(f diskstore.File, size int64) error {
	return p.quick.Allocate(f.(*powerFile).File, size)
}

func (p *power) Datasync(f diskstore.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := p.writes[:0]
	for _, w := range p.writes {
		if w.file == f.(*powerFile).name {
			p.stable[w.file] = put(p.stable[w.file], w.data, w.off)
		} else {
			rest = append(rest, w)
		}
	}
	p.writes = rest
	return nil
}

func put(b, data []byte, off int64) []byte {
	if need := int(off) + len(data); need > len(b) {
		b = append(b, make([]byte, need-len(b))...)
	}
	copy(b[off:], data)
	return b
}

// cut returns a possible state of the disk after a power cut now.
func (p *power) cut(r *rand.Rand) map[string][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string][]byte{}
	for name, b := range p.stable {
		out[name] = bytes.Clone(b)
	}
	const sector = 512
	for _, w := range p.writes {
		chance := r.IntN(4)
		for at := 0; at < len(w.data); at += sector {
			if r.IntN(3) < chance {
				part := w.data[at:min(at+sector, len(w.data))]
				out[w.file] = put(out[w.file], part, w.off+int64(at))
			}
		}
	}
	return out
}

type powerFile struct {
	diskstore.File
	p    *power
	name string
}

func (f *powerFile) WriteAt(b []byte, off int64) (int, error) {
	f.p.mu.Lock()
	f.p.writes = append(f.p.writes, written{f.name, off, bytes.Clone(b)})
	f.p.mu.Unlock()
	return f.File.WriteAt(b, off)
}

// A power cut at any moment leaves no wrong piece, and every marked one.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	content := storetest.Content("a", crashMetadata.Length)
	survived, stayed := 0, 0
	for range 60 {
		p := &power{stable: map[string][]byte{}}
		s := mustOpen(t, diskstore.Config{Dir: t.TempDir(), FS: p, SyncBytes: 2000})
		rep, err := s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err)
		var marked []piece.Index
		closing := r.IntN(3) == 0
		for _, k := range r.Perm(10)[:1+r.IntN(10)] {
			require.NoError(t, storetest.Write(rep, content, piece.Index(k)))
			if closing {
				marked = append(marked, piece.Index(k))
			}
		}
		if closing {
			require.NoError(t, s.Close())
		}
		image := p.cut(r)
		require.NoError(t, rep.Close())
		require.NoError(t, s.Close())

		dir := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Dir(fileOf(dir, "a", "data")), 0o700))
		for _, name := range []string{"data", "journal"} {
			b := image[name]
			if name == "data" { // it was allocated
				b = put(b, nil, crashMetadata.Length)
			}
			require.NoError(t, os.WriteFile(fileOf(dir, "a", name), b, 0o600))
		}
		s = mustOpen(t, diskstore.Config{Dir: dir, FS: quick{}})
		rep, err = s.Create(storetest.ID("a"), crashMetadata)
		require.NoError(t, err)
		survived += storetest.Check(t, rep, content)
		for _, i := range marked {
			assert.True(t, rep.Has(i), "piece %d was on stable storage", i)
			stayed++
		}
		require.NoError(t, rep.Close())
		require.NoError(t, s.Close())
	}
	assert.NotZero(t, stayed)
	assert.Greater(t, survived, stayed, "some unmarked pieces survive, too")
}

// framed returns a payload as a record of the journal (docs/storage.md).
func framed(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(append(bytes.Clone(b), payload...),
		crc32.MakeTable(crc32.Castagnoli)))
	return append(b, payload...)
}

// Open deletes the temporary files of an unclean stop.
func TestTemporaryFilesAreDeleted(t *testing.T) {
	dir, content := crashed(t, 1)
	half := filepath.Join(dir, "tmp", "17")
	require.NoError(t, os.MkdirAll(half, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "data"), content, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tasks", "stray"), nil, 0o600))
	stray := filepath.Join(filepath.Dir(filepath.Dir(fileOf(dir, "a", "data"))), "stray")
	require.NoError(t, os.WriteFile(stray, nil, 0o600))
	s := mustOpen(t, diskstore.Config{Dir: dir})
	assert.Len(t, s.Inventory(), 1)
	assert.NoFileExists(t, stray)
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	require.NoError(t, err)
	assert.Empty(t, left)
	require.NoError(t, s.Close())
}
