package config

import (
	"errors"
	"fmt"
	"io/fs"
)

// SecretFile is a file with a secret.
type SecretFile struct {
	// Key is the setting that names it.
	Key, Path string
}

// SecretFiles lists the files with secrets that settings name.
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
