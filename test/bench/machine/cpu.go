package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/test/results"
)

// childCommand makes this program one measured process: all peers of one system.
const childCommand = "measured-child"

// Systems that a child can be.
const (
	systemHTTP   = "http"   // the yardstick
	systemEngine = "engine" // Darter's own peers, plain
	systemTLS    = "engine-tls"
)

// assignment is what a child has to do.
type assignment struct {
	System string
	Peers  int
	// Content is a file that the child reads; Dir is the child's own.
	Content, Dir string
	PieceSize    int64
	// Profile is the beginning of the names of its profiles; empty for none.
	Profile string
}

// usage is what a child measured, from the moment when only the seed has everything until
// every peer has.
type usage struct {
	User, Sys, Wall time.Duration
	// Closing is what it took of the processor afterwards to end everything: Darter brings
	// to stable storage what came in the last ten seconds, the yardstick nothing.
	Closing time.Duration
	// Delivered is the bytes that peers received and verified, SeedCopies what left the seed
	// in units of the task.
	Delivered          int64
	SeedCopies         float64
	Mallocs, Allocated uint64 // objects and bytes of the heap
	GCs                uint32
	Switches           int64 // of contexts, voluntary
	RSS                int64 // the most bytes in memory
}

func (u usage) perGiB() float64 {
	return (u.User + u.Sys).Seconds() / (float64(u.Delivered) / (1 << 30))
}

// cpu compares the CPU that peers of Darter need with the CPU of minimal HTTP peers.
func (b *bench) cpu(ctx context.Context) error {
	for _, crowd := range []struct {
		peers, rounds int
		size          int64
	}{
		{8, b.rounds(), b.pick(512<<20, 256<<20)},
		{20, b.rounds(), b.pick(256<<20, 128<<20)},
	} {
		if err := b.cpuOf(ctx, crowd.peers, crowd.rounds, crowd.size); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) pick(full, quick int64) int64 {
	if b.quick {
		return quick
	}
	return full
}

func (b *bench) pickInt(full, quick int) int { return int(b.pick(int64(full), int64(quick))) }

func (b *bench) cpuOf(ctx context.Context, peers, rounds int, size int64) error {
	content := filepath.Join(b.dir, "content")
	if err := writeRandom(content, uint64(size), size); err != nil {
		return err
	}
	defer os.Remove(content)
	systems := []string{systemHTTP, systemEngine, systemTLS}
	measured := map[string][]usage{}
	for round := range rounds {
		// The order alternates, because each run finds the caches that the run before it left.
		for i := range systems {
			system := systems[(i+round)%len(systems)]
			u, err := b.measure(ctx,
				assignment{System: system, Peers: peers, Content: content, PieceSize: piece.SizeFor(size)}, round)
			if err != nil {
				return err
			}
			measured[system] = append(measured[system], u)
		}
	}
	for _, system := range systems {
		b.tellUsage(fmt.Sprintf("cpu/%d-peers/%s", peers, system), system, measured)
	}
	return nil
}

// tellUsage adds the figures of one system.
func (b *bench) tellUsage(scenario, system string, measured map[string][]usage) {
	each := func(f func(i int, u usage) float64) (v []float64) {
		for i, u := range measured[system] {
			v = append(v, f(i, u))
		}
		return v
	}
	b.out.Add(results.Median(scenario, "cpu_per_gib",
		each(func(_ int, u usage) float64 { return u.perGiB() }), "CPU-s/GiB"))
	if target, ok := map[string]float64{systemEngine: 1.05, systemTLS: 1.7}[system]; ok {
		// Each run over the yardstick's of the same round: what loads the machine loads both.
		ratio := each(func(i int, u usage) float64 { return u.perGiB() / measured[systemHTTP][i].perGiB() })
		b.out.Add(results.Median(scenario, "cpu_over_http", ratio, "ratio").AtMost(target))
	}
	b.out.Add(
		results.Median(scenario, "system_share",
			each(func(_ int, u usage) float64 { return u.Sys.Seconds() / (u.User + u.Sys).Seconds() }), "ratio"),
		results.Median(scenario, "closing_per_gib",
			each(func(_ int, u usage) float64 { return u.Closing.Seconds() / (float64(u.Delivered) / (1 << 30)) }),
			"CPU-s/GiB"),
		results.Median(scenario, "wall", each(func(_ int, u usage) float64 { return u.Wall.Seconds() }), "seconds"),
		results.Median(scenario, "allocated_per_gib", each(func(_ int, u usage) float64 {
			return float64(u.Allocated) / (1 << 20) / (float64(u.Delivered) / (1 << 30))
		}), "MiB/GiB"),
		results.Median(scenario, "objects_per_gib",
			each(func(_ int, u usage) float64 { return float64(u.Mallocs) / (float64(u.Delivered) / (1 << 30)) }),
			"objects/GiB"),
		results.Median(scenario, "switches_per_gib",
			each(func(_ int, u usage) float64 { return float64(u.Switches) / (float64(u.Delivered) / (1 << 30)) }),
			"switches/GiB"),
		results.Median(scenario, "seed_copies", each(func(_ int, u usage) float64 { return u.SeedCopies }), "contents"),
		results.Median(scenario, "rss", each(func(_ int, u usage) float64 { return float64(u.RSS) / (1 << 20) }),
			"MiB"),
	)
}

// measure runs one child to its end.
func (b *bench) measure(ctx context.Context, a assignment, round int) (u usage, err error) {
	a.Dir = filepath.Join(b.dir, "peers")
	if err := os.Mkdir(a.Dir, 0o755); err != nil {
		return u, err
	}
	defer os.RemoveAll(a.Dir)
	if b.profile != "" {
		a.Profile = filepath.Join(b.profile, fmt.Sprintf("%s-%d-%d", a.System, a.Peers, round))
	}
	arg, err := json.Marshal(a)
	if err != nil {
		return u, err
	}
	self, err := os.Executable()
	if err != nil {
		return u, err
	}
	stat, err := os.Stat(a.Content)
	if err != nil {
		return u, err
	}
	memory, err := newReserve(int64(a.Peers+2) * stat.Size()) // the seed may have a copy, too
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, memory.close()) }()
	cmd := exec.CommandContext(ctx, self, childCommand, string(arg))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return u, fmt.Errorf("%d peers of %s: %w: %s", a.Peers, a.System, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := json.Unmarshal(stdout.Bytes(), &u); err != nil {
		return u, fmt.Errorf("%d peers of %s: reading what they measured: %w", a.Peers, a.System, err)
	}
	fmt.Fprintf(b.log, "  %2d peers of %-10s  %.2f CPU-s/GiB (%.2f of the system)  %.1f s  %d context switches\n",
		a.Peers, a.System, u.perGiB(), u.Sys.Seconds()/(float64(u.Delivered)/(1<<30)), u.Wall.Seconds(), u.Switches)
	return u, nil
}

// writeRandom makes a file of random bytes that are the same for the same seed.
func writeRandom(path string, seed uint64, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, random(seed, n)); err != nil {
		f.Close()
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return f.Close()
}

// random yields n bytes that are the same for the same seed.
func random(seed uint64, n int64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return io.LimitReader(rand.NewChaCha8(key), n)
}
