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
	"time"

	"golang.org/x/sys/unix"

	"github.com/darter-io/darter/pkg/oci"
)

// target receives the bytes of one file in order. A regular file has its .part name until it is complete; a
// note next to it (.part.id) holds the identity of the version that was begun.
type target struct {
	path, part, note string      // empty if the output is no regular file
	label            string      // the URL, for errors
	mode             fs.FileMode // of the file that the target replaces, 0 if there is none
	file             *os.File
	out              io.Writer
	offset           int64 // bytes in the target
	identity         string
	modified         time.Time // when the origin modified the file, zero if unknown
	// ours is true if this run wrote the bytes, or an answer confirmed their version.
	ours bool
	want string // the digest, or ""
	hash hash.Hash
	// small is true for a file of which a kill may lose all bytes: its note is written when its download ends early.
	small bool
	// noted is true if there is a note on the disk, unwritten if it lacks the identity.
	noted, unwritten bool
	complete         bool
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
	output, isOpen, err := follow(output)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(output)
	if err == nil && (isOpen || !info.Mode().IsRegular()) {
		// A device or a pipe is written directly: a rename would replace it by a file.
		if info.IsDir() {
			return nil, fmt.Errorf("%s is a directory", output)
		}
		f, err := os.OpenFile(output, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return nil, err
		}
		t.file, t.out = f, f
		return t, nil
	}
	t.path, t.part, t.note = output, output+".part", output+".part.id"
	if err == nil {
		t.mode = info.Mode().Perm()
	}
	f, err := os.OpenFile(t.part, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, notCreated(output, err)
	}
	t.file, t.out = f, f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another dfget writes %s: %w", t.part, err)
	}
	// Another dfget may have renamed the file before we got the lock.
	if a, err := os.Stat(t.part); err != nil {
		f.Close()
		return nil, fmt.Errorf("another dfget has just finished %s: %w", t.part, err)
	} else if b, err := f.Stat(); err != nil || !os.SameFile(a, b) {
		f.Close()
		return nil, fmt.Errorf("another dfget has just finished %s", t.part)
	}
	if t.mode != 0 {
		_ = f.Chmod(t.mode | 0o600) // nobody else may read a private file while it arrives
	}
	if err := t.resume(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// linksMax bounds the symbolic links of an output, as Linux does.
const linksMax = 40

// follow returns the file that an output stands for: the target of a symbolic link, also if that does not exist yet.
// isOpen is true for a file that a process has open, such as /dev/stdout: it is written directly, since a rename would
// give the process another file.
func follow(output string) (file string, isOpen bool, err error) {
	for range linksMax {
		info, err := os.Lstat(output)
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			return output, false, nil // what is wrong with it shows when it is created
		}
		if dir, err := filepath.EvalSymlinks(filepath.Dir(output)); err == nil && strings.HasPrefix(dir, "/proc/") {
			return output, true, nil
		}
		to, err := os.Readlink(output)
		if err != nil {
			return "", false, err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(output), to)
		}
		output = to
	}
	return "", false, fmt.Errorf("%s: too many symbolic links", output)
}

// notCreated says why the partial file of an output cannot be created.
func notCreated(output string, err error) error {
	dir, name := filepath.Split(output)
	dir = filepath.Clean(dir)
	info, missing := os.Stat(dir)
	switch {
	case errors.Is(missing, fs.ErrNotExist):
		return fmt.Errorf("the directory %s for %s does not exist: create it first", dir, name)
	case missing == nil && !info.IsDir(), errors.Is(missing, unix.ENOTDIR):
		return fmt.Errorf("%s is not a directory, so that %s cannot be in it", dir, name)
	}
	var why *fs.PathError
	if errors.As(err, &why) {
		err = why.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot create %s.part: the directory %s takes no new files", output, dir)
	}
	return fmt.Errorf("cannot create %s.part: %w", output, err)
}

