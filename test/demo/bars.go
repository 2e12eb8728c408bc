package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// showBars draws one bar per pull while they run; without a terminal, it prints a plain line now and then. The function
// that it returns draws the end and stops.
func showBars(w io.Writer, pulls []*pull, total int64) (stop func()) {
	f, ok := w.(*os.File)
	live := ok && term.IsTerminal(int(f.Fd()))
	done := make(chan struct{})
	every := 2 * time.Second
	if live {
		every = 100 * time.Millisecond
	}
	drawn := false
	draw := func() {
		if live && drawn {
			fmt.Fprintf(w, "\x1b[%dA", len(pulls)) // up again, over the former bars
		}
		drawn = true
		if !live {
			var all int64
			for _, p := range pulls {
				all += p.received.Load()
			}
			fmt.Fprintf(w, "  %3d %%  %s of %d × %s\n", percent(all, total*int64(len(pulls))), amount(all),
				len(pulls), amount(total))
			return
		}
		for i, p := range pulls {
			fmt.Fprintf(w, "\r\x1b[K  node %d  %s %3d %%\n", i+1, bar(p.received.Load(), total),
				percent(p.received.Load(), total))
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				draw()
			case <-done:
				draw()
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

func percent(n, of int64) int64 { return min(100, n*100/max(1, of)) }

// bar is 40 characters wide.
func bar(n, of int64) string {
	full := int(percent(n, of) * 40 / 100)
	return strings.Repeat("█", full) + strings.Repeat("░", 40-full)
}
