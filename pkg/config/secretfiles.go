package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/darter-io/darter/pkg/secret"
)

// secretFileMax bounds the files that hold secrets, in bytes.
const secretFileMax = 64 << 10

// SecretFile is a file with a secret.
type SecretFile struct {
	// Key is the setting that names it.
	Key, Path string
}

// SecretFiles lists the files with secrets that settings of every member name; [Proxy.SecretFiles] adds those of a
// dfdaemon.
func SecretFiles(c Cluster, o Origins) (files []SecretFile) {
	add := func(key, path string) {
		if path != "" {
			files = append(files, SecretFile{key, path})
		}
	}
	add("cluster.secretFile", c.SecretFile)
	for _, u := range o.Upstreams {
		add("upstreams: passwordFile of "+u.Host, u.PasswordFile)
		add("upstreams: clientKey of "+u.Host, u.ClientKey)
		add("upstreams: dockerConfig of "+u.Host, u.DockerConfig)
	}
	return files
}

// SecretFiles lists the files with secrets that the proxy's settings name.
func (p Proxy) SecretFiles() []SecretFile {
	if p.CAKey == "" {
		return nil
	}
	return []SecretFile{{"proxy.caKey", p.CAKey}}
}

// SecretFiles lists the files with secrets of the doors.
func (d *Doors) SecretFiles() (files []SecretFile) {
	for _, f := range []SecretFile{{"preheat.doors.key", d.Key}, {"preheat.doors.tokenFile", d.TokenFile},
		{"preheat.doors.passwordFile", d.PasswordFile}, {"preheat.doors.headerFile", d.HeaderFile}} {
		if f.Path != "" {
			files = append(files, f)
		}
	}
	return files
}

// CheckSecretFiles returns a warning for each file that other users may read, and an error for one that they may
// change. It ignores a file that does not exist: the code that reads the file reports that.
func CheckSecretFiles(files []SecretFile) (warnings []string, err error) {
	for _, f := range files {
		w, err := SecretFileMode(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return warnings, fmt.Errorf("%s: %w", f.Key, err)
		}
		if w != "" {
			warnings = append(warnings, f.Key+": "+w)
		}
	}
	return warnings, nil
}

// SecretFileMode checks the permissions of a file with a secret. The error says that every user of the machine may
// change it: its content is then not under the operator's control. The warning says that every user may read it, or
// that its group may change it, as container platforms mount secrets; it is empty if neither is so.
func SecretFileMode(path string) (warning string, err error) {
	info, err := os.Stat(path) // follows links
	if err != nil {
		return "", err
	}
	mode := info.Mode().Perm()
	if !info.Mode().IsRegular() {
		return "", nil
	}
	switch {
	case mode&0o002 != 0:
		return "", fmt.Errorf(
			"%s holds a secret, and every user of the machine may change it (mode %04o): chmod 600 %s",
			path, mode, path)
	case mode&0o004 != 0:
		return fmt.Sprintf("%s holds a secret, and every user of the machine may read it (mode %04o): "+
			"chmod 600 %s, or for a Kubernetes secret set defaultMode: 0400", path, mode, path), nil
	case mode&0o020 != 0:
		return fmt.Sprintf("%s holds a secret, and its group may change it (mode %04o): chmod g-w %s", path,
			mode, path), nil
	}
	return "", nil
}

// ReadSecretFile reads a file with one secret and removes white space at both ends. The error names the file and never
// its content.
func ReadSecretFile(path string) (secret.String, error) {
	if _, err := SecretFileMode(path); err != nil {
		return "", err
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, secretFileMax+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	switch {
	case len(b) > secretFileMax:
		return "", fmt.Errorf("%s is larger than %d bytes and cannot be a secret", path, secretFileMax)
	case text == "":
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret.String(text), nil
}
