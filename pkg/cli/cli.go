// Package cli is the frame of the long-running programs' command lines: settings, signals, subcommands, and what
// they print of a running program.
//
// A program ends with 0 only after a clean end, with 2 when a flag or setting is wrong, and with 1 after any
// other failure; preheat has codes of its own. Start at [Main].
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/telemetry"
	"github.com/darter-io/darter/pkg/version"
)

// Program is what differs between the commands of long-running programs.
type Program struct {
	Name, Short, Long string
	// Settings points to the program's settings; Log and Status point into them: how to
	// log, and where a running program tells its status.
	Settings   any
	Log        *config.Log
	Status     *config.Address
	StatusFlag string
	// Again is an error of [Runner.Run] after which the program is built and run again; nil: none.
	Again error
	// New builds the program once the settings are read.
	New func(Runtime) (Runner, error)
	// Commands are what the program can do besides running.
	Commands []Command
}

// Command is something that a program does instead of running, with its settings.
type Command struct {
	Use, Short, Long string
	// DeprecatedName is the name that the command had before; it still works, and says on stderr to use the new one.
	DeprecatedName string
	// Args checks the arguments; nil takes none.
	Args cobra.PositionalArgs
	// Lenient runs the command also with settings that were read and are not valid: an operator who
	// asks a program how it is needs its address, and not the secrets that only it may read.
	Lenient bool
	// Keep are the flags of settings that matter to the command; the others are taken, too,
	// but its help is silent on them.
	Keep []string
	// Flags adds the command's own; nil adds none.
	Flags func(*pflag.FlagSet)
	// Run does it, once [Program.Settings] are read.
	Run func(ctx context.Context, args []string, stdout io.Writer) error
}

// Usage marks an error of how a command was called: the program ends with 2.
func Usage(err error) error { return errUsage{err} }

// Runtime is what a command gives to its program.
type Runtime struct {
	Logger *slog.Logger
	// Context ends when the program is to end.
	Context context.Context
}

// Runner is an assembled program.
type Runner interface {
	Run(ctx context.Context) error
	// Reload takes into force what a running program can change of settings, which have the
	// type of [Program].Settings: all of it or, with an error, nothing.
	Reload(settings any) error
}

// errUsage marks what is wrong with flags and settings.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// Main is the main function of a long-running program: it reads the settings, builds the
// program and runs it until SIGTERM or an interrupt; SIGHUP reads the settings again. It
// returns the exit code.
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once; but some send the first one twice, to the
	// process and to its group (timeout does).
	context.AfterFunc(ctx, func() { time.AfterFunc(500*time.Millisecond, stop) })
	err := p.command(os.Stdout, os.Stderr, os.Environ()).ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for _, one := range Joined(err) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, one)
	}
	var own exitError
	if errors.As(err, &own) {
		return own.code
	}
	var usage errUsage
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

func (p Program) command(stdout, stderr io.Writer, environ []string) *cobra.Command {
	form := config.NewForm(p.Name, p.Settings)
	form.ReadDefaultFile()
	var printConfig bool
	root := &cobra.Command{
		Use: p.Name + " [flags]", Short: p.Short, Long: p.Long, Version: version.Read().String(),
		SilenceUsage: true, SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := form.Load(environ); err != nil {
				return errUsage{err}
			}
			if printConfig {
				return form.Print(stdout)
			}
			level := new(slog.LevelVar)
			if err := setLevel(level, *p.Log); err != nil {
				return errUsage{err}
			}
			logger, err := telemetry.NewLogger(stderr, level, string(p.Log.Format))
			if err != nil {
				return errUsage{err}
			}
			telemetry.TakeStandardLog(logger)
			limitMemory(logger, memlimit.FromCgroup)
			for {
				err := p.run(cmd.Context(), form, environ, logger, level)
				if p.Again == nil || !errors.Is(err, p.Again) || cmd.Context().Err() != nil {
					return err
				}
			}
		},
	}
	form.Bind(root.Flags())
	root.Flags().BoolVar(&printConfig, "print-config", false,
		"print the settings in force, with secrets redacted, and exit")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return errUsage{config.FlagError(cmd.Flags(), err)}
	})
	form.Explain(root)
	root.SetOut(stdout)
	root.SetErr(stderr)
	for _, c := range append([]Command{p.status()}, p.Commands...) {
		root.AddCommand(p.subcommand(c, stdout, environ))
		if c.DeprecatedName != "" {
			root.AddCommand(p.deprecated(c, stdout, stderr, environ))
		}
	}
	root.AddCommand(&cobra.Command{
		Use: "version", Short: "Print the version", Args: Arguments(nil),
		Run: func(*cobra.Command, []string) { fmt.Fprintln(stdout, p.Name, version.Read()) },
	})
	return root
}

// stuckStart is how long a start may go on after its context has ended.
const stuckStart = 200 * time.Millisecond

