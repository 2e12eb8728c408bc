package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/clientconf"
	"github.com/darter-io/darter/pkg/oci"
)

// ticksPerSecond is the unit of times in /proc, which is the same on every Linux (USER_HZ).
const ticksPerSecond = 100

// clockGrain is how much younger than a process a file must be to count as changed since: the
// two times come from different clocks.
const clockGrain = 200 * time.Millisecond

// unread tells of a client whose files are as they should be whether it runs with what they
// were before, and what makes it look; empty when it does not, or when that cannot be known.
func (x *exam) unread(ctx context.Context, c clientconf.Client) (found, do string) {
	if x.Proc == "" {
		return "", ""
	}
	if c == clientconf.Docker {
		return x.unreadByDocker(ctx)
	}
	file := clientconf.ReadAtStart(c)
	if file == "" {
		return "", ""
	}
	is, err := x.Files.Stat(file)
	if err != nil {
		return "", ""
	}
	for _, p := range processes(x.Proc, programs[c][0]) {
		if other := p.config(); other != "" && other != file {
			continue // Docker's own containerd, for one
		}
		// A process in a container sees files of its own.
		theirs, err := clientconf.Files{Root: filepath.Join(p.dir, "root")}.Stat(file)
		if err == nil && os.SameFile(is, theirs) && is.ModTime().Sub(p.started) > clockGrain {
			return fmt.Sprintf("process %d runs since before %s was changed, and reads that at its start alone", p.id, file), "systemctl restart " + string(c)
		}
	}
	return "", ""
}

// unreadByDocker asks dockerd, which tells the mirrors that it asks.
func (x *exam) unreadByDocker(ctx context.Context) (found, do string) {
	if !slices.ContainsFunc(x.Mirror.Upstreams, func(u clientconf.Upstream) bool { return u.Host == oci.DockerHub }) {
		return "", ""
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", x.DockerSocket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/info", nil)
	if err != nil {
		return "", ""
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return "", "" // it does not run, or does not speak to this user
	}
	defer res.Body.Close()
	var info struct{ RegistryConfig struct{ Mirrors []string } }
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&info) != nil {
		return "", ""
	}
	if slices.ContainsFunc(info.RegistryConfig.Mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == "http://"+x.Mirror.Addr }) {
		return "", ""
	}
	return "the dockerd that runs does not know of it yet", "systemctl reload docker"
}

// process is one that runs.
type process struct {
	id      int
	dir     string // below /proc
	args    []string
	started time.Time
}

// processes finds those of a program, by the files of proc; none where it cannot.
func processes(proc, program string) (out []process) {
	up, err := os.ReadFile(filepath.Join(proc, "uptime"))
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(up), " ")
	uptime, err := time.ParseDuration(first + "s")
	if err != nil {
		return nil
	}
	boot := time.Now().Add(-uptime)
	dirs, _ := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	for _, dir := range dirs {
		id, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || string(bytes.TrimSpace(name)) != program {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		// The name may hold blanks and brackets; behind it the start is the twentieth.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 {
			continue
		}
		ticks, err := strconv.ParseInt(fields[19], 10, 64)
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		out = append(out, process{id, dir, strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"), boot.Add(time.Duration(ticks) * time.Second / ticksPerSecond)})
	}
	return out
}

// config is the file that a process was told to read; empty when it was told none.
func (p process) config() string {
	for i, a := range p.args {
		for _, flag := range []string{"-c", "--config", "-config"} {
			if a == flag && i+1 < len(p.args) {
				return p.args[i+1]
			}
			if v, ok := strings.CutPrefix(a, flag+"="); ok {
				return v
			}
		}
	}
	return ""
}
