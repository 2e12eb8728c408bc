package registrytest

import (
	"bytes"
	"context"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
)

// memoryDriver is the storage of a registry without a directory: distribution's own driver, whose
// writer copies all that it has for each write of some KiB. The wrapped one writes once.
const memoryDriver = "registrytest-memory"

func init() { factory.Register(memoryDriver, memoryFactory{}) }

type memoryFactory struct{}

func (memoryFactory) Create(context.Context, map[string]any) (storagedriver.StorageDriver, error) {
	return memory{inmemory.New()}, nil
}

type memory struct{ *inmemory.Driver }

func (m memory) Writer(ctx context.Context, path string, appended bool) (storagedriver.FileWriter, error) {
	w, err := m.Driver.Writer(ctx, path, appended)
	if err != nil {
		return nil, err
	}
	return &memoryWriter{FileWriter: w}, nil
}

// memoryWriter holds what is written until it is committed or closed; distribution's writer
// does not count it in Size before, either.
type memoryWriter struct {
	storagedriver.FileWriter
	held bytes.Buffer
}

func (w *memoryWriter) Write(p []byte) (int, error) { return w.held.Write(p) }

func (w *memoryWriter) flush() error {
	_, err := w.held.WriteTo(w.FileWriter)
	return err
}

func (w *memoryWriter) Commit(ctx context.Context) error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.FileWriter.Commit(ctx)
}

func (w *memoryWriter) Close() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.FileWriter.Close()
}
