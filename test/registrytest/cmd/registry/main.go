// Command registry runs test/registrytest as a program, for a network namespace or a container.
//
// It prints "listening on ADDR" only when it serves, and ends at SIGINT or SIGTERM, when it writes its counts to the
// file of -counts. Other processes control it at the address of -admin.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/test/registrytest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	var cfg registrytest.Config
	flags.StringVar(&cfg.Addr, "listen", "127.0.0.1:5000", "address of the registry")
	flags.StringVar(&cfg.StorageAddr, "storage", "127.0.0.1:0", "address of the host to which blobs are redirected")
	flags.StringVar(&cfg.Dir, "dir", "", "directory of the blobs (empty: in memory)")
	flags.BoolVar(&cfg.TLS, "tls", false, "serve HTTPS with a certificate of an own authority, see -ca")
	names := flags.String("names", "", "further names for the certificate, separated by commas")
	auth := flags.String("auth", "", `credentials: "" (none), "basic" or "bearer"`)
	users := flags.String("users", "", `JSON file of users: {"alice": {"Password": "…", "Pull": ["*"], "Push": []}}`)
	tokenLife := flags.Duration("token-life", 5*time.Minute, "lifetime of a token")
	ca := flags.String("ca", "", "output file for the authority's certificate (PEM)")
	admin := flags.String("admin", "", "loopback address of the admin API (empty: none)")
	counts := flags.String("counts", "", "output file for the counts, written at the end (JSON)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.Auth, cfg.TokenLife = registrytest.Auth(*auth), *tokenLife
	if *names != "" {
		cfg.Names = strings.Split(*names, ",")
	}
	if *users != "" {
		b, err := os.ReadFile(*users)
		if err != nil {
			return fmt.Errorf("reading the users: %w", err)
		}
		if err := json.Unmarshal(b, &cfg.Users); err != nil {
			return fmt.Errorf("reading the users in %s: %w", *users, err)
		}
	}
	r, err := registrytest.Listen(cfg)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.Run(ctx) })
	if *ca != "" {
		if err := os.WriteFile(*ca, r.CA(), 0o644); err != nil {
			return fmt.Errorf("writing the authority's certificate: %w", err)
		}
	}
	if *admin != "" {
		l, err := net.Listen("tcp", *admin)
		if err != nil {
			return fmt.Errorf("opening the admin listener: %w", err)
		}
		srv := &http.Server{Handler: r.Admin(), ReadHeaderTimeout: 10 * time.Second}
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving the admin API: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			return srv.Close()
		})
		fmt.Println("admin on", l.Addr())
	}
	fmt.Println("listening on", r.Host())
	if err := g.Wait(); err != nil {
		return err
	}
	if *counts != "" {
		b, err := json.MarshalIndent(r.Counts(), "", "  ")
		if err != nil {
			return fmt.Errorf("encoding the counts: %w", err)
		}
		if err := os.WriteFile(*counts, append(b, '\n'), 0o644); err != nil {
			return fmt.Errorf("writing the counts: %w", err)
		}
	}
	return nil
}
