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

// The files of a data directory that identify its host.
const (
	// keyFile holds the seed of the host's key and, on a second line, the machine and file that it is tied to.
	keyFile = "host-key"
	// idFile holds the ID of that key, for people and other tools. If an older program without keys wrote another ID
	// there, that ID stays, so that the older program can run again. This program does not trust it.
	idFile = "host-id"
)

// HostKey is the key of a host.
type HostKey struct {
	ed25519.PrivateKey
	// Was is the previous ID, if the host has a new one: because its directory came from another machine (Moved), or
	// because an older program generated IDs without keys.
	Was   host.ID
	Moved bool
}

// ID returns the ID of the key.
func (k HostKey) ID() host.ID { return host.OfKey(k.Public().(ed25519.PublicKey)) }

// machineFiles identify a machine. Copies of one machine image may share the first; the second comes from the
// hypervisor or the board, and only root can read it.
var machineFiles = []string{"/etc/machine-id", "/sys/class/dmi/id/product_uuid"}

// tie identifies the machine and the key file, by its inode, which a copy does not have. Neither changes at a
// restart.
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

// HostID returns the ID of the host with data directory dir; see [OpenHostKey].
func HostID(dir string) (host.ID, error) {
	k, err := OpenHostKey(dir)
	if err != nil {
		return "", err
	}
	return k.ID(), nil
}

// OpenHostKey returns the key of the host with data directory dir, and generates it the first time. A host that
// keeps its pieces keeps the ID under which it announced them. A directory that was copied, restored, or moved from
// another machine gets a new key: the other machine may still run, and others would take two hosts with one ID for
// one host. OpenHostKey creates dir if it does not exist. The error says what to do.
func OpenHostKey(dir string) (HostKey, error) { return openHostKey(dir, machineFiles) }

func openHostKey(dir string, machine []string) (HostKey, error) {
	path := filepath.Join(dir, keyFile)
	k, tied, err := readHostKey(path, machine)
	switch {
	case err == nil && tied:
		return k, writeHostID(dir, k.ID())
	case err == nil:
		was := k.ID()
		k, err = generateHostKey(dir, machine, true)
		k.Was, k.Moved = was, true
		return k, err
	case !errors.Is(err, fs.ErrNotExist):
		return HostKey{}, err
	}
	was, err := readHostID(filepath.Join(dir, idFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return HostKey{}, err
	}
	k, err = generateHostKey(dir, machine, false)
	if err == nil && was != k.ID() {
		k.Was = was
	}
	return k, err
}

// ReplaceHostKey gives the host a new key, because another host has the same ID.
func ReplaceHostKey(dir string) (HostKey, error) { return generateHostKey(dir, machineFiles, true) }

// generateHostKey generates a key. Without replace, two concurrent processes get the same key.
func generateHostKey(dir string, machine []string, replace bool) (k HostKey, err error) {
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
	return k, writeHostID(dir, k.ID())
}

// readHostKey reads a key file; tied is true if it was generated on this machine and is no copy.
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
		return k, false, fmt.Errorf("reading the host key in %s: %w: delete that file to generate a new key", path, err)
	}
	k.PrivateKey = ed25519.NewKeyFromSeed(raw)
	return k, to == tie(info, machine), nil
}

// writeHostID writes the ID to idFile, unless an older program without keys has its own ID there: with the ID of a key,
// but without the key, no member would trust that program.
func writeHostID(dir string, id host.ID) error {
	path := filepath.Join(dir, idFile)
	noted, err := readHostID(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // the file is unreadable or holds no ID, so do not overwrite it
	}
	if noted == id || noted != "" && !noted.Keyed() {
		return nil
	}
	if err := atomicfile.Write(path, []byte(id+"\n")); err != nil {
		return fmt.Errorf("writing the host ID in %s: %w", dir, Remedy(dir, err))
	}
	return nil
}

// readHostID reads the ID in idFile.
func readHostID(path string) (host.ID, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the host ID: %w", Remedy(filepath.Dir(path), err))
	}
	id, err := host.ParseID(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("reading the host ID in %s: %w: delete that file to generate a new ID", path, err)
	}
	return id, nil
}
