package diskstore

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/darter-io/darter/pkg/atomicfile"
	"github.com/darter-io/darter/pkg/host"
)

// The files of a data directory that say which host it is.
const (
	// keyFile holds the seed of the host's key and, on a second line, what it is tied to.
	keyFile = "host-key"
	// idFile holds the name of that key, for people and other tools, or the ID that a program before
	// keys drew: that one stays, so that such a program is believed again after a way back. Nothing
	// here believes it.
	idFile = "host-id"
)

// HostKey is the key of a host and how it came about.
type HostKey struct {
	ed25519.PrivateKey
	// Was is the ID of before where the host has taken a new one, because its directory came from
	// another machine, or from a program that drew IDs without a key. Moved tells these apart.
	Was   host.ID
	Moved bool
}

// ID is the name of the key.
func (k HostKey) ID() host.ID { return host.OfKey(k.Public().(ed25519.PublicKey)) }

// machineFiles tell machines apart: the first is the same in copies of an image that was not
// cleaned, the second is the hypervisor's or the board's, and readable by root alone.
var machineFiles = []string{"/etc/machine-id", "/sys/class/dmi/id/product_uuid"}

// tie is what a key file is bound to: the machine, and the file itself, which no copy of files
// has the inode of. Neither changes in a restart.
func tie(info fs.FileInfo, machine []string) string {
	h := sha256.New()
	for _, name := range machine {
		b, err := os.ReadFile(name)
		fmt.Fprintf(h, "%t %s\x00", err == nil, strings.TrimSpace(string(b)))
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		fmt.Fprintf(h, "%d", st.Ino)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// HostID returns the ID of the host whose data directory is dir; see [OpenHostKey].
func HostID(dir string) (host.ID, error) {
	k, err := OpenHostKey(dir)
	if err != nil {
		return "", err
	}
	return k.ID(), nil
}

// OpenHostKey returns the key of the host whose data directory is dir, drawing it the first
// time: a host that keeps the pieces keeps the name under which they were announced. A
// directory that was copied, or restored, or comes from another machine, gets a new key: the
// machine that it was copied from may live, and two hosts with one name would be taken for one.
// It makes dir when it is not there. The error says what to do.
func OpenHostKey(dir string) (HostKey, error) { return openHostKey(dir, machineFiles) }

func openHostKey(dir string, machine []string) (HostKey, error) {
	path := filepath.Join(dir, keyFile)
	k, tied, err := readHostKey(path, machine)
	switch {
	case err == nil && tied:
		return k, noteHostID(dir, k.ID())
	case err == nil:
		was := k.ID()
		k, err = drawHostKey(dir, machine, true)
		k.Was, k.Moved = was, true
		return k, err
	case !errors.Is(err, fs.ErrNotExist):
		return HostKey{}, err
	}
	was, err := readHostID(filepath.Join(dir, idFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return HostKey{}, err
	}
	k, err = drawHostKey(dir, machine, false)
	if err == nil && was != k.ID() {
		k.Was = was
	}
	return k, err
}

// RedrawHostKey gives the host another key, because its ID is another host's too.
func RedrawHostKey(dir string) (HostKey, error) { return drawHostKey(dir, machineFiles, true) }

// drawHostKey draws a key. Without replace, of two processes that come at once one draws and
// both get the same.
func drawHostKey(dir string, machine []string, replace bool) (k HostKey, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making a host key in %s: %w", dir, Remedy(dir, err))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return HostKey{}, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return HostKey{}, err
	}
	path, save := filepath.Join(dir, keyFile), atomicfile.Create
	if replace {
		save = atomicfile.Replace
	}
	err = save(path, func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "%x\n%s\n", key.Seed(), tie(info, machine))
		return err
	})
	if err != nil && (replace || !errors.Is(err, fs.ErrExist)) { // with fs.ErrExist another process was first
		return HostKey{}, err
	}
	k, _, err = readHostKey(path, machine)
	if err != nil {
		return HostKey{}, err
	}
	return k, noteHostID(dir, k.ID())
}

// readHostKey reads a key file, and whether it was made here.
func readHostKey(path string, machine []string) (k HostKey, tied bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return k, false, fmt.Errorf("reading the host key: %w", Remedy(filepath.Dir(path), err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return k, false, fmt.Errorf("reading the host key: %w", err)
	}
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	seed, to, _ := strings.Cut(strings.TrimSpace(string(b[:n])), "\n")
	raw, bad := hex.DecodeString(seed)
	if bad != nil || len(raw) != ed25519.SeedSize {
		if err == nil || n < len(b) {
			err = errors.New("it holds no key")
		}
		return k, false, fmt.Errorf("reading the host key of %s: %w: delete that file to have a new one drawn", path, err)
	}
	k.PrivateKey = ed25519.NewKeyFromSeed(raw)
	return k, to == tie(info, machine), nil
}

// noteHostID writes the ID where people look for it, unless a program before keys has its own there:
// with the name of a key, and without the key, no member would believe it.
func noteHostID(dir string, id host.ID) error {
	path := filepath.Join(dir, idFile)
	noted, err := readHostID(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // not ours to overwrite: is this the right directory?
	}
	if noted == id || noted != "" && !noted.Keyed() {
		return nil
	}
	if err := atomicfile.Write(path, []byte(id+"\n")); err != nil {
		return fmt.Errorf("noting the host ID in %s: %w", dir, Remedy(dir, err))
	}
	return nil
}

// readHostID reads the ID that a program of before drew, or that a key of before had.
func readHostID(path string) (host.ID, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the host ID: %w", Remedy(filepath.Dir(path), err))
	}
	id, err := host.ParseID(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("reading the host ID of %s: %w: delete that file to have a new one drawn", path, err)
	}
	return id, nil
}
