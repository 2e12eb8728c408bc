// Command cripull pulls an image like Kubernetes, with the CRI of a container runtime, and prints the image's ID.
//
// It never connects to a registry itself: the runtime resolves, fetches and unpacks, with its own configuration.
//
//	cripull -socket /run/containerd/containerd.sock docker.io/library/app:v1
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cripull:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("cripull", flag.ContinueOnError)
	socket := flags.String("socket", "/run/containerd/containerd.sock", "socket of the runtime")
	user := flags.String("user", "", "user of an imagePullSecret; the password is in CRIPULL_PASSWORD")
	limit := flags.Duration("timeout", time.Minute, "timeout of the pull")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("which image?")
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: flags.Arg(0)}}
	if *user != "" {
		request.Auth = &cri.AuthConfig{Username: *user, Password: os.Getenv("CRIPULL_PASSWORD")}
	}
	pulled, err := cri.NewImageServiceClient(conn).PullImage(ctx, request)
	if err != nil {
		return fmt.Errorf("pulling %s: %w", flags.Arg(0), err)
	}
	fmt.Println(pulled.ImageRef)
	return nil
}
