package main

import (
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Files that only root may write name the remedy to any other user.
func TestConfigureNeedsRoot(t *testing.T) {
	err := &fs.PathError{Op: "open", Path: "/etc/f", Err: fs.ErrPermission}
	assert.EqualError(t, withRemedy(err, "docker", 0), "open /etc/f: permission denied")
	assert.EqualError(t, withRemedy(err, "docker", 1000),
		"open /etc/f: permission denied; run it as root: sudo dfdaemon configure docker")
	err = &fs.PathError{Op: "open", Path: "/etc/f", Err: syscall.EROFS}
	assert.EqualError(t, withRemedy(err, "docker", 0), "open /etc/f: read-only file system")
	assert.ErrorContains(t, withRemedy(err, "containerd", 0), "--hosts-only leaves config.toml as it is")
}
