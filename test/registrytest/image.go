package registrytest

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Platforms are the default platforms of [NewIndex]; the first is [NewImage]'s.
var Platforms = []v1.Platform{
	{OS: "linux", Architecture: "amd64"},
	{OS: "linux", Architecture: "arm64", Variant: "v8"},
}

// Image is an OCI image of real gzip tar layers with incompressible files. The same seed and sizes give the same bytes
// on every machine, and no layer is ever held in memory.
type Image struct {
	v1.Image
	// Files is the SHA-256 (hex) of every regular file of the unpacked image, by its path without a leading slash:
	// later layers overwrite and delete files of earlier ones.
	Files map[string]string
}

// NewImage makes a linux/amd64 image. Each layer's compressed size is within 4 KiB of the requested size, and at least
// about 4 KiB.
func NewImage(seed uint64, layers []int64) (*Image, error) {
	return newImage(Platforms[0], seed, layers)
}

func newImage(platform v1.Platform, seed uint64, sizes []int64) (*Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	files := map[string]string{}
	adds := make([]mutate.Addendum, 0, len(sizes))
	for i, size := range sizes {
		l, err := newLayer(seed, i, i > 0 && i == len(sizes)-1, size)
		if err != nil {
			return nil, fmt.Errorf("making layer %d of image %d: %w", i, seed, err)
		}
		for _, name := range l.deleted {
			delete(files, name)
		}
		maps.Copy(files, l.files)
		adds = append(adds, mutate.Addendum{Layer: l,
			History: v1.History{CreatedBy: fmt.Sprintf("registrytest layer %d", i), Created: epoch}})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, fmt.Errorf("appending the layers of image %d: %w", seed, err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the config of image %d: %w", seed, err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Created = epoch
	config.Config.Cmd = []string{"/bin/tool-0"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, fmt.Errorf("writing the config of image %d: %w", seed, err)
	}
	return &Image{Image: img, Files: files}, nil
}

// ociIndex lets Index embed a v1.ImageIndex without a field that is called like its method ImageIndex.
type ociIndex interface{ v1.ImageIndex }

// Index is an OCI index of one image per platform.
type Index struct {
	ociIndex
	// Images by platform ("linux/amd64").
	Images map[string]*Image
}

// NewIndex makes an index with one image per platform, by default for [Platforms]. The images share no layer.
func NewIndex(seed uint64, layers []int64, platforms ...v1.Platform) (*Index, error) {
	if len(platforms) == 0 {
		platforms = Platforms
	}
	out := &Index{Images: map[string]*Image{}}
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for k, p := range platforms {
		img, err := newImage(p, seed<<8+uint64(k)+1, layers)
		if err != nil {
			return nil, err
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img.Image, Descriptor: v1.Descriptor{Platform: &p}})
		out.Images[p.OS+"/"+p.Architecture] = img
	}
	out.ociIndex = idx
	return out, nil
}

// Object is one manifest or blob of an image.
type Object struct {
	// Kind is "index", "manifest", "config" or "layer".
	Kind      string `json:"kind"`
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // bytes, compressed
}

// Content lists all objects of an image or an index.
type Content struct {
	// Digest of the top manifest.
	Digest string `json:"digest"`
	// Objects lists each object once, manifests before the objects that they name.
	Objects []Object `json:"objects"`
}

// Bytes returns the sum of all objects' sizes: the bytes that a registry sends if it sends each once.
func (c Content) Bytes() (n int64) {
	for _, o := range c.Objects {
		n += o.Size
	}
	return n
}

// Object finds an object by its digest.
func (c Content) Object(digest string) (Object, bool) {
	for _, o := range c.Objects {
		if o.Digest == digest {
			return o, true
		}
	}
	return Object{}, false
}

// Layers lists the objects that are layers.
func (c Content) Layers() (out []Object) {
	for _, o := range c.Objects {
		if o.Kind == "layer" {
			out = append(out, o)
		}
	}
	return out
}

type described interface {
	Digest() (v1.Hash, error)
	MediaType() (types.MediaType, error)
	Size() (int64, error)
}

func (c *Content) add(kind string, d described) error {
	digest, err := d.Digest()
	if err != nil {
		return err
	}
	mediaType, err := d.MediaType()
	if err != nil {
		return err
	}
	size, err := d.Size()
	if err != nil {
		return err
	}
	c.addObject(Object{Kind: kind, Digest: digest.String(), MediaType: string(mediaType), Size: size})
	return nil
}

func (c *Content) addObject(o Object) {
	if c.Digest == "" {
		c.Digest = o.Digest
	}
	if _, ok := c.Object(o.Digest); !ok {
		c.Objects = append(c.Objects, o)
	}
}

// Describe lists the objects of an image.
func Describe(img v1.Image) (Content, error) {
	var c Content
	return c, c.addImage(img)
}

func (c *Content) addImage(img v1.Image) error {
	if err := c.add("manifest", img); err != nil {
		return fmt.Errorf("describing a manifest: %w", err)
	}
	m, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("reading a manifest: %w", err)
	}
	c.addObject(Object{Kind: "config", Digest: m.Config.Digest.String(), MediaType: string(m.Config.MediaType),
		Size: m.Config.Size})
	for _, l := range m.Layers {
		c.addObject(Object{Kind: "layer", Digest: l.Digest.String(), MediaType: string(l.MediaType), Size: l.Size})
	}
	return nil
}

