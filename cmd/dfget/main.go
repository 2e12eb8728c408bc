// Dfget downloads files through the dfdaemon of its machine.
//
// It ends with an exit code by cause, the same from release to release (docs/dfget.md).
// Start at [run].
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/dfget"
)

func main() { os.Exit(run()) }

// run is the program; it returns the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once; but some send the first one twice, to the
	// process and to its group (timeout does).
	context.AfterFunc(ctx, func() { time.AfterFunc(500*time.Millisecond, stop) })

	log.SetOutput(io.Discard) // net/http quotes there what broken servers send
	err := command(os.Stdout, os.Stderr).ExecuteContext(ctx)
	if err != nil && !dfget.Told(err) {
		fmt.Fprintln(os.Stderr, "dfget:", err)
	}
	var e *dfget.Error
	if err != nil && !errors.As(err, &e) { // wrong flags and settings
		return int(dfget.Usage)
	}
	return int(dfget.ExitCode(err))
}

func command(stdout, stderr io.Writer) *cobra.Command {
	var settings config.Dfget
	form := config.NewForm("dfget", &settings)
	var printConfig bool
	cmd := &cobra.Command{
		Use:   "dfget [flags] URL…",
		Short: "Download files through the dfdaemon of this machine",
		Long: `Dfget downloads files through the dfdaemon of this machine, which gets their pieces from
other nodes and asks the origin once. A file appears under its name when all of it is there;
until then it stands in FILE.part, and the same command takes up what Ctrl-C interrupted.`,
		Example: `  dfget https://example.com/model.bin
  dfget --digest sha256:… -o /srv/model.bin https://example.com/model.bin
  dfget -H "Authorization: Bearer …" -o - https://example.com/data.tar | tar x`,
		Version:       config.Version(),
		Args:          cobra.ArbitraryArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, urls []string) error {
			if err := form.Load(os.Environ()); err != nil {
				return err
			}
			if printConfig {
				return form.Print(stdout)
			}
			if len(urls) == 0 {
				return errors.New("there is no URL; see dfget --help")
			}
			return dfget.New(dfget.Config{
				URLs: urls, Settings: settings, Stdout: stdout, Stderr: stderr, Environ: os.Environ(),
				Terminal: isTerminal(stderr),
			}).Run(cmd.Context())
		},
	}
	form.Bind(cmd.Flags())
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return config.FlagError(cmd.Flags(), err) })
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "print the settings in force, secrets redacted, and end")
	cmd.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: config.Arguments(nil),
		Run: func(*cobra.Command, []string) { fmt.Fprintln(stdout, "dfget", config.Version()) },
	})
	form.Explain(cmd)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd
}

// isTerminal reports whether bars can be drawn on w. A terminal of no size, as programs make
// them that record others, shows none.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	return err == nil && width > 0 && height > 0
}
