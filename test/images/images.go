package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// source is the address of the project in the labels.
const source = "https://github.com/darter-io/darter"

// nonroot is the user of images that need no root, as in other images on an empty base.
const nonroot = 65532

// kind is one image.
type kind struct {
	name, title string
	// programs are the files in /usr/bin; the first one is the entrypoint.
	programs []string
	// user is the numeric user and group. A dfdaemon writes to directories of its node, which belong to root.
	user  int
	ports []string
}

var kinds = []kind{
	{"supernode", "Darter supernode: seed and scheduler", []string{"supernode"}, nonroot,
		[]string{"65000/tcp", "65004/tcp", "65006/tcp", "65006/udp", "65009/tcp"}},
	{"dfdaemon", "Darter dfdaemon: registry mirror and peer, with dfget", []string{"dfdaemon", "dfget"}, 0,
		[]string{"65001/tcp", "65002/tcp", "65008/tcp"}},
}

// environment holds for every image.
var environment = []string{"PATH=/usr/bin", "DARTER_NODE_DATA_DIR=/var/lib/darter"}

// The users of every image.
const (
	group  = "root:x:0:\nnonroot:x:65532:\n"
	passwd = "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/var/lib/darter:/sbin/nologin\n"
)

// config is what a build depends on, and nothing else: equal values and programs give equal digests.
type config struct {
	// bin holds a directory linux_ARCH per architecture with the programs.
	bin   string
	archs []string
	// out is the directory to write to; what was there before is removed.
	out string
	// prefix is the registry and path of the images' names, such as ghcr.io/darter-io.
	prefix, version, commit string
	// created is the date of everything in the images.
	created time.Time
	// roots is the PEM file of the certificate authorities in the images; empty takes Mozilla's.
	roots string
}

// file is one entry of a layer.
type file struct {
	name string
	mode int64
	uid  int
	// open returns the content; nil is a directory.
	open func() (io.ReadCloser, error)
	size int64
}

func text(name string, mode int64, content []byte) file {
	return file{name: name, mode: mode, size: int64(len(content)),
		open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
}

func dir(name string, mode int64, uid int) file { return file{name: name, mode: mode, uid: uid} }

// build writes all images and returns the digest of each one's index by name.
func build(cfg config) (map[string]v1.Hash, error) {
	if err := os.RemoveAll(cfg.out); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.out, 0o755); err != nil {
		return nil, err
	}
	base, err := baseLayer(cfg)
	if err != nil {
		return nil, err
	}
	digests := map[string]v1.Hash{}
	for _, k := range kinds {
		index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
		index = mutate.Annotations(index, k.labels(cfg)).(v1.ImageIndex)
		for _, arch := range cfg.archs {
			img, err := k.image(cfg, base, arch)
			if err != nil {
				return nil, fmt.Errorf("building the image of %s for %s: %w", k.name, arch, err)
			}
			index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
				Descriptor: v1.Descriptor{Platform: platform(arch)}})
			name := fmt.Sprintf("%s_%s_linux_%s.tar", k.name, cfg.version, arch)
			if err := writeArchive(filepath.Join(cfg.out, name), k.ref(cfg), img, arch); err != nil {
				return nil, fmt.Errorf("writing %s: %w", name, err)
			}
		}
		at, err := layout.Write(filepath.Join(cfg.out, k.name), empty.Index)
		if err != nil {
			return nil, err
		}
		named := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": cfg.version,
			"io.containerd.image.name": k.ref(cfg)})
		if err := at.AppendIndex(index, named); err != nil {
			return nil, fmt.Errorf("writing the layout of %s: %w", k.name, err)
		}
		if digests[k.name], err = index.Digest(); err != nil {
			return nil, err
		}
	}
	return digests, nil
}

// ref is the full name of the image.
func (k kind) ref(cfg config) string { return cfg.prefix + "/" + k.name + ":" + cfg.version }

func (k kind) labels(cfg config) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":    k.title,
		"org.opencontainers.image.version":  cfg.version,
		"org.opencontainers.image.revision": cfg.commit,
		"org.opencontainers.image.created":  cfg.created.UTC().Format(time.RFC3339),
		"org.opencontainers.image.source":   source,
		"org.opencontainers.image.url":      source,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
}

// platform names an architecture as containerd does, which leaves out the only variant of arm64.
func platform(arch string) *v1.Platform { return &v1.Platform{OS: "linux", Architecture: arch} }

