//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Fresh gives the node the file system of a newly installed machine: its own copy of /etc, and empty /var/lib and /run.
// So programs can use their usual paths without a change to the test's machine.
func (n *Node) Fresh() error {
	etc := filepath.Join(n.Dir, "etc")
	if out, err := exec.Command("cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
		return fmt.Errorf("copying /etc for %s: %w: %s", n.Name, err, out)
	}
	mounts := map[string]string{etc: "/etc"}
	for _, place := range []string{"/var/lib", "/run"} {
		dir := filepath.Join(n.Dir, "fresh", place)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		mounts[dir] = place
	}
	for dir, place := range mounts {
		if out, err := n.Command(context.Background(), "mount", "--bind", dir, place).CombinedOutput(); err != nil {
			return fmt.Errorf("giving %s a %s of its own: %w: %s", n.Name, place, err, out)
		}
	}
	return nil
}
