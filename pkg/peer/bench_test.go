package peer_test

import (
	"context"
	"io"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/piece/diskstore"
)

// BenchmarkEightPeersOnDisksOverLoopback pulls 256 MiB from a seed that has it to eight
// nodes at once, all in this process. It reports CPU seconds per GiB that reached a node:
// received, verified, stored, sent on and read once.
func BenchmarkEightPeersOnDisksOverLoopback(b *testing.B) {
	const nodes, length = 8, 256 << 20
	content := randomBytes(1, length)
	for b.Loop() {
		s := newSwarm(b, content)
		s.real = true
		spec := s.spec()
		start := func() *node {
			store, err := diskstore.Open(diskstore.Config{Dir: b.TempDir()})
			require.NoError(b, err)
			b.Cleanup(func() { store.Close() })
			return s.node(store)
		}
		read := func(n *node) error {
			c, err := n.engine.Open(context.Background(), spec)
			if err != nil {
				return err
			}
			defer c.Close()
			r := c.NewReader(context.Background(), 0, length)
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		}
		seed := start()
		s.setSeed(seed)
		require.NoError(b, read(seed))
		var all []*node
		for range nodes {
			all = append(all, start())
		}
		before := cpuSeconds()
		errs := make(chan error, nodes)
		for _, n := range all {
			go func() { errs <- read(n) }()
		}
		for range nodes {
			require.NoError(b, <-errs)
		}
		spent := cpuSeconds() - before
		var got, duplicate int64
		for _, n := range all {
			st := n.engine.Stats()
			got += st.Peers + st.Seeds
			duplicate += st.Duplicate
			require.NoError(b, n.stop())
		}
		require.EqualValues(b, nodes*length, got)
		b.ReportMetric(spent/(float64(got)/(1<<30)), "cpu-s/GiB")
		b.ReportMetric(float64(seed.engine.Stats().Sent)/length, "seed-copies")
		b.ReportMetric(float64(duplicate)/float64(got), "duplicate")
		require.NoError(b, seed.stop())
	}
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
