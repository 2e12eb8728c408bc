// Supernode is Darter's program that leads tasks: it fetches each blob and file once from its origin and introduces
// peers to each other.
//
// It exits with 0 only after a clean end, with 2 if a flag or setting is wrong, and with 1 after any other failure.
// Start at [run].
package main

import (
	"os"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/supernode"
)

func main() { os.Exit(run()) }

// run is the program; it returns the exit code.
func run() int {
	cfg := new(config.Supernode)
	return cli.Main(cli.Program{
		Name:  "supernode",
		Short: "Leader of tasks and seed of a cluster",
		Long: `Supernode leads tasks: dfdaemons announce themselves to it, and it introduces them to each other. It
fetches each blob and file once from its origin while they exchange the pieces.`,
		Settings: cfg, Log: &cfg.Log, Status: &cfg.Admin.Listen, StatusFlag: "admin-listen", Again: node.ErrRenamed,
		New: func(rt cli.Runtime) (cli.Runner, error) {
			return supernode.New(*cfg, rt.Logger, node.WithStart(rt.Context))
		},
		Commands: []cli.Command{cli.PurgeCommand("supernode", &cfg.Admin.Listen, "admin-listen"),
			cli.PreheatCommand(&cfg.Admin.Listen, "admin-listen")},
	})
}
