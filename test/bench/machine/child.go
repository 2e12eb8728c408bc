package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"
)

// swarm is all peers of one system: a seed that has everything and peers that have nothing.
type swarm interface {
	// pull returns when every peer has everything.
	pull(ctx context.Context) error
	// seedSent is how many bytes left the seed.
	seedSent() int64
	close() error
}

// child builds a swarm, lets it pull and writes what that cost this process.
func child(arg string, w io.Writer) (err error) {
	var a assignment
	if err := json.Unmarshal([]byte(arg), &a); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	stat, err := os.Stat(a.Content)
	if err != nil {
		return err
	}
	var s swarm
	switch a.System {
	case systemHTTP:
		s, err = newMesh(a)
	case systemEngine, systemTLS:
		s, err = newCrowd(ctx, crowdConfig{peers: a.Peers, content: a.Content, dir: a.Dir, pieceSize: a.PieceSize,
			secure: a.System == systemTLS})
	default:
		err = fmt.Errorf("there is no system %q", a.System)
	}
	if err != nil {
		return err
	}
	u, err := observe(a.Profile, func() error { return s.pull(ctx) })
	if err != nil {
		return err
	}
	u.Delivered = int64(a.Peers) * stat.Size()
	u.SeedCopies = float64(s.seedSent()) / float64(stat.Size())
	closing, err := observe("", s.close)
	if err != nil {
		return err
	}
	u.Closing = closing.User + closing.Sys
	return json.NewEncoder(w).Encode(u)
}

// observe measures what f costs this process.
func observe(profile string, f func() error) (u usage, err error) {
	// The figure leaves out the memory of the preparation.
	runtime.GC()
	debug.FreeOSMemory()
	if profile != "" {
		out, err := os.Create(profile + ".cpu.pprof")
		if err != nil {
			return u, err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return u, err
		}
	}
	var memBefore, memAfter runtime.MemStats
	var before, after syscall.Rusage
	runtime.ReadMemStats(&memBefore)
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return u, fmt.Errorf("getrusage: %w", err)
	}
	begun := time.Now()
	if err := f(); err != nil {
		return u, err
	}
	u.Wall = time.Since(begun)
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
		return u, fmt.Errorf("getrusage: %w", err)
	}
	runtime.ReadMemStats(&memAfter)
	if profile != "" {
		pprof.StopCPUProfile()
		out, err := os.Create(profile + ".allocs.pprof")
		if err != nil {
			return u, err
		}
		defer out.Close()
		if err := pprof.Lookup("allocs").WriteTo(out, 0); err != nil {
			return u, err
		}
	}
	span := func(before, after syscall.Timeval) time.Duration {
		return time.Duration(after.Nano() - before.Nano())
	}
	u.User, u.Sys = span(before.Utime, after.Utime), span(before.Stime, after.Stime)
	u.Mallocs, u.Allocated, u.GCs = memAfter.Mallocs-memBefore.Mallocs, memAfter.TotalAlloc-memBefore.TotalAlloc,
		memAfter.NumGC-memBefore.NumGC
	u.Switches = after.Nvcsw - before.Nvcsw
	u.RSS = after.Maxrss << 10 // Linux counts in KiB
	return u, nil
}
