package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/cli"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

const (
	oldSecret = secret.String("0f1e2d3c4b5a69788796a5b4c3d2e1f0")
	newSecret = secret.String("a7b3c9d1e5f2081726354453627180fe")
)

// storeSigned stores an empty task with the certificate of a coordinator that has one secret.
func storeSigned(t *testing.T, n *Node, i int, under secret.String) (id task.ID, der []byte) {
	t.Helper()
	id = task.ID(fmt.Sprintf("sha256:%064x", i))
	r, err := n.Store.Create(id, piece.Metadata{Length: 100_000, PieceSize: 65536})
	require.NoError(t, err)
	defer r.Close()
	own, err := identity.New(identity.Config{Secret: under, HostID: host.NewID()})
	require.NoError(t, err)
	signer, err := identity.NewSigner(own)
	require.NoError(t, err)
	der = signer.Certificate()
	require.NoError(t, r.AddRuns(nil, [][]byte{der}))
	return id, der
}

// acceptedUnder returns how many of a task's certificates a host with one secret accepts.
func acceptedUnder(t *testing.T, n *Node, id task.ID, s secret.String) (count int) {
	t.Helper()
	own, err := identity.New(identity.Config{Secret: s, HostID: host.NewID()})
	require.NoError(t, err)
	v := identity.NewVerifier(own)
	r, err := n.Store.Open(id)
	require.NoError(t, err)
	defer r.Close()
	_, certs := r.Runs()
	for _, der := range certs {
		if _, err := v.AddCertificate(der); err == nil {
			count++
		}
	}
	return count
}

// followed waits until the node has done all work for a change of the secret.
func followed(t *testing.T, n *Node) {
	t.Helper()
	require.Eventually(t, func() bool { return !n.Status().RenewingProofs }, time.Minute, time.Millisecond)
}

// untilEnd is a server that does nothing: a node without any ends at once.
func untilEnd(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestStoredSignaturesAreRenewed(t *testing.T) {
	for name, restart := range map[string]bool{"by a reload": false, "by a restart": true} {
		t.Run(name, func(t *testing.T) {
			cfg := settings(t)
			cfg.Cluster.Secret = oldSecret
			n := build(t, cfg)
			var ids []task.ID
			for i := range 3 {
				id, _ := storeSigned(t, n, i, oldSecret)
				ids = append(ids, id)
			}
			stranger, _ := storeSigned(t, n, 3, "ffeeddccbbaa99887766554433221100")
			run := func() (stop func()) {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- n.Run(ctx, []Part{untilEnd}, nil) }()
				return func() { cancel(); require.NoError(t, <-ended) }
			}
			stop := run()
			followed(t, n)
			assert.Zero(t, acceptedUnder(t, n, ids[0], newSecret))
			cfg.Cluster.Secret = newSecret + "\n" + oldSecret
			if restart {
				stop()
				n = build(t, cfg)
				stop = run()
			} else {
				require.NoError(t, n.Reload(Limits{Cache: cfg.Cache, Origins: cfg.Origins, Cluster: cfg.Cluster}))
			}
			defer func() { stop() }()
			followed(t, n)
			for _, id := range ids {
				assert.Equal(t, 1, acceptedUnder(t, n, id, newSecret))
				assert.Equal(t, 1, acceptedUnder(t, n, id, oldSecret), "hosts without the new secret still accept it")
			}
			assert.Zero(t, acceptedUnder(t, n, stranger, newSecret))
			var page strings.Builder
			require.NoError(t, cli.WriteStatus(&page, n.Status(), time.Now()))
			assert.Regexp(t, `(?m)^secret +[0-9a-f]{12} the first, which this host uses: 0 connections`, page.String())
			assert.Regexp(t, `(?m)^secret +[0-9a-f]{12} also accepted: 0 connections of others, not used`,
				page.String())
			for _, s := range []secret.String{oldSecret, newSecret} {
				assert.NotContains(t, page.String(), s.Reveal())
			}
		})
	}
}

func TestReloadOfABadSecretChangesNothing(t *testing.T) {
	cfg := settings(t)
	cfg.Cluster.Secret, cfg.Upload.UploadSlots = oldSecret, 3
	n := build(t, cfg)
	defer func() { require.NoError(t, n.Close()) }()
	before := n.Identity.Accepted()
	for text, want := range map[secret.String]string{
		"":                                     "restart",
		newSecret + "\ntooshort":               "line 2 of 2",
		newSecret[:16] + "\n" + newSecret[16:]: "join the lines",
	} {
		next := Limits{Cache: cfg.Cache, Origins: cfg.Origins, Cluster: config.Cluster{Secret: text},
			Upload: config.Upload{UploadSlots: 7}}
		require.ErrorContains(t, n.Reload(next), want)
		assert.Equal(t, before, n.Identity.Accepted())
		assert.Equal(t, 3, n.Engine.Stats().UploadSlotsMax)
	}
	next := Limits{Cache: cfg.Cache, Origins: cfg.Origins,
		Cluster: config.Cluster{Secret: newSecret + "\n" + oldSecret}}
	bad := next
	bad.Origins.Upstreams = []config.Upstream{{Host: "ghcr.io", CA: "/nowhere/missing.pem"}}
	require.ErrorContains(t, n.Reload(bad), "missing.pem")
	assert.Equal(t, before, n.Identity.Accepted(), "a reload that fails for another reason changes no secret")
	key := n.NamesKey()
	require.NoError(t, n.Reload(next))
	assert.Len(t, n.Identity.Accepted(), 2)
	assert.NotEqual(t, key, n.NamesKey())
}
