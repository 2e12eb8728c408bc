package kind

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/darter-io/darter/test/registrytest"
)

// fileLayer returns a layer with files, which are executable, and links, both by name in the layer, and directories
// that everyone may write to.
func fileLayer(files, links map[string]string, open ...string) (v1.Layer, error) {
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	dirs := map[string]int64{}
	for _, names := range [][]string{slices.Collect(maps.Keys(files)), slices.Collect(maps.Keys(links))} {
		for _, n := range names {
			for d := path.Dir(n); d != "."; d = path.Dir(d) {
				dirs[d] = 0o755
			}
		}
	}
	for _, d := range open {
		dirs[d] = 0o1777
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: dirs[d]}); err != nil {
			return nil, err
		}
	}
	for _, n := range slices.Sorted(maps.Keys(files)) {
		b, err := os.ReadFile(files[n])
		if err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o755, Size: int64(len(b))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
	}
	for _, n := range slices.Sorted(maps.Keys(links)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: links[n]}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(all.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1), tarball.WithCompressedCaching)
}

// program returns an image with one more layer, which runs one program.
func program(base v1.Image, entrypoint string, more ...v1.Layer) (v1.Image, error) {
	base = mutate.ConfigMediaType(mutate.MediaType(base, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, more...)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = registrytest.Platforms[0].OS, registrytest.Platforms[0].Architecture
	config.Config.Cmd = nil
	config.Config.Entrypoint = []string{entrypoint}
	config.Config.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"}
	return mutate.ConfigFile(img, config)
}

// writeArchive writes images by name to an archive for ctr images import.
func writeArchive(file string, images map[string]v1.Image) error {
	byName := map[name.Reference]v1.Image{}
	for n, img := range images {
		ref, err := name.NewTag(n)
		if err != nil {
			return err
		}
		byName[ref] = img
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tarball.MultiRefWrite(byName, f); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return f.Close()
}

// workload makes images whose containers run and do nothing. No image of the node has their first layer, which the name
// decides. Layers with the same seed and place are equal.
type workload struct {
	name string
	app  v1.Layer
}

func newWorkload(name, pause string) (workload, error) {
	l, err := fileLayer(map[string]string{name: pause}, nil)
	return workload{name, l}, err
}

// part is some layers of an image.
type part struct {
	seed  uint64
	sizes []int64
}

func (w workload) image(parts ...part) (v1.Image, error) {
	var layers []v1.Layer
	for _, p := range parts {
		img, err := registrytest.NewImage(p.seed, p.sizes)
		if err != nil {
			return nil, err
		}
		ls, err := img.Layers()
		if err != nil {
			return nil, err
		}
		layers = append(layers, ls...)
	}
	return program(empty.Image, "/"+w.name, append([]v1.Layer{w.app}, layers...)...)
}
