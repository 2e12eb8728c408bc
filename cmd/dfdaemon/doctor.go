package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"

	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/doctor"
)

// examine is the command that checks this node.
func examine(cfg *config.Dfdaemon) cli.Command {
	var asJSON bool
	var root string
	return cli.Command{
		Use: "doctor", Short: "Check this node, and name the remedy for each fault",
		Long: `Doctor checks the clients of this machine, the mirror, the registries and their logins, the
supernodes, the disk and the limits, in parallel and within ten seconds. It changes nothing.
It exits with 1 if a check fails.`,
		Keep: []string{"api-listen", "mirror-listen", "upstreams", "supernodes"},
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&asJSON, "json", false, "print the findings as JSON")
			fs.StringVar(&root, "root", "", "`DIRECTORY` to use as / for the files of clients")
		},
		Run: func(ctx context.Context, _ []string, stdout io.Writer) error {
			adopted, standard, err := cli.Adopt(ctx, cfg)
			if err != nil {
				return err
			}
			proc := "/proc"
			if root != "" {
				proc = "" // the processes here do not belong to that machine
			}
			found := doctor.Examine(ctx, doctor.Config{
				Settings: *cfg, Standard: standard, Adopted: adopted, Mirror: mirrorFor(cfg),
				Files: clientconf.Files{Root: root},
				Proc:  proc, DockerSocket: "/var/run/docker.sock",
				Version:   func(client string) string { return programVersion(ctx, client, root) },
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
