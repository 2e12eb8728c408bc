// Dfdaemon is Darter's program on every node: registry mirror, local API and peer.
//
// It exits with 0 only after a clean end, with 2 if a flag or setting is wrong, and with 1 after any other failure.
// Start at [run].
package main

import (
	"os"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/daemon"
	"github.com/darter-io/darter/pkg/node"
)

func main() { os.Exit(run()) }

// run is the program; it returns the exit code.
func run() int {
	cfg := new(config.Dfdaemon)
	return cli.Main(cli.Program{
		Name:  "dfdaemon",
		Short: "Registry mirror, local API and peer of one node",
		Long: `Dfdaemon runs on every node. Container runtimes pull through its registry mirror, dfget downloads
files from its local API, and it exchanges pieces with the dfdaemons of other nodes. Without a
supernode it works as a pull-through cache.`,
		Settings: cfg, Log: &cfg.Log, Status: &cfg.API.Listen, StatusFlag: "api-listen", Again: node.ErrRenamed,
		New: func(rt cli.Runtime) (cli.Runner, error) {
			return daemon.New(*cfg, rt.Logger, node.WithStart(rt.Context))
		},
		Commands: []cli.Command{configure(cfg), examine(cfg), proxyCA(cfg), await(),
			cli.PurgeCommand("dfdaemon", &cfg.API.Listen, "api-listen")},
	})
}
