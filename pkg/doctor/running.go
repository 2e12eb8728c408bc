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

// ticksPerSecond is the unit of times in /proc, the same on every Linux (USER_HZ).
const ticksPerSecond = 100

// clockGrain is how much younger than a process a file must be to count as changed since its start: the two times come
// from different clocks.
const clockGrain = 200 * time.Millisecond

// unread checks whether a running client has not read its files since they were changed. It returns the finding and the
// remedy; both are empty if the client has read them, or if that is unknown.
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
			continue // for example Docker's own containerd
		}
		// A process in a container has other files.
		theirs, err := clientconf.Files{Root: filepath.Join(p.dir, "root")}.Stat(file)
		if err == nil && os.SameFile(is, theirs) && is.ModTime().Sub(p.started) > clockGrain {
			return fmt.Sprintf("process %d started before %s was changed, and reads it only at its start", p.id, file),
				"run: systemctl restart " + string(c)
		}
	}
	return "", ""
}

// unreadByDocker is unread for dockerd, which reports its mirrors.
func (x *exam) unreadByDocker(ctx context.Context) (found, do string) {
	if !slices.ContainsFunc(x.Mirror.Upstreams, func(u clientconf.Upstream) bool { return u.Host == oci.DockerHub }) {
		return "", ""
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", x.DockerSocket)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: dial}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/info", nil)
	if err != nil {
		return "", ""
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return "", "" // it does not run, or rejects this user
	}
	defer res.Body.Close()
	var info struct{ RegistryConfig struct{ Mirrors []string } }
	if res.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(&info) != nil {
		return "", ""
	}
	isOurs := func(m string) bool { return strings.TrimSuffix(m, "/") == "http://"+x.Mirror.Addr }
	if slices.ContainsFunc(info.RegistryConfig.Mirrors, isOurs) {
		return "", ""
	}
	return "the running dockerd does not use it yet", "run: systemctl reload docker"
}

// process is a running process.
type process struct {
	id      int
	dir     string // below /proc
	args    []string
	started time.Time
}

// processes returns the processes of a program according to proc, or none.
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
		// The name may contain blanks and brackets. The start time is the twentieth field after it.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 {
			continue
		}
		ticks, err := strconv.ParseInt(fields[19], 10, 64)
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		out = append(out, process{id, dir, args, boot.Add(time.Duration(ticks) * time.Second / ticksPerSecond)})
	}
	return out
}

// config is the configuration file in the arguments of a process, or empty.
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
