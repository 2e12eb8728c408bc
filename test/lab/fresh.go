//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Fresh makes the node a machine that was just installed: its /etc is a copy of this machine's
// and its own from now on, and nothing is in its /var/lib and /run yet. So programs may keep what
// they have at their usual places, and none of it is the test's machine's.
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
