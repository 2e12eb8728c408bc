// Dfget downloads files through the dfdaemon of its machine.
//
// Its exit codes name the cause of a failure and never change between releases (docs/dfget.md). Start at [run].
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

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/dfget"
	"github.com/darter-io/darter/pkg/version"
)

func main() { os.Exit(run()) }

// run is the program; it returns the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once. The delay ignores a duplicate of the first one: timeout(1) signals
	// both the process and its group.
	context.AfterFunc(ctx, func() { time.AfterFunc(500*time.Millisecond, stop) })

	log.SetOutput(io.Discard) // net/http logs bytes of broken servers there
	err := command(os.Stdout, os.Stderr).ExecuteContext(ctx)
	if err != nil && !dfget.Reported(err) {
		for _, failure := range cli.Joined(err) {
			fmt.Fprintln(os.Stderr, "dfget:", failure)
		}
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
	form.ReadDefaultFile()
	var printConfig bool
	cmd := &cobra.Command{
		Use:   "dfget [flags] URL…",
		Short: "Download files through the dfdaemon of this machine",
		Long: `Dfget downloads files through the dfdaemon of this machine, which gets their pieces from
other nodes, so that the origin sends the file once. A file appears under its name when it is
complete. Until then its bytes are in FILE.part, and the same command resumes an interrupted
download.`,
		Example: `  dfget https://example.com/model.bin
  dfget --digest sha256:… -o /srv/model.bin https://example.com/model.bin
  dfget -H "Authorization: Bearer …" -o - https://example.com/data.tar | tar x`,
		Version:       version.Read().String(),
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
	cmd.Flags().BoolVar(&printConfig, "print-config", false,
		"print the effective settings, with secrets redacted, and exit")
	cmd.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: cli.Arguments(nil),
		Run: func(*cobra.Command, []string) { fmt.Fprintln(stdout, "dfget", version.Read()) },
	})
	form.Explain(cmd)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd
}

// isTerminal reports whether bars can be drawn on w. A terminal of size zero, as recording programs create it,
// shows none.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	width, height, err := term.GetSize(int(file.Fd()))
	return err == nil && width > 0 && height > 0
}
