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
	size := b.pick(256<<20, 32<<20) // a node's link takes 22 s or 3 s for it
	content := filepath.Join(b.dir, "content")
	if err := writeRandom(content, uint64(size), size); err != nil {
		return err
	}
	defer os.Remove(content)
	crowds := []*linked{{nodes: 8}, {nodes: 16}}
	for range b.pickInt(5, 2) {
		for _, c := range crowds { // by turns: what loads the machine loads both
			if err := b.linksOf(ctx, c, content, size); err != nil {
				return err
			}
		}
	}
	for _, c := range crowds {
		scenario := fmt.Sprintf("links/%d-nodes", c.nodes)
		b.out.Add(
			results.Median(scenario, "makespan_over_bound", c.ratios, "ratio").AtMost(1.20),
			results.Median(scenario, "makespan", c.seconds, "seconds"),
			// The machine's, others' work included: where it is near 1, the ratio above says
			// little of the swarm.
			results.Median(scenario, "machine_busy", c.busy, "ratio"),
			results.Median(scenario, "seed_copies", c.copies, "contents"),
		)
	}
	return nil
}

// linked is what crowds of so many nodes did, one figure for each.
type linked struct {
	nodes                         int
	ratios, seconds, busy, copies []float64
}

func (b *bench) linksOf(ctx context.Context, c *linked, content string, size int64) error {
	pieceSize := piece.SizeFor(size)
	bound := simnet.Bound{
		N: c.nodes, K: piece.Layout{Length: size, PieceSize: pieceSize}.Count(), Seed: seedLinks,
		PieceTime: time.Duration(float64(pieceSize) * 8 / linkRate / goodput * float64(time.Second)),
	}.Makespan()
	took, busy, sent, err := b.shaped(ctx, c.nodes, content)
	if err != nil {
		return err
	}
	ratio := took.Seconds() / bound.Seconds()
	fmt.Fprintf(b.log, "  %2d nodes  %.2f s, bound %.2f s: %.3f; machine %.0f %% busy\n", c.nodes, took.Seconds(),
		bound.Seconds(), ratio, 100*busy)
	c.ratios, c.seconds = append(c.ratios, ratio), append(c.seconds, took.Seconds())
	c.busy, c.copies = append(c.busy, busy), append(c.copies, float64(sent)/float64(size))
	return nil
}

// shaped builds a lab and lets a crowd pull in it once.
func (b *bench) shaped(ctx context.Context, nodes int,
	content string) (took time.Duration, busy float64, sent int64, err error) {
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
