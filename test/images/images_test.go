package main

import (
	"archive/tar"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// programs writes files in place of programs: their content is no matter of this package.
func programs(t *testing.T) string {
	bin := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		dir := filepath.Join(bin, "linux_"+arch)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		for _, p := range []string{"supernode", "dfdaemon", "dfget"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, p), []byte(p+" for "+arch), 0o700))
		}
	}
	return bin
}

func settings(t *testing.T, bin string) config {
	return config{bin: bin, archs: []string{"amd64", "arm64"}, out: filepath.Join(t.TempDir(), "oci"),
		prefix: "registry.test/darter", version: "v1.2.3", commit: "0123abc", created: time.Unix(1700000000, 0)}
}

// unpacked returns the entries of an image by name, and the contents of its files.
func unpacked(t *testing.T, img v1.Image) (map[string]*tar.Header, map[string]string) {
	entries, contents := map[string]*tar.Header{}, map[string]string{}
	all := mutate.Extract(img)
	defer all.Close()
	for r := tar.NewReader(all); ; {
		h, err := r.Next()
		if err == io.EOF {
			return entries, contents
		}
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		name := strings.TrimSuffix(h.Name, "/")
		entries[name], contents[name] = h, string(b)
	}
}

func TestImages(t *testing.T) {
	cfg := settings(t, programs(t))
	digests, err := build(cfg)
	require.NoError(t, err)
	for _, k := range kinds {
		at, err := layout.FromPath(filepath.Join(cfg.out, k.name))
		require.NoError(t, err)
		top, err := at.ImageIndex()
		require.NoError(t, err)
		list, err := top.IndexManifest()
		require.NoError(t, err)
		require.Len(t, list.Manifests, 1)
		assert.Equal(t, digests[k.name], list.Manifests[0].Digest)
		assert.Equal(t, "registry.test/darter/"+k.name+":v1.2.3", list.Manifests[0].Annotations["io.containerd.image.name"])
		index, err := top.ImageIndex(digests[k.name])
		require.NoError(t, err)
		require.NoError(t, validate.Index(index))
		platforms, err := index.IndexManifest()
		require.NoError(t, err)
		assert.Equal(t, types.OCIImageIndex, platforms.MediaType)
		require.Len(t, platforms.Manifests, 2)
		for i, arch := range cfg.archs {
			d := platforms.Manifests[i]
			assert.Equal(t, &v1.Platform{OS: "linux", Architecture: arch}, d.Platform)
			img, err := index.Image(d.Digest)
			require.NoError(t, err)
			checkImage(t, k, arch, img)

			file := filepath.Join(cfg.out, k.name+"_v1.2.3_linux_"+arch+".tar")
			checkArchive(t, file, k.ref(cfg), d.Digest, img)
		}
	}
}

func checkImage(t *testing.T, k kind, arch string, img v1.Image) {
	cf, err := img.ConfigFile()
	require.NoError(t, err)
	assert.Equal(t, arch, cf.Architecture)
	assert.Equal(t, "linux", cf.OS)
	assert.Equal(t, int64(1700000000), cf.Created.Unix())
	assert.Equal(t, []string{"/usr/bin/" + k.name}, cf.Config.Entrypoint)
	assert.Equal(t, map[string]string{"supernode": "65532:65532", "dfdaemon": "0:0"}[k.name], cf.Config.User)
	assert.Contains(t, cf.Config.Env, "PATH=/usr/bin")
	manifest, err := img.Manifest()
	require.NoError(t, err)
	for name, want := range map[string]string{"version": "v1.2.3", "revision": "0123abc", "licenses": "Apache-2.0",
		"source": source, "created": "2023-11-14T22:13:20Z", "title": k.title} {
		name = "org.opencontainers.image." + name
		assert.Equal(t, want, cf.Config.Labels[name])
		assert.Equal(t, want, manifest.Annotations[name])
	}
	entries, contents := unpacked(t, img)
	for _, p := range []string{"supernode", "dfdaemon", "dfget"} {
		h := entries["usr/bin/"+p]
		has := p == k.name || p == "dfget" && k.name == "dfdaemon"
		require.Equal(t, has, h != nil, "%s in %s", p, k.name)
		if has {
			assert.Equal(t, p+" for "+arch, contents["usr/bin/"+p])
			assert.Equal(t, int64(0o755), h.Mode)
		}
	}
	for name, h := range entries {
		assert.Equal(t, int64(1700000000), h.ModTime.Unix(), name)
		if name != "tmp" {
			assert.Zero(t, h.Mode&0o022, "%s is for its owner to change", name)
		}
	}
	assert.Equal(t, nonroot, entries["var/lib/darter"].Uid)
	pool, roots := x509.NewCertPool(), contents["etc/ssl/certs/ca-certificates.crt"]
	require.True(t, pool.AppendCertsFromPEM([]byte(roots)))
	n := 0
	for block, rest := pem.Decode([]byte(roots)); block != nil; block, rest = pem.Decode(rest) {
		n++
	}
	assert.Greater(t, n, 100)
}

