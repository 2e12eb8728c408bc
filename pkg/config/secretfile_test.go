package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSecretFileMode(t *testing.T) {
	for mode, want := range map[os.FileMode]string{
		0o600: "", 0o400: "", 0o440: "", 0o640: "",
		0o644: "may read", 0o444: "may read", 0o660: "group may change", 0o664: "may read",
		0o666: "refused", 0o602: "refused", 0o777: "refused",
	} {
		path := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef0123456789abcdef"), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		link := path + "-link" // as Kubernetes mounts them
		require.NoError(t, os.Symlink(path, link))
		for _, p := range []string{path, link} {
			warning, err := SecretFileMode(p)
			_, readErr := ReadSecretFile(p)
			if want == "refused" {
				assert.ErrorContains(t, err, "chmod 600 "+p, "%o", mode)
				assert.ErrorContains(t, readErr, "chmod 600 "+p, "%o", mode)
				assert.NotContains(t, readErr.Error(), "0123456789abcdef")
				continue
			}
			require.NoError(t, err)
			require.NoError(t, readErr, "%o", mode)
			if want == "" {
				assert.Empty(t, warning, "%o", mode)
			} else {
				assert.Contains(t, warning, want, "%o", mode)
				assert.Contains(t, warning, "chmod")
			}
		}
	}
}

func TestConfigFileMode(t *testing.T) {
	for mode, refused := range map[os.FileMode]bool{0o600: false, 0o644: false, 0o664: false, 0o646: true,
		0o666: true, 0o777: true} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(path, []byte("node: {name: a}\n"), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		var cfg Supernode
		err := NewForm("supernode", &cfg).Load([]string{EnvFile + "=" + path})
		if refused {
			assert.ErrorContains(t, err, "chmod o-w "+path, "%o", mode)
			continue
		}
		assert.NoError(t, err, "%o", mode)
	}
}
