package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/purge"
)

// PurgeCommand purges tasks from a cluster by the program that runs at an address of this machine.
func PurgeCommand(program string, at *config.Address, flag string) Command {
	return Command{
		Use: "purge DIGEST...", DeprecatedName: "withdraw",
		Short: "Delete blobs or manifests from every cache of the cluster",
		Long: `Purge deletes the layers or manifests with these digests from the cache of every host of the
cluster. Pulls of them that run end short. The command waits some seconds for the hosts to confirm,
and names those that did not. A host that is away deletes them when it comes back within seven days.
A purge forbids nothing: a later pull gets the object from its registry again, so delete it there
first.`,
		Args: cobra.MinimumNArgs(1), Keep: []string{flag},
		Run: func(ctx context.Context, args []string, stdout io.Writer) error {
			var problems []error
			for _, name := range args {
				id, err := purge.ParseTarget(name)
				if err != nil {
					return Usage(err)
				}
				problem, err := purge.Operator{Program: program, Addr: string(*at)}.Purge(ctx, id, stdout)
				if err != nil {
					return err
				}
				problems = append(problems, problem)
			}
			return errors.Join(problems...)
		},
	}
}
