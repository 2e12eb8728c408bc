package clients_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/test/clients"
	"github.com/darter-io/darter/test/registrytest"
)

// peculiarClients are libraries that differ in what they survive; the others share their code.
var peculiarClients = []string{"containerd-2", "containers-image", "crane", "docker", "oras"}

// TestPeculiarRegistries has public images in registries that differ from distribution: what a library pulls directly,
// it pulls through Darter, and the registry sends it once.
func TestPeculiarRegistries(t *testing.T) {
	each(t, func(t *testing.T, l clients.Library) {
		if !slices.Contains(peculiarClients, l.Name) {
			t.Skip("this library shares its code with one of " + strings.Join(peculiarClients, ", "))
		}
		for _, peculiar := range registrytest.Peculiarities() {
			t.Run(peculiar.Name, func(t *testing.T) {
				cfg := peculiar.Config
				if !cfg.TLS { // the libraries could not verify a token service with TLS
					cfg.Auth, cfg.Users = registrytest.Bearer, map[string]registrytest.User{"": {Pull: []string{"*"}}}
				}
				r := registrytest.Start(t, cfg)
				var upstream []string
				if r.CA() != nil {
					file := filepath.Join(t.TempDir(), "ca.pem")
					require.NoError(t, os.WriteFile(file, r.CA(), 0o600))
					upstream = []string{"ca: " + file}
				}
				s := newSiteOf(t, r, upstream...)
				p := pushBoth(t, r)
				var direct error
				if r.CA() == nil { // the libraries speak plain HTTP here
					direct = l.Pull(t.Context(), clients.Request{
						Mirror: r.Host(), Repository: p.Repository, Reference: "v1", Dir: pulledDir(t),
					})
				}
				r.Reset()
				for range 2 {
					dir, err := s.pull(l, p.Repository, "v1", login{})
					if direct != nil {
						t.Logf("directly: %v\nthrough Darter: %v", direct, err)
						continue
					}
					require.NoError(t, err)
					requireRight(t, dir, p.Objects)
				}
				assert.Less(t, r.Counts().Egress, p.Bytes()+50e3, "each blob once, and small answers")
			})
		}
	})
}

// pushBoth pushes an image under its name and under the name by which clients without mirrors ask a mirror for it.
func pushBoth(t *testing.T, r *registrytest.Registry) (p registrytest.Pushed) {
	t.Helper()
	img, err := registrytest.NewImage(9, []int64{300e3, 50e3})
	require.NoError(t, err)
	for _, repository := range []string{clients.Registry + "/lib/app", "lib/app"} {
		p, err = r.Push(t.Context(), repository, "v1", img)
		require.NoError(t, err)
	}
	return p
}

// TestReferrers has a registry without the referrers API, whose 404 is plain text: oras finds the referrers by their
// tag, directly and through Darter.
func TestReferrers(t *testing.T) {
	r := registrytest.Start(t, registrytest.Config{})
	s := newSiteOf(t, r)
	p := pushBoth(t, r)
	signature, err := registrytest.NewImage(10, []int64{1000})
	require.NoError(t, err)
	referrers := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: signature})
	for _, repository := range []string{clients.Registry + "/lib/app", "lib/app"} {
		_, err = r.PushIndex(t.Context(), repository, strings.Replace(p.Digest, ":", "-", 1), referrers)
		require.NoError(t, err)
	}
	want, err := signature.Digest()
	require.NoError(t, err)
	for _, mirror := range []string{r.Host(), s.mirror} {
		found, err := clients.OrasDiscover(context.Background(),
			clients.Request{Mirror: mirror, Repository: "lib/app", Reference: "v1"})
		require.NoError(t, err)
		require.Len(t, found, 1)
		assert.Equal(t, want.String(), found[0].Digest.String())
	}
}
