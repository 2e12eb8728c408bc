package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
)

// configure is the command that points clients at the mirror.
func configure(cfg *config.Dfdaemon) cli.Command {
	var (
		dryRun, remove, digests bool
		root, mirror, file      string
	)
	return cli.Command{
		Use: "configure containerd|docker|podman|crio|buildkit", Short: "Point a client of this machine at the mirror",
		Long: `Configure writes into the files of a client that it is to ask this node's mirror first, for each
registry in upstreams. What else is in the files stays as it is; --remove restores what was there.
It may be repeated, after a change of upstreams for instance. docs/clients.md tells what each client does.`,
		Args: cobra.ExactArgs(1),
		Keep: []string{"mirror-listen", "upstreams"},
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&dryRun, "dry-run", false, "show what would change, and write nothing")
			fs.BoolVar(&remove, "remove", false, "take out what was written")
			fs.BoolVar(&digests, "digests-only", false,
				"let the client ask the registry itself what a tag means, and the mirror for the rest")
			fs.StringVar(&root, "root", "", "`DIRECTORY` that stands for /, for the image of a machine")
			fs.StringVar(&mirror, "mirror", "",
				"`HOST:PORT` of the mirror as the client reaches it. Default: mirror.listen")
			fs.StringVar(&file, "client-config", "",
				"the client's own configuration `FILE`, where it is not the usual one; "+
					"for podman and crio the directory of drop-ins")
		},
		Run: func(_ context.Context, args []string, stdout io.Writer) error {
			files := clientconf.Files{Root: root}
			m := mirrorFor(cfg)
			m.DigestsOnly = digests
			if mirror != "" {
				m.Addr = mirror
			}
			do := clientconf.Configure
			if remove {
				do = clientconf.Remove
			}
			plan, err := do(clientconf.Client(args[0]), files, m, clientconf.Options{Config: file})
			if err != nil {
				return withRemedy(err, args[0], os.Geteuid())
			}
			if dryRun {
				if _, err := stdout.Write(plan.Diff()); err != nil {
					return err
				}
			} else if err := plan.Apply(files); err != nil {
				return withRemedy(err, args[0], os.Geteuid())
			}
			tell(stdout, plan, dryRun)
			return nil
		},
	}
}

// withRemedy says what to do about files that only root may read or write.
func withRemedy(err error, client string, user int) error {
	if errors.Is(err, fs.ErrPermission) && user != 0 {
		return fmt.Errorf("%w; run it as root: sudo dfdaemon configure %s", err, client)
	}
	return err
}

// mirrorFor is what clients of this machine are told of the mirror.
func mirrorFor(cfg *config.Dfdaemon) clientconf.Mirror {
	m := clientconf.Mirror{Addr: reachable(cfg.Mirror.Listen)}
	for _, u := range cfg.Upstreams {
		host, err := oci.ParseHost(u.Host)
		if err != nil {
			continue // the settings were checked when they were read
		}
		plain := u.PlainHTTP && len(u.URLs) == 0 ||
			len(u.URLs) > 0 && strings.HasPrefix(u.URLs[0], "http://"+oci.Endpoint(host))
		m.Upstreams = append(m.Upstreams, clientconf.Upstream{Host: host, PlainHTTP: plain, CA: u.CA,
			ClientCert: u.ClientCert, ClientKey: u.ClientKey})
	}
	return m
}

// reachable is where a client of this machine finds what listens on all addresses.
func reachable(a config.Address) string {
	host, port, err := net.SplitHostPort(string(a))
	if err != nil {
		return string(a)
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// tell says what was or would be done, and what is left to do.
func tell(w io.Writer, plan clientconf.Plan, dryRun bool) {
	if len(plan.Changes) == 0 {
		fmt.Fprintf(w, "%s: nothing to change\n", plan.Client)
	}
	for _, c := range plan.Changes {
		word := "wrote"
		if c.New == nil {
			word = "removed"
		}
		if dryRun {
			word = map[string]string{"wrote": "would write", "removed": "would remove"}[word]
		}
		fmt.Fprintf(w, "%s %s\n", word, c.Path)
	}
	for _, n := range plan.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	switch {
	case len(plan.Changes) == 0:
	case plan.Restart != "":
		fmt.Fprintf(w, "now run: %s (%s)\n", plan.Restart, plan.RestartNote)
	default:
		fmt.Fprintf(w, "no restart is needed: the next pull follows\n")
	}
}