// checkArchive reads a tar file as Docker before 25 does, and as an OCI layout.
func checkArchive(t *testing.T, file, ref string, digest v1.Hash, img v1.Image) {
	old, err := tarball.ImageFromPath(file, nil)
	require.NoError(t, err)
	require.NoError(t, validate.Image(old))
	got, err := old.ConfigName()
	require.NoError(t, err)
	want, err := img.ConfigName()
	require.NoError(t, err)
	assert.Equal(t, want, got)

	dir := t.TempDir()
	in, err := os.Open(file)
	require.NoError(t, err)
	defer in.Close()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		require.NoError(t, os.MkdirAll(filepath.Dir(to), 0o755))
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(to, b, 0o644))
	}
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	require.NoError(t, err)
	var entries tarball.Manifest
	require.NoError(t, json.Unmarshal(b, &entries))
	require.Len(t, entries, 1)
	assert.Equal(t, []string{ref}, entries[0].RepoTags)
	at, err := layout.FromPath(dir)
	require.NoError(t, err)
	one, err := at.Image(digest)
	require.NoError(t, err)
	require.NoError(t, validate.Image(one))
	list, err := at.ImageIndex()
	require.NoError(t, err)
	top, err := list.IndexManifest()
	require.NoError(t, err)
	require.Len(t, top.Manifests, 1)
	assert.Equal(t, ref, top.Manifests[0].Annotations["io.containerd.image.name"])
}

func TestEqualBuildsHaveEqualDigests(t *testing.T) {
	bin := programs(t)
	first, second := settings(t, bin), settings(t, bin)
	a, err := build(first)
	require.NoError(t, err)
	// Neither the dates and modes of files nor the time zone of the building machine count.
	require.NoError(t, filepath.WalkDir(bin, func(path string, _ os.DirEntry, err error) error {
		require.NoError(t, err)
		require.NoError(t, os.Chmod(path, 0o777))
		return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
	}))
	second.created = second.created.In(time.FixedZone("x", 3600))
	b, err := build(second)
	require.NoError(t, err)
	assert.Equal(t, a, b)
	for _, name := range []string{"supernode_v1.2.3_linux_arm64.tar", "dfdaemon_v1.2.3_linux_amd64.tar"} {
		x, err := os.ReadFile(filepath.Join(first.out, name))
		require.NoError(t, err)
		y, err := os.ReadFile(filepath.Join(second.out, name))
		require.NoError(t, err)
		assert.Equal(t, x, y, name)
	}
	second.commit = "another"
	c, err := build(second)
	require.NoError(t, err)
	assert.NotEqual(t, a, c)
}

// The Dockerfile makes the same images.
func TestDockerfile(t *testing.T) {
	b, err := os.ReadFile("../../deploy/Dockerfile")
	require.NoError(t, err)
	stages := strings.Split(string(b), "\nFROM ")
	for _, k := range kinds {
		var stage string
		for _, s := range stages {
			if strings.HasPrefix(s, "scratch AS "+k.name+"\n") {
				stage = s
			}
		}
		require.NotEmpty(t, stage, k.name)
		for _, line := range []string{
			"COPY --from=build /src/bin/" + strings.Join(k.programs, " /src/bin/") + " /usr/bin/",
			"ENV " + strings.Join(environment, " "),
			"EXPOSE " + strings.Join(k.ports, " "),
			fmt.Sprintf("USER %d:%d", k.user, k.user),
			"ENTRYPOINT [\"/usr/bin/" + k.name + "\"]",
		} {
			assert.Contains(t, stage, "\n"+line+"\n")
		}
	}
	for _, line := range strings.Split(passwd+group, "\n") {
		assert.Contains(t, string(b), line)
	}
}

func TestImagesErrors(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	require.ErrorContains(t, run([]string{"-version", "v1"}), "SOURCE_DATE_EPOCH is the date of the images")
	require.ErrorContains(t, run(nil), "usage: images -version")
	cfg := settings(t, t.TempDir())
	_, err := build(cfg)
	require.ErrorContains(t, err, "building the image of supernode for amd64")
	cfg.roots = filepath.Join(t.TempDir(), "roots.pem")
	require.NoError(t, os.WriteFile(cfg.roots, []byte("none"), 0o600))
	_, err = build(cfg)
	require.ErrorContains(t, err, "holds no certificate in PEM")
}
