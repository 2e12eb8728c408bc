package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"reflect"

	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/doctor"
)

// examine is the command that looks whether this node does its work.
func examine(cfg *config.Dfdaemon) cli.Command {
	var asJSON bool
	var root string
	return cli.Command{
		Use: "doctor", Short: "Look whether this node does its work, and say what to do where it does not",
		Long: `Doctor looks at the clients of this machine, the mirror, the registries and their logins, the
supernodes, the disk and the limits, all at once and for at most ten seconds. It changes nothing.
It ends with 1 when something fails.`,
		Keep: []string{"api-listen", "mirror-listen", "upstreams", "supernodes"},
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&asJSON, "json", false, "print what was found as JSON")
			fs.StringVar(&root, "root", "", "`DIRECTORY` that stands for / where the files of clients are looked for")
		},
		Run: func(ctx context.Context, _ []string, stdout io.Writer) error {
			var standard config.Dfdaemon
			if err := config.NewForm("dfdaemon", &standard).Load(nil); err != nil {
				return err
			}
			proc := "/proc"
			if root != "" {
				proc = "" // what runs here is not of that machine
			}
			found := doctor.Examine(ctx, doctor.Config{
				Settings: *cfg, Standard: reflect.DeepEqual(standard.Upstreams, cfg.Upstreams), Mirror: mirrorFor(cfg),
				Files: clientconf.Files{Root: root},
				Proc:  proc, DockerSocket: "/var/run/docker.sock",
				Installed: func(program string) bool { _, err := exec.LookPath(program); return err == nil },
			})
			write := doctor.Write
			if asJSON {
				write = doctor.WriteJSON
			}
			if err := write(stdout, found); err != nil {
				return err
			}
			if n := doctor.Failed(found); n > 0 {
				return fmt.Errorf("%d of %d checks failed", n, len(found))
			}
			return nil
		},
	}
}