// resume continues the bytes that an earlier run kept, if the note names their version.
func (t *target) resume() error {
	note, err := readNote(t.note)
	t.noted = !errors.Is(err, fs.ErrNotExist)
	if err != nil || note == "" {
		if info, err := t.file.Stat(); err == nil && info.Size() == 0 && !t.noted {
			return nil
		}
		return t.restart()
	}
	if t.hash != nil {
		if _, err := io.Copy(t.hash, t.file); err != nil {
			return fmt.Errorf("reading the partial file: %w", err)
		}
	}
	end, err := t.file.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("reading the partial file: %w", err)
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

// restart deletes all bytes.
func (t *target) restart() error {
	t.offset, t.identity, t.ours = 0, "", true
	if t.hash != nil {
		t.hash.Reset()
	}
	if t.part == "" {
		return nil
	}
	if err := t.removeNote(); err != nil {
		return err
	}
	if err := t.file.Truncate(0); err != nil {
		return err
	}
	_, err := t.file.Seek(0, io.SeekStart)
	return err
}

// begin writes the note with the version that the bytes belong to, of a small file only when its download ends early.
func (t *target) begin(identity string) error {
	t.ours = true
	if t.identity == identity {
		return nil
	}
	// After a kill, the note of another version would let the next run take these bytes for that version's.
	if err := t.removeNote(); err != nil {
		return err
	}
	t.identity = identity
	t.unwritten = t.part != "" && identity != ""
	if t.small {
		return nil
	}
	return t.writeNote()
}

// writeNote writes the note if it is due.
func (t *target) writeNote() error {
	if !t.unwritten {
		return nil
	}
	t.unwritten, t.noted = false, true
	return os.WriteFile(t.note, []byte(t.identity+"\n"), 0o666)
}

// removeNote deletes the note if there is one.
func (t *target) removeNote() error {
	t.unwritten = false
	if !t.noted {
		return nil
	}
	t.noted = false
	if err := os.Remove(t.note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
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

// commit checks the digest, gives the file the permissions of the one that it replaces and the time when the origin
// modified it, and renames it. It does not sync: a file that a power cut destroys can be downloaded
// again.
func (t *target) commit() error {
	if t.hash != nil {
		algorithm, _, _ := strings.Cut(t.want, ":")
		if got := algorithm + ":" + hex.EncodeToString(t.hash.Sum(nil)); got != t.want {
			t.discard()
			return &Error{Code: WrongDigest, Err: fmt.Errorf("%s has digest %s, not %s as requested; it was deleted",
				t.label, got, t.want)}
		}
	}
	if t.part == "" {
		return nil
	}
	if t.mode != 0 {
		_ = t.file.Chmod(t.mode) // another user's file system may refuse
	}
	if !t.modified.IsZero() {
		_ = os.Chtimes(t.part, time.Time{}, t.modified) // as above
	}
	if err := os.Rename(t.part, t.path); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	t.complete = true
	if err := t.removeNote(); err != nil {
		return &Error{Code: Disk, Err: err}
	}
	return nil
}

// discard deletes the partial file and its note.
func (t *target) discard() {
	if t.part != "" {
		_ = os.Remove(t.part)
		_ = t.removeNote()
	}
}

// kept says for people how many bytes the next run can use, empty if none.
func (t *target) kept() string {
	if t.part == "" || t.offset == 0 || t.identity == "" || t.writeNote() != nil {
		return ""
	}
	return fmt.Sprintf("%s is kept in %s; the same command resumes the download", human(t.offset), t.part)
}

// close closes the file. It deletes a partial file that is empty or has no known version.
func (t *target) close() {
	if t.file == nil {
		return
	}
	if t.part != "" && !t.complete && (t.offset == 0 || t.identity == "" || t.writeNote() != nil) {
		if a, err := os.Stat(t.part); err == nil {
			if b, err := t.file.Stat(); err == nil && os.SameFile(a, b) {
				t.discard()
			}
		}
	}
	t.file.Close()
}
