package dfget

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/oci"
)

// target is where the bytes of one file go, in order. A regular file stands under its .part
// name until it is whole; beside it a note (.part.id) names the content that was begun.
type target struct {
	path, part, note string
	label            string
	file             *os.File
	out              io.Writer
	offset           int64
	identity         string
	// ours says that this run began, or proved, the bytes that are there.
	ours bool
	want string
	hash hash.Hash
}

// noteMax bounds a note, in bytes.
const noteMax = 4 << 10

func openTarget(output string, stdout io.Writer, label, digest string) (*target, error) {
	t := &target{label: label, want: digest, ours: true}
	if digest != "" {
		h, err := oci.NewHash(digest)
		if err != nil {
			return nil, err
		}
		t.hash = h
	}
	if output == "-" {
		t.out = stdout
		return t, nil
	}
	if info, err := os.Stat(output); err == nil && !info.Mode().IsRegular() {
		// A device or a pipe is written to: a rename would put a file in its place.
		if info.IsDir() {
			return nil, fmt.Errorf("%s is a directory", output)
		}
		f, err := os.OpenFile(output, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		t.file, t.out = f, f
		return t, nil
	}
	t.path, t.part, t.note = output, output+".part", output+".part.id"
	f, err := os.OpenFile(t.part, os.O_RDWR|os.O_CREATE, 0o666)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no directory %s to write %s to: make it first", filepath.Dir(output), filepath.Base(output))
	}
	if err != nil {
		return nil, fmt.Errorf("writing beside the target: %w", err)
	}
	t.file, t.out = f, f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is being written by another dfget: %w", t.part, err)
	}
	// Whoever held the lock until now may have put the file in its place.
	if a, err := os.Stat(t.part); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s was just finished by another dfget: %w", t.part, err)
	} else if b, err := f.Stat(); err != nil || !os.SameFile(a, b) {
		f.Close()
		return nil, fmt.Errorf("%s was just finished by another dfget", t.part)
	}
	if err := t.resume(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// resume takes up what an earlier run kept, when its note says of which content it is.
func (t *target) resume() error {
	note, err := readNote(t.note)
	if err != nil || note == "" {
		return t.restart()
	}
	if t.hash != nil {
		if _, err := io.Copy(t.hash, t.file); err != nil {
			return fmt.Errorf("reading what was kept: %w", err)
		}
	}
	end, err := t.file.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("reading what was kept: %w", err)
	}
	t.offset, t.identity, t.ours = end, note, end == 0
	return nil
}

func readNote(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, noteMax))
	return strings.TrimSpace(string(b)), err
}

// restart forgets all bytes.
func (t *target) restart() error {
	t.offset, t.identity, t.ours = 0, "", true
	if t.hash != nil {
		t.hash.Reset()
	}
	if t.part == "" {
		return nil
	}
	if err := os.Remove(t.note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	_, err := t.file.Seek(0, io.SeekStart)
	return err
}

// begin notes which content the bytes belong to.
func (t *target) begin(identity string) error {
	t.ours = true
	if t.identity == identity {
		return nil
	}
	t.identity = identity
	if t.part == "" || identity == "" {
		return nil
	}
	return os.WriteFile(t.note, []byte(identity+"\n"), 0o666)
}

func (t *target) write(b []byte) error {
	n, err := t.out.Write(b)
	t.offset += int64(n)
	if t.hash != nil {
		t.hash.Write(b[:n])
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", t.name(), err)
	}
	return nil
}

func (t *target) name() string {
	if t.path == "" {
		return "the output"
	}
	return t.path
}

// commit checks the whole and gives it its name. It does not wait for the disk: what a
// power cut destroys is downloaded again.
func (t *target) commit() error {
	if t.hash != nil {
		algorithm, _, _ := strings.Cut(t.want, ":")
		if got := algorithm + ":" + hex.EncodeToString(t.hash.Sum(nil)); got != t.want {
			t.discard()
			return &Error{Code: WrongDigest, Err: fmt.Errorf("%s has digest %s, not %s as asked for; it was deleted", t.label, got, t.want)}
		}
	}
	if t.part == "" {
		return nil
	}
	if err := os.Rename(t.part, t.path); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	if err := os.Remove(t.note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &Error{Code: Disk, Err: err}
	}
	return nil
}

// discard deletes what is of no use to anybody.
func (t *target) discard() {
	if t.part != "" {
		_ = os.Remove(t.part)
		_ = os.Remove(t.note)
	}
}

// kept says what is there for the next time, empty where that is nothing.
func (t *target) kept() string {
	if t.part == "" || t.offset == 0 || t.identity == "" {
		return ""
	}
	return fmt.Sprintf("%s is kept in %s, and the same command goes on from there", human(t.offset), t.part)
}

// close ends the use of the file. Of a part that is empty, or of which nobody can tell the version,
// nothing is kept.
func (t *target) close() {
	if t.file == nil {
		return
	}
	if t.part != "" && (t.offset == 0 || t.identity == "") {
		if a, err := os.Stat(t.part); err == nil {
			if b, err := t.file.Stat(); err == nil && os.SameFile(a, b) {
				t.discard()
			}
		}
	}
	t.file.Close()
}
