package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
)

// FetchStatus asks a running program for its status, at its local or admin API.
func FetchStatus(ctx context.Context, program string, at config.Address) (s api.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(at)+api.PathStatus, nil)
	if err != nil {
		return s, fmt.Errorf("asking %s: %w", program, err)
	}
	tr := &http.Transport{Proxy: nil, DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return s, fmt.Errorf("no %s answers at %s (%w); is it running, and is this its address?", program, at, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, fmt.Errorf("asking %s at %s: %s", program, at, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return s, fmt.Errorf("asking %s at %s: %w", program, at, err)
	}
	return s, nil
}

// WriteStatus tells a status to a person.
func WriteStatus(w io.Writer, s api.Status, now time.Time) error {
	size := func(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}

	state := "ready"
	if !s.Ready {
		state = "NOT READY"
	}
	line(s.Program, "%s, up %s, version %s", state, now.Sub(s.Started).Round(time.Second), s.Version)
	for _, m := range s.Missing {
		line("LACKS", "%s", m)
	}
	line("node", "%s (%s)%s", s.Host.Name, s.Host.ID.Short(), prefixed(", zone ", s.Host.Zone))
	for _, name := range []string{"mirror", "proxy", "api", "admin", "peer"} {
		if addr := s.Listen[name]; addr != "" {
			line(name, "%s", addr)
		}
	}
	if s.Program == "dfdaemon" {
		switch {
		case len(s.Owners) > 0:
			for _, o := range s.Owners {
				word := "answers"
				if !o.Alive {
					word = "DOES NOT ANSWER" + prefixed(": ", o.Error)
				}
				line("supernode", "%s %s", o.Addr, word)
			}
			if s.Embedded {
				line("", "this node leads its own tasks meanwhile")
			}
		default:
			line("supernode", "none configured: this node leads its own tasks")
		}
	} else {
		line("hosts", "%s here", plural(s.Hosts, "announces", "announce"))
	}
	quota := "no quota"
	if s.Cache.Quota > 0 {
		quota = fmt.Sprintf("%d%% of %s", 100*s.Cache.Bytes/s.Cache.Quota, size(s.Cache.Quota))
	}
	line("cache", "%s in %s (%s)%s", size(s.Cache.Bytes), plural(s.Cache.Tasks, "task", "tasks"), quota, prefixed(", ", s.Cache.Dir))
	r := s.Received
	line("received", "%s from peers, %s from supernodes, %s from origins%s", size(r.Peers), size(r.Seeds), size(r.Origin), share(s))
	if s.Program == "dfdaemon" {
		line("given", "%s to other nodes, %s to local clients, of that %s from the cache", size(s.Sent), size(s.Served), size(r.Cache))
	} else {
		line("given", "%s to nodes", size(s.Sent))
	}
	if text := limited(s.Limits); text != "" {
		line("limits", "%s", text)
	}
	if s.BadPieces > 0 {
		line("BAD", "%s not match the digest; the log names who sent them", plural(int(s.BadPieces), "piece did", "pieces did"))
	}
	line("now", "%s open", plural(s.Downloads, "download", "downloads"))
	return tw.Flush()
}

// limited names the limits that there are.
func limited(l api.Limits) string {
	var words []string
	for _, one := range []struct {
		name string
		rate int64
	}{{"upload", l.Upload}, {"download", l.Download}, {"each task", l.Task}, {"origin", l.Origin}} {
		if one.rate > 0 {
			words = append(words, one.name+" "+config.Rate(one.rate).String())
		}
	}
	return strings.Join(words, ", ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// share tells how much of what came in came from the cluster. A supernode is there to ask
// origins.
func share(s api.Status) string {
	r := s.Received
	all := r.Peers + r.Seeds + r.Origin
	if all == 0 || s.Program != "dfdaemon" {
		return ""
	}
	return fmt.Sprintf(" (%d%% from the cluster)", 100*(r.Peers+r.Seeds)/all)
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
