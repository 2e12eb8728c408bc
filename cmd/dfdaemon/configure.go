package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
)

// configure is the command that configures clients to use the mirror.
func configure(cfg *config.Dfdaemon) cli.Command {
	var (
		dryRun, remove, digests, hostsOnly bool
		root, mirror, file, hostsDir       string
	)
	return cli.Command{
		Use:   "configure containerd|docker|podman|crio|buildkit|k3s|rke2",
		Short: "Configure a client of this machine to use the mirror",
		Long: `Configure edits a client's configuration so that it tries this node's mirror first for every
registry in upstreams. It keeps all other settings; --remove restores the former files. Run it
again after a change of upstreams. docs/clients.md describes each client.`,
		Args: cobra.ExactArgs(1),
		Keep: []string{"api-listen", "mirror-listen", "upstreams"},
		Flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&dryRun, "dry-run", false, "show the changes, and write nothing")
			fs.BoolVar(&remove, "remove", false, "remove what configure wrote")
			fs.BoolVar(&digests, "digests-only", false,
				"let the client resolve tags at the registry itself, and pull everything else from the mirror")
			fs.StringVar(&root, "root", "", "`DIRECTORY` to use as /, for the image of a machine")
			fs.StringVar(&mirror, "mirror", "",
				"`HOST:PORT` of the mirror as the client reaches it. Default: mirror.listen")
			fs.StringVar(&file, "client-config", "",
				"the client's own configuration `FILE`, if it is not the usual one; "+
					"for podman and crio the directory of drop-ins")
			fs.BoolVar(&hostsOnly, "hosts-only", false,
				"for containerd: write the hosts.toml files only, and leave config.toml as it is")
			fs.StringVar(&hostsDir, "hosts-dir", "", "with --hosts-only: the `DIRECTORY` of these files. "+
				"Default: what config.toml names, else /etc/containerd/certs.d")
		},
		Run: func(ctx context.Context, args []string, stdout io.Writer) error {
			if hostsDir != "" && !hostsOnly {
				return cli.Usage(errors.New("--hosts-dir goes with --hosts-only"))
			}
			if root == "" { // with a root, the files are of another machine
				adopted, _, err := cli.Adopt(ctx, cfg)
				if err != nil {
					return err
				}
				if adopted {
					fmt.Fprintf(stdout, "registries and mirror are those of the dfdaemon that runs at %s\n", cfg.API.Listen)
				}
			}
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
			options := clientconf.Options{Config: file, Version: programVersion(ctx, args[0], root),
				HostsOnly: hostsOnly, HostsDir: hostsDir}
			plan, err := do(clientconf.Client(args[0]), files, m, options)
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
			tell(stdout, plan, dryRun, remove)
			return nil
		},
	}
}

// programVersion returns what the client's program on this machine prints for --version, empty if that says nothing
// about the files below root.
func programVersion(ctx context.Context, client, root string) string {
	if client != string(clientconf.Containerd) || root != "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, cli.AskTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, client, "--version").Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// withRemedy says what to do about files that only root may read or write, and about a read-only file system.
func withRemedy(err error, client string, user int) error {
	if errors.Is(err, syscall.EROFS) && client == string(clientconf.Containerd) {
		return fmt.Errorf("%w; --hosts-only leaves config.toml as it is, and --hosts-dir names another directory for the "+
			"hosts.toml files", err)
	}
	if errors.Is(err, fs.ErrPermission) && user != 0 {
		return fmt.Errorf("%w; run it as root: sudo dfdaemon configure %s", err, client)
	}
	return err
}

// mirrorFor returns the mirror with what clients of this machine have to know of it.
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

// reachable returns the address at which a client of this machine reaches a listener of all addresses.
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

// tell prints the changes, made or planned, and the next step of the user.
func tell(w io.Writer, plan clientconf.Plan, dryRun, remove bool) {
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
	case plan.Pending:
		fmt.Fprintf(w, "the next pull may not use the mirror: see the note\n")
	case remove:
		fmt.Fprintf(w, "no restart is needed: the next pull does not use the mirror\n")
	default:
		fmt.Fprintf(w, "no restart is needed: the next pull uses the mirror\n")
	}
}