// DescribeIndex lists the objects of an index and of all its images.
func DescribeIndex(idx v1.ImageIndex) (Content, error) {
	var c Content
	if err := c.add("index", idx); err != nil {
		return c, fmt.Errorf("describing an index: %w", err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return c, fmt.Errorf("reading an index: %w", err)
	}
	for _, d := range m.Manifests {
		img, err := idx.Image(d.Digest)
		if err != nil {
			return c, fmt.Errorf("reading image %s of an index: %w", d.Digest, err)
		}
		if err := c.addImage(img); err != nil {
			return c, err
		}
	}
	return c, nil
}

var epoch = v1.Time{Time: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)}

// layer generates its bytes at each read.
type layer struct {
	seed    uint64
	number  int
	last    bool  // the last layer deletes a file of the first one
	payload int64 // random bytes in its two large files

	digest, diffID v1.Hash
	size           int64
	files          map[string]string
	deleted        []string
}

func newLayer(seed uint64, number int, last bool, size int64) (*layer, error) {
	l := &layer{seed: seed, number: number, last: last}
	// Write the layer once to measure its size without payload. A stored block of 65535 bytes takes 5 more bytes
	// (RFC 1951 §3.2.4).
	bare, err := l.measure()
	if err != nil {
		return nil, err
	}
	if l.payload = max(0, size-bare); l.payload == 0 {
		return l, nil
	}
	l.payload -= l.payload / (1 << 16) * 5
	_, err = l.measure()
	return l, err
}

func (l *layer) measure() (int64, error) {
	compressed, plain := sha256.New(), sha256.New()
	var n countingWriter
	files, err := l.write(io.MultiWriter(compressed, &n), plain)
	if err != nil {
		return 0, err
	}
	l.files, l.size = files, int64(n)
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(compressed.Sum(nil))}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(plain.Sum(nil))}
	return int64(n), nil
}

// write writes the gzip stream to compressed and the tar stream to plain, and returns the digests of the files.
func (l *layer) write(compressed, plain io.Writer) (map[string]string, error) {
	// Random bytes do not compress, so stored blocks are as small and cost no CPU.
	zw, err := gzip.NewWriterLevel(compressed, gzip.NoCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, plain))
	files := map[string]string{}
	file := func(name string, mode, size int64, content io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size,
			ModTime: epoch.Time}); err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(tw, h), content, size); err != nil {
			return err
		}
		files[name] = hex.EncodeToString(h.Sum(nil))
		return nil
	}
	text := func(name string, mode int64, s string) error {
		return file(name, mode, int64(len(s)), strings.NewReader(s))
	}
	rng := rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "registrytest %d %d", l.seed, l.number)))
	dir := fmt.Sprintf("layers/%d", l.number)
	small := l.payload / 4
	steps := []func() error{
		func() error { return l.dir(tw, "bin/") },
		func() error { return l.dir(tw, "etc/") },
		func() error { return l.dir(tw, "layers/") },
		func() error { return l.dir(tw, dir+"/") },
		func() error { return text("etc/version", 0o644, fmt.Sprintf("image %d layer %d\n", l.seed, l.number)) },
		func() error {
			return text(fmt.Sprintf("bin/tool-%d", l.number), 0o755,
				fmt.Sprintf("#!/bin/sh\necho layer %d\n", l.number))
		},
		func() error {
			return text(path.Join(dir, "readme.txt"), 0o600, fmt.Sprintf("This is layer %d.\n", l.number))
		},
		func() error { return file(path.Join(dir, "small.bin"), 0o644, small, rng) },
		func() error { return file(path.Join(dir, "large.bin"), 0o444, l.payload-small, rng) },
		func() error {
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: path.Join(dir, "latest"),
				Linkname: "large.bin",
				Mode:     0o777, ModTime: epoch.Time})
		},
	}
	if l.last {
		steps = append(steps, func() error {
			l.deleted = []string{"layers/0/readme.txt"}
			return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "layers/0/.wh.readme.txt", Mode: 0o600,
				ModTime: epoch.Time})
		})
	}
	for _, step := range append(steps, tw.Close, zw.Close) {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (l *layer) dir(tw *tar.Writer, name string) error {
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: epoch.Time})
}

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return l.open(true), nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return l.open(false), nil }
func (l *layer) String() string                       { return l.digest.String() }

// open writes the layer to a pipe; Close stops the writer and waits for it.
func (l *layer) open(compressed bool) io.ReadCloser {
	// write sets c.deleted, so it gets a copy.
	c := *l
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		if compressed {
			_, err = c.write(pw, io.Discard)
		} else {
			_, err = c.write(io.Discard, pw)
		}
		pw.CloseWithError(err)
	}()
	return &layerReader{PipeReader: pr, done: done}
}

type layerReader struct {
	*io.PipeReader
	done <-chan struct{}
}

func (r *layerReader) Close() error {
	err := r.PipeReader.Close()
	<-r.done
	return err
}

type countingWriter int64

func (n *countingWriter) Write(p []byte) (int, error) {
	*n += countingWriter(len(p))
	return len(p), nil
}
