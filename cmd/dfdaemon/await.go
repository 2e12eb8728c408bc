package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/cli"
)

// await is the command that waits in a pod of Kubernetes. The image has no shell, and the hooks of the Helm chart wait.
func await() cli.Command {
	var timeout time.Duration
	return cli.Command{
		Use:   "await signal|daemonset/NAMESPACE/NAME",
		Short: "Wait in a pod of Kubernetes, for a signal or for a DaemonSet",
		Long: `Await signal waits for SIGTERM: the containers of a DaemonSet must not end, even if their work is done.
Await daemonset/NAMESPACE/NAME waits until that DaemonSet is ready on every node. It asks the API of the
cluster with the service account of its pod, which needs the right to get that DaemonSet.`,
		Args:    cobra.ExactArgs(1),
		Lenient: true,
		Flags: func(fs *pflag.FlagSet) {
			fs.DurationVar(&timeout, "timeout", 4*time.Minute, "how long to wait for the DaemonSet")
		},
		Run: func(ctx context.Context, args []string, stdout io.Writer) error {
			if args[0] == "signal" {
				<-ctx.Done()
				return nil
			}
			parts := strings.Split(args[0], "/")
			if len(parts) != 3 || parts[0] != "daemonset" || parts[1] == "" || parts[2] == "" {
				return cli.Usage(fmt.Errorf("%q is neither signal nor daemonset/NAMESPACE/NAME", args[0]))
			}
			c, err := inCluster(accountDir, os.Getenv)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return c.awaitDaemonSet(ctx, parts[1], parts[2], time.Second, stdout)
		},
	}
}

const (
	// accountDir is where Kubernetes mounts the token of the pod's service account.
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	// replyMax bounds an answer of the API, in bytes, and replyTime the wait for it.
	replyMax  = 1 << 20
	replyTime = 10 * time.Second
)

// kubernetes is the API of the cluster that this pod belongs to, with the rights of the pod's service account.
type kubernetes struct {
	url, token string
	client     *http.Client
}

// inCluster returns the API of the cluster that this pod belongs to. dir holds the account's token.
func inCluster(dir string, getenv func(string) string) (*kubernetes, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST is not set: this command runs in a pod of Kubernetes only")
	}
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return nil, fmt.Errorf("reading the token of the service account: %w; set automountServiceAccountToken", err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("reading the authority of the cluster: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, "ca.crt"))
	}
	return &kubernetes{
		url: "https://" + net.JoinHostPort(host, cmp.Or(port, "443")), token: strings.TrimSpace(string(token)),
		client: &http.Client{Timeout: replyTime, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}},
	}, nil
}

// daemonSet is what a DaemonSet says of its progress. The status is about the generation that it observed.
type daemonSet struct {
	Metadata struct {
		Generation int64 `json:"generation"`
	} `json:"metadata"`
	Status struct {
		ObservedGeneration int64 `json:"observedGeneration"`
		Desired            int   `json:"desiredNumberScheduled"`
		Ready              int   `json:"numberReady"`
	} `json:"status"`
}

// awaitDaemonSet asks for a DaemonSet at each interval until it is ready on every node, or ctx ends. A refusal or a
// silent API may pass: roles take a moment to hold.
func (k *kubernetes) awaitDaemonSet(ctx context.Context, namespace, name string, interval time.Duration,
	out io.Writer) error {
	asked, last := time.NewTicker(interval), ""
	defer asked.Stop()
	for {
		d, err := k.daemonSet(ctx, namespace, name)
		now := fmt.Sprintf("ready on %d of %d nodes", d.Status.Ready, d.Status.Desired)
		switch {
		case err != nil:
			now = err.Error()
		case d.Metadata.Generation == 0 || d.Status.ObservedGeneration < d.Metadata.Generation:
			now = "its controller has not seen it yet"
		case d.Status.Ready >= d.Status.Desired:
			fmt.Fprintf(out, "%s/%s: %s\n", namespace, name, now)
			return nil
		}
		if ctx.Err() == nil && now != last {
			last = now
			fmt.Fprintf(out, "%s/%s: %s\n", namespace, name, now)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the DaemonSet %s/%s: %w; at last: %s. See the other nodes with: "+
				"kubectl --namespace %s get pods --output wide", namespace, name, ctx.Err(), last, namespace)
		case <-asked.C:
		}
	}
}

// daemonSet reads a DaemonSet.
func (k *kubernetes) daemonSet(ctx context.Context, namespace, name string) (d daemonSet, err error) {
	at := k.url + "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/" + name
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return d, err
	}
	req.Header.Set("Authorization", "Bearer "+k.token)
	req.Header.Set("Accept", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return d, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return d, fmt.Errorf("the API of the cluster answers %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, replyMax)).Decode(&d); err != nil {
		return d, fmt.Errorf("reading the answer of the API of the cluster: %w", err)
	}
	return d, nil
}