// image returns the image for one architecture.
func (k kind) image(cfg config, base v1.Layer, arch string) (v1.Image, error) {
	var programs []file
	for _, p := range k.programs {
		from := filepath.Join(cfg.bin, "linux_"+arch, p)
		info, err := os.Stat(from)
		if err != nil {
			return nil, err
		}
		programs = append(programs, file{name: "usr/bin/" + p, mode: 0o755, size: info.Size(),
			open: func() (io.ReadCloser, error) { return os.Open(from) }})
	}
	layer, err := newLayer(cfg.created, programs)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: cfg.created.UTC()}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img,
		mutate.Addendum{Layer: base, History: v1.History{CreatedBy: "certificate authorities, users", Created: created}},
		mutate.Addendum{Layer: layer,
			History: v1.History{CreatedBy: strings.Join(k.programs, ", "), Created: created}})
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created = "linux", arch, created
	cf.Config = v1.Config{
		User: fmt.Sprintf("%d:%d", k.user, k.user), Entrypoint: []string{"/usr/bin/" + k.programs[0]},
		Env: environment, WorkingDir: "/",
		Labels: k.labels(cfg), StopSignal: "SIGTERM", ExposedPorts: map[string]struct{}{},
	}
	for _, p := range k.ports {
		cf.Config.ExposedPorts[p] = struct{}{}
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, err
	}
	return mutate.Annotations(img, k.labels(cfg)).(v1.Image), nil
}

// baseLayer holds what every image needs besides its programs.
func baseLayer(cfg config) (v1.Layer, error) {
	roots, err := authorities(cfg.roots)
	if err != nil {
		return nil, err
	}
	return newLayer(cfg.created, []file{
		dir("etc/", 0o755, 0), text("etc/group", 0o644, []byte(group)), text("etc/passwd", 0o644, []byte(passwd)),
		dir("etc/ssl/", 0o755, 0), dir("etc/ssl/certs/", 0o755, 0),
		text("etc/ssl/certs/ca-certificates.crt", 0o644, roots),
		dir("tmp/", 0o1777, 0), dir("usr/", 0o755, 0), dir("usr/bin/", 0o755, 0), dir("var/", 0o755, 0),
		dir("var/lib/", 0o755, 0), dir("var/lib/darter/", 0o700, nonroot),
	})
}

// authorities returns the PEM of a file, or of Mozilla's list as go.mod pins it. It leaves out the authorities that
// Mozilla trusts under a condition only, because PEM cannot state it.
func authorities(path string) ([]byte, error) {
	if path != "" {
		b, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----")) {
			err = fmt.Errorf("%s holds no certificate in PEM", path)
		}
		return b, err
	}
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	if out.Len() == 0 {
		return nil, errors.New("the list of certificate authorities is empty")
	}
	return out.Bytes(), nil
}

// newLayer returns a layer with files of one date.
func newLayer(created time.Time, files []file) (v1.Layer, error) {
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.uid, Gid: f.uid, Size: f.size, Typeflag: tar.TypeReg,
			ModTime: created.Truncate(time.Second), Format: tar.FormatUSTAR}
		if f.open == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := add(w, h, f.open); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(all.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

func add(w *tar.Writer, h *tar.Header, open func() (io.ReadCloser, error)) error {
	if err := w.WriteHeader(h); err != nil || open == nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

// writeArchive writes the image of one architecture as a tar file that is an OCI layout, for ctr, nerdctl, Podman and
// Docker 25 and newer, and has the manifest.json of docker save, for older Docker.
func writeArchive(to, ref string, img v1.Image, arch string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(to), "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	at, err := layout.Write(tmp, empty.Index)
	if err != nil {
		return err
	}
	_, tag, _ := strings.Cut(path.Base(ref), ":")
	if err := at.AppendImage(img, layout.WithPlatform(*platform(arch)), layout.WithAnnotations(map[string]string{
		"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": tag,
	})); err != nil {
		return err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	blob := func(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }
	docker := tarball.Descriptor{Config: blob(manifest.Config.Digest), RepoTags: []string{ref}}
	for _, l := range manifest.Layers {
		docker.Layers = append(docker.Layers, blob(l.Digest))
	}
	b, err := json.Marshal(tarball.Manifest{docker})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "manifest.json"), b, 0o644); err != nil {
		return err
	}
	return pack(to, tmp)
}

// pack writes a tar file with the files below a directory, sorted, without dates and owners.
func pack(to, from string) (err error) {
	var names []string
	if err := filepath.WalkDir(from, func(at string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, at)
		}
		return err
	}); err != nil {
		return err
	}
	slices.Sort(names)
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := tar.NewWriter(out)
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: filepath.ToSlash(inside), Mode: 0o644, Size: info.Size(), Typeflag: tar.TypeReg,
			Format: tar.FormatUSTAR}
		if err := add(w, h, func() (io.ReadCloser, error) { return os.Open(name) }); err != nil {
			return err
		}
	}
	return w.Close()
}
