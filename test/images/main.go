// Command images builds the container images of supernode and dfdaemon from static programs, without a container engine
// and without pulling anything.
//
// Equal programs, version and date give equal digests on every machine. It writes an OCI layout with all architectures
// per image, and one tar file per image and architecture that ctr, Podman and Docker import. Start at [build].
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var cfg config
	var archs string
	fs := flag.NewFlagSet("images", flag.ContinueOnError)
	fs.StringVar(&cfg.bin, "bin", "out/images/bin", "directory with linux_ARCH/PROGRAM")
	fs.StringVar(&cfg.out, "out", "out/images/oci", "directory to write to; its content is replaced")
	fs.StringVar(&archs, "arch", "amd64,arm64", "architectures")
	fs.StringVar(&cfg.prefix, "prefix", "ghcr.io/darter-io", "registry and path of the images' names")
	fs.StringVar(&cfg.version, "version", "", "version, which is also the tag")
	fs.StringVar(&cfg.commit, "commit", "", "commit of the programs")
	fs.StringVar(&cfg.roots, "roots", "",
		"PEM file of the certificate authorities; default: Mozilla's, as pinned in go.mod")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if cfg.version == "" || fs.NArg() > 0 {
		return fmt.Errorf("usage: images -version v1.2.3 [-bin DIR] [-out DIR] [-arch LIST] [-prefix NAME] [-commit ID]")
	}
	// A tag has no plus, which semantic versions may have.
	cfg.version = strings.ReplaceAll(cfg.version, "+", "-")
	cfg.archs = strings.Split(archs, ",")
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH is the date of the images, in seconds since 1970, for example of "+
			"git log -1 --format=%%ct: %w", err)
	}
	cfg.created = time.Unix(epoch, 0).UTC()
	digests, err := build(cfg)
	if err != nil {
		return err
	}
	for _, k := range kinds {
		fmt.Printf("%s@%s\n", k.ref(cfg), digests[k.name])
	}
	return nil
}
