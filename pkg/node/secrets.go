package node

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/darter-io/darter/pkg/config"
)

// SecretFiles are the files with secrets that settings name, by the setting.
func SecretFiles(c config.Cluster, o config.Origins) (files [][2]string) {
	add := func(key, path string) {
		if path != "" {
			files = append(files, [2]string{key, path})
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

// openSecrets looks who else may use the files with secrets; the error says which one it does not
// do to go on with. A file that is not there is told of where it is read.
func openSecrets(cfg Config) (warnings []string, err error) {
	for _, f := range append(SecretFiles(cfg.Cluster, cfg.Origins), cfg.Secrets...) {
		w, err := config.SecretFileMode(f[1])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return warnings, fmt.Errorf("%s: %w", f[0], err)
		}
		if w != "" {
			warnings = append(warnings, f[0]+": "+w)
		}
	}
	return warnings, nil
}
