package clientconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"github.com/darter-io/darter/pkg/atomicfile"
)

// Files are the files of a machine, or of a root file system.
type Files struct {
	// Root is the root directory; empty is /.
	Root string
}

// linksMax bounds the symbolic links in one path.
const linksMax = 40

// bytesMax is the largest file that is read, in bytes.
const bytesMax = 4 << 20

// resolve follows the symbolic links of a path. Absolute links start at the root, so that no path leaves it.
func (f Files) resolve(path string) (string, error) {
	rest, done := strings.Split(strings.Trim(filepath.Clean("/"+path), "/"), "/"), "/"
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		next := filepath.Join(done, part)
		target, err := os.Readlink(filepath.Join(f.Root, next))
		if err != nil {
			// Not a link, or does not exist.
			done = next
			continue
		}
		if links++; links > linksMax {
			return "", fmt.Errorf("%s: too many symbolic links", path)
		}
		if filepath.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(strings.Trim(filepath.Clean(target), "/"), "/"), rest...)
	}
	return filepath.Join(f.Root, done), nil
}

// read returns the content of a file, nil if it does not exist.
func (f Files) read(path string) ([]byte, error) {
	real, err := f.resolve(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(real)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > bytesMax {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, bytesMax)
	}
	b, err := os.ReadFile(real)
	if b == nil && err == nil {
		b = []byte{}
	}
	return b, err
}

// list returns the names in a directory, sorted, or none if it does not exist.
func (f Files) list(dir string) ([]string, error) {
	real, err := f.resolve(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(real)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	sort.Strings(names)
	return names, nil
}

// has reports whether a file or directory exists.
func (f Files) has(path string) bool {
	real, err := f.resolve(path)
	if err != nil {
		return false
	}
	_, err = os.Stat(real)
	return err == nil
}

// Stat follows symbolic links.
func (f Files) Stat(path string) (fs.FileInfo, error) {
	real, err := f.resolve(path)
	if err != nil {
		return nil, err
	}
	return os.Stat(real)
}

// missingDirs counts the directories above a file that do not exist.
func (f Files) missingDirs(path string) (n int) {
	for dir := filepath.Dir(path); dir != "/" && dir != "." && !f.has(dir); dir = filepath.Dir(dir) {
		n++
	}
	return n
}

// Apply makes the changes, each file as a whole or not at all, and keeps mode and owner. It stops with an error at a
// file that has changed since the plan.
func (p Plan) Apply(f Files) error {
	for _, c := range p.Changes {
		now, err := f.read(c.Path)
		if err != nil {
			return err
		}
		if !same(now, c.Old) {
			return fmt.Errorf("another program has changed %s meanwhile: run the command again", c.Path)
		}
		if err := f.write(c); err != nil {
			return fmt.Errorf("writing %s: %w", c.Path, err)
		}
	}
	return nil
}

func (f Files) write(c Change) error {
	real, err := f.resolve(c.Path)
	if err != nil {
		return err
	}
	if c.New == nil {
		if err := os.Remove(real); err != nil {
			return err
		}
		for dir := filepath.Dir(real); c.Dirs > 0; dir = filepath.Dir(dir) {
			c.Dirs--
			if os.Remove(dir) != nil { // it is not empty
				break
			}
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		return err
	}
	like := real
	if c.like != "" {
		if like, err = f.resolve(c.like); err != nil {
			return err
		}
	}
	return replace(real, like, c.New)
}

// replace replaces the file at path. Mode and owner are those of the file like, where it exists.
func replace(path, like string, content []byte) error {
	mode, uid, gid := fs.FileMode(0o644), -1, -1
	if info, err := os.Stat(like); err == nil {
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	return atomicfile.Replace(path, func(f *os.File) error {
		if _, err := f.Write(content); err != nil {
			return err
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if uid < 0 || uid == os.Geteuid() && gid == os.Getegid() {
			return nil
		}
		return f.Chown(uid, gid)
	})
}