// build builds the program. If ctx ends, it does not wait for a start that hangs, such as one that reads a slow disk:
// nothing was served, and the process ends. The program is nil then.
func (p Program) build(ctx context.Context, logger *slog.Logger) (Runner, error) {
	type result struct {
		program Runner
		err     error
	}
	built := make(chan result, 1)
	go func() {
		program, err := p.New(Runtime{Logger: logger, Context: ctx})
		built <- result{program, err}
	}()
	var stuck <-chan time.Time
	ended := ctx.Done()
	for {
		select {
		case b := <-built:
			if b.err != nil && ctx.Err() != nil {
				logger.Info("ended during its start", "error", b.err)
				return nil, nil
			}
			return b.program, b.err
		case <-ended:
			ended, stuck = nil, time.After(stuckStart)
		case <-stuck:
			logger.Warn("ended during its start, which hung")
			return nil, nil
		}
	}
}

// run builds the program and runs it once.
func (p Program) run(ctx context.Context, form *config.Form, environ []string, logger *slog.Logger,
	level *slog.LevelVar) error {
	program, err := p.build(ctx, logger)
	if err != nil || program == nil {
		return err
	}
	defer p.reload(form, environ, program, logger, level)()
	return program.Run(ctx)
}

// status is the command that prints the state of a running program.
func (p Program) status() Command {
	var asJSON bool
	return Command{
		Use: "status", Short: "Print the state of this machine's " + p.Name,
		Long: "Status prints the state of this machine's " + p.Name + ". It exits with 0 only if the program is ready.",
		// The settings say where the program listens; of their flags only that one matters.
		Keep: []string{p.StatusFlag}, Lenient: true,
		Flags: func(fs *pflag.FlagSet) { fs.BoolVar(&asJSON, "json", false, "print the whole status as JSON") },
		Run: func(ctx context.Context, _ []string, stdout io.Writer) error {
			s, err := apiclient.FetchStatus(ctx, p.Name, string(*p.Status))
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(stdout)
				enc.SetIndent("", "  ")
				err = enc.Encode(s)
			} else {
				err = WriteStatus(stdout, s, time.Now())
			}
			if err == nil && !s.Ready {
				err = errors.New("not ready: " + strings.Join(s.Missing, "; "))
			}
			return err
		},
	}
}

// subcommand is a command in the words of cobra.
func (p Program) subcommand(c Command, stdout io.Writer, environ []string) *cobra.Command {
	form := config.NewForm(p.Name, p.Settings)
	form.ReadDefaultFile()
	cmd := &cobra.Command{
		Use: c.Use, Short: c.Short, Long: c.Long,
		Args: Arguments(c.Args),
		RunE: func(cmd *cobra.Command, given []string) error {
			err := form.Load(environ)
			var invalid *config.InvalidError
			if err != nil && !(c.Lenient && errors.As(err, &invalid)) {
				return errUsage{err}
			}
			return c.Run(cmd.Context(), given, stdout)
		},
	}
	form.Bind(cmd.Flags())
	for _, name := range form.Flags() {
		f := cmd.Flags().Lookup(name)
		f.Hidden = !slices.Contains(c.Keep, name)
		if name == p.StatusFlag {
			f.Usage = "Where the running program answers."
		}
	}
	if c.Flags != nil {
		c.Flags(cmd.Flags())
	}
	form.Explain(cmd)
	return cmd
}

// deprecated is a command under its name of before, which no help lists.
func (p Program) deprecated(c Command, stdout, stderr io.Writer, environ []string) *cobra.Command {
	name, args, _ := strings.Cut(c.Use, " ")
	c.Use = c.DeprecatedName + " " + args
	cmd := p.subcommand(c, stdout, environ)
	cmd.Hidden = true
	cmd.PreRun = func(*cobra.Command, []string) {
		fmt.Fprintf(stderr, "%s: %s is deprecated, use %s\n", p.Name, c.DeprecatedName, name)
	}
	return cmd
}

// reload reads the settings again at each SIGHUP, applies what can change in a running
// program, and says what cannot. The function that it returns ends that.
func (p Program) reload(form *config.Form, environ []string, program Runner, logger *slog.Logger,
	level *slog.LevelVar) (stop func()) {
	hup, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hup, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		last := form
		for {
			select {
			case <-done:
				return
			case <-hup:
			}
			next := reflect.New(reflect.TypeOf(p.Settings).Elem())
			again := form.Again(next.Interface())
			if err := again.Load(environ); err != nil {
				logger.Error("settings not reloaded: those from before stay in force", "error", err)
				continue
			}
			if err := program.Reload(next.Interface()); err != nil {
				logger.Error("settings not reloaded: those from before stay in force", "error", err)
				continue
			}
			log := next.Elem().FieldByName("Log").Interface().(config.Log)
			if err := setLevel(level, log); err != nil {
				logger.Error("settings not reloaded: those from before stay in force", "error", err)
				continue
			}
			now, _ := last.Changed(again)
			_, restart := form.Changed(again)
			last = again
			logger.Info("settings reloaded", "inForce", keys(now), "afterRestart", keys(restart))
			for _, c := range restart {
				logger.Warn("a changed setting takes effect after a restart only", "setting", c.Key, "inForce", c.Was,
					"afterRestart", c.Is)
			}
		}
	}()
	return func() {
		signal.Stop(hup)
		close(done)
		<-ended
	}
}

func keys(changes []config.Change) []string {
	out := []string{}
	for _, c := range changes {
		out = append(out, c.Key)
	}
	return out
}

func setLevel(v *slog.LevelVar, cfg config.Log) error {
	level, err := telemetry.ParseLevel(string(cfg.Level))
	if err == nil {
		v.Set(level)
	}
	return err
}
