package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/test/lab"
	"github.com/darter-io/darter/test/results"
	"github.com/darter-io/darter/test/simnet"
)

const (
	// linkRate of a node, each way, in bits per second; the seed has seedLinks times that.
	linkRate  = 100_000_000
	seedLinks = 4
	// goodput is the share of a link that payload can have: the shaper counts frames of
	// 1514 bytes, of which TCP with timestamps carries 1448.
	goodput = 1448.0 / 1514
)

// links lets real engines pull through shaped links of network namespaces.
func (b *bench) links(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: only root can make network namespaces", errMissing)
	}
	for _, crowd := range []struct {
		nodes, rounds int
		size          int64
		target        float64
	}{
		{8, b.pickInt(5, 2), b.pick(128<<20, 32<<20), 1.20},
		{16, b.pickInt(3, 1), b.pick(128<<20, 32<<20), 1.20},
	} {
		if err := b.linksOf(ctx, crowd.nodes, crowd.rounds, crowd.size, crowd.target); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) linksOf(ctx context.Context, nodes, rounds int, size int64, target float64) error {
	content := filepath.Join(b.dir, "content")
	if err := writeRandom(content, uint64(size), size); err != nil {
		return err
	}
	defer os.Remove(content)
	pieceSize := piece.SizeFor(size)
	layout := piece.Layout{Length: size, PieceSize: pieceSize}
	bound := simnet.Bound{
		N: nodes, K: layout.Count(), Seed: seedLinks,
		PieceTime: time.Duration(float64(pieceSize) * 8 / linkRate / goodput * float64(time.Second)),
	}.Makespan()
	var ratios, seconds, load, copies []float64
	for range rounds {
		took, busy, sent, err := b.shaped(ctx, nodes, content)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.log, "  %2d nodes  %.2f s, bound %.2f s: %.3f; machine %.0f %% busy\n", nodes, took.Seconds(), bound.Seconds(), took.Seconds()/bound.Seconds(), 100*busy)
		ratios, seconds = append(ratios, took.Seconds()/bound.Seconds()), append(seconds, took.Seconds())
		load, copies = append(load, busy), append(copies, float64(sent)/float64(size))
	}
	scenario := fmt.Sprintf("links/%d-nodes", nodes)
	b.out.Add(
		results.Median(scenario, "makespan_over_bound", ratios, "ratio").AtMost(target),
		results.Median(scenario, "makespan", seconds, "seconds"),
		// The machine's, others' work included: where it is near 1, the ratio above says
		// little of the swarm.
		results.Median(scenario, "machine_busy", load, "ratio"),
		results.Median(scenario, "seed_copies", copies, "contents"),
	)
	return nil
}

// shaped builds a lab and lets a crowd pull in it once.
func (b *bench) shaped(ctx context.Context, nodes int, content string) (took time.Duration, busy float64, sent int64, err error) {
	l, err := lab.Build(lab.Config{Nodes: nodes, NodeRate: linkRate, RegistryRate: seedLinks * linkRate})
	if err != nil {
		return 0, 0, 0, fmt.Errorf("%w: %w", errMissing, err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	machines := append([]*lab.Node{l.Registry}, l.Nodes...)
	dir := filepath.Join(b.dir, "peers")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, 0, 0, err
	}
	defer os.RemoveAll(dir)
	c, err := newCrowd(ctx, crowdConfig{
		peers: nodes, content: content, dir: dir, seedMultiple: seedLinks,
		listen: func(i int) (net.Listener, error) { return machines[i].Listen(machines[i].Addr + ":0") },
		dial:   func(i int) identity.DialFunc { return machines[i].Dial },
	})
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	before, err := busyTime()
	if err != nil {
		return 0, 0, 0, err
	}
	begun := time.Now()
	if err := c.pull(ctx); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(begun)
	after, err := busyTime()
	if err != nil {
		return 0, 0, 0, err
	}
	busy = (after - before).Seconds() / took.Seconds() / float64(runtime.NumCPU())
	return took, busy, c.seedSent(), nil
}

// busyTime is how long all processors of the machine worked since its start, for anybody.
func busyTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for i, text := range f[1:9] {
		if i == 3 || i == 4 {
			continue // idle, and waiting for a disk
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}
