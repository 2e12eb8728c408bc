package diskstore_test

import (
	"crypto/sha256"
	"hash/crc32"
	"hash/maphash"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkServing measures the cost of checks of served bytes (docs/storage.md): the CPU time of the sending thread
// per GiB from the page cache to a loopback connection, for each kind of check.
func BenchmarkServing(b *testing.B) {
	const size, block = 64 << 20, 256 << 10
	path := filepath.Join(b.TempDir(), "data")
	require.NoError(b, os.WriteFile(path, make([]byte, size), 0o600))
	castagnoli, seed := crc32.MakeTable(crc32.Castagnoli), maphash.MakeSeed()
	checks := map[string]func([]byte){
		"nothing": func([]byte) {},
		"CRC-32C": func(p []byte) { crc32.Checksum(p, castagnoli) },
		"maphash": func(p []byte) { maphash.Bytes(seed, p) },
		"SHA-256": func(p []byte) { sha256.Sum256(p) },
	}
	buf := make([]byte, block)
	read := func(f *os.File, off int64) error {
		_, err := f.ReadAt(buf, off)
		return err
	}
	for _, check := range []string{"nothing", "CRC-32C", "maphash", "SHA-256"} {
		b.Run("sendfile after "+check, func(b *testing.B) {
			serving(b, path, size, func(w net.Conn, f *os.File) error {
				for off := int64(0); off < size; off += block {
					if check != "nothing" {
						if err := read(f, off); err != nil {
							return err
						}
						checks[check](buf)
					}
					if _, err := io.Copy(w, io.LimitReader(f, block)); err != nil {
						return err
					}
				}
				return nil
			})
		})
		b.Run("copy with "+check, func(b *testing.B) {
			serving(b, path, size, func(w net.Conn, f *os.File) error {
				for off := int64(0); off < size; off += block {
					if err := read(f, off); err != nil {
						return err
					}
					checks[check](buf)
					if _, err := w.Write(buf); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}

// serving runs send on a thread of its own; send sends a file of size bytes once.
func serving(b *testing.B, path string, size int64, send func(net.Conn, *os.File) error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		sink := make([]byte, 1<<20)
		for {
			if _, err := c.Read(sink); err != nil {
				return
			}
		}
	}()
	w, err := net.Dial("tcp", l.Addr().String())
	require.NoError(b, err)
	defer w.Close()
	f, err := os.Open(path)
	require.NoError(b, err)
	defer f.Close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := func() time.Duration {
		var u unix.Rusage
		require.NoError(b, unix.Getrusage(unix.RUSAGE_THREAD, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	begun := cpu()
	b.SetBytes(size)
	for b.Loop() {
		_, err := f.Seek(0, io.SeekStart)
		require.NoError(b, err)
		require.NoError(b, send(w, f))
	}
	b.ReportMetric((cpu()-begun).Seconds()/float64(b.N)/float64(size)*float64(1<<30), "CPU-s/GiB")
}
