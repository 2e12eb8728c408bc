package clientconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
)

const (
	dockerConfig = "/etc/docker/daemon.json"
	dockerCerts  = "/etc/docker/certs.d"
	mirrorsKey   = "registry-mirrors"
)

// dockerFlags are the files that may contain flags of dockerd.
var dockerFlags = []string{
	"/etc/default/docker", "/etc/sysconfig/docker", "/etc/sysconfig/docker-registries",
	"/etc/systemd/system/docker.service", "/lib/systemd/system/docker.service", "/usr/lib/systemd/system/docker.service",
}

// docker plans the mirror of Docker Hub in daemon.json, and a hosts.toml for each other registry, which only the
// containerd image store reads.
func (p *planner) docker() error {
	file := p.opts.Config
	if file == "" {
		file = dockerConfig
	}
	hub := slices.ContainsFunc(p.mirror.Upstreams, func(u Upstream) bool { return u.Host == oci.DockerHub })
	if hub && !p.undo {
		if err := p.dockerFlagged(file); err != nil {
			return err
		}
	}
	if hub || p.undo {
		did, err := p.file(file, daemonJSON{p.mirror.url()})
		if err != nil {
			return err
		}
		if did {
			p.plan.Restart = "systemctl reload docker"
			p.plan.RestartNote = "a SIGHUP: nothing is interrupted"
		}
	}
	all := p.mirror.Upstreams
	p.mirror.Upstreams = slices.DeleteFunc(slices.Clone(all), func(u Upstream) bool { return u.Host == oci.DockerHub })
	if err := p.hosts([]string{dockerCerts}); err != nil {
		return err
	}
	if len(p.mirror.Upstreams) > 0 && !p.undo {
		p.note("Docker's registry-mirrors apply only to Docker Hub. For other registries Docker needs its containerd image "+
			"store, which reads %s (the default of new installations since Docker 29; before, set {\"features\": "+
			"{\"containerd-snapshotter\": true}})", dockerCerts)
	}
	if p.mirror.DigestsOnly && hub && !p.undo {
		p.note("Docker always resolves tags at its mirrors: --digests-only has no effect on Docker Hub")
	}
	return nil
}

// dockerFlagged returns an error if dockerd has a mirror as a flag: dockerd does not start if its file has mirrors,
// too.
func (p *planner) dockerFlagged(file string) error {
	files := slices.Clone(dockerFlags)
	for _, root := range []string{"/etc", "/lib", "/usr/lib"} {
		dir := path.Join(root, "systemd/system/docker.service.d")
		names, err := p.files.list(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			files = append(files, path.Join(dir, name))
		}
	}
	for _, f := range files {
		text, err := p.files.read(f)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			if !strings.HasPrefix(strings.TrimSpace(line), "#") && strings.Contains(line, "--registry-mirror") {
				return fmt.Errorf("%s starts dockerd with the flag --registry-mirror; dockerd does not start if %s has "+
					"registry-mirrors, too: move the mirrors from the flag into the file, and run this again", f, file)
			}
		}
	}
	return nil
}

// daemonJSON adds a mirror as the first of registry-mirrors in Docker's configuration.
type daemonJSON struct{ url string }

// spans are the offsets in the text of a JSON object that an edit needs.
type spans struct {
	open int // after "{"
	// first is the offset of the first member; empty reports that there is none.
	first int
	empty bool
	// registry-mirrors: the offset of the key, after the "[", and after the "]".
	has                  bool
	key, inside, outside int
	mirrors              []string
}

// bom may begin a text; Docker accepts it.
var bom = []byte("\xef\xbb\xbf")

func scan(text []byte) (s spans, err error) {
	skip := 0
	if bytes.HasPrefix(text, bom) {
		skip = len(bom)
	}
	dec := json.NewDecoder(bytes.NewReader(text[skip:]))
	at := func() int { return skip + int(dec.InputOffset()) }
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return s, errors.Join(errors.New("not a JSON object: dockerd cannot read it either"), err)
	}
	s.open, s.empty = at(), true
	for dec.More() {
		from := at()
		k, err := dec.Token()
		if err != nil {
			return s, fmt.Errorf("not JSON: dockerd cannot read it either: %w", err)
		}
		start := from + bytes.IndexByte(text[from:], '"')
		if s.empty {
			s.first, s.empty = start, false
		}
		after := at()
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return s, fmt.Errorf("not JSON: dockerd cannot read it either: %w", err)
		}
		if k != mirrorsKey {
			continue
		}
		if s.has {
			return s, fmt.Errorf("it has %s twice: remove one", mirrorsKey)
		}
		if s.mirrors, err = urls(value); err != nil {
			return s, err
		}
		s.has, s.key, s.outside = true, start, at()
		s.inside = after + bytes.IndexByte(text[after:], '[') + 1
	}
	if _, err := dec.Token(); err != nil {
		return s, fmt.Errorf("not JSON: dockerd cannot read it either: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, errors.New("text after its JSON object")
	}
	return s, nil
}

// urls parses the list of mirrors. It rejects null elements, as dockerd does, because each element must be a string in
// the text.
func urls(value json.RawMessage) ([]string, error) {
	var list []*string
	err := json.Unmarshal(value, &list)
	if err != nil || list == nil || slices.Contains(list, nil) {
		return nil, fmt.Errorf("its %s is not a list of URLs", mirrorsKey)
	}
	out := make([]string, len(list))
	for i, m := range list {
		out[i] = *m
	}
	return out, nil
}

func (e daemonJSON) quoted() string {
	b, _ := json.Marshal(e.url) // a string cannot fail
	return string(b)
}

func (e daemonJSON) member() string { return `"` + mirrorsKey + `": [` + e.quoted() + `]` }

func (e daemonJSON) alone() []byte { return []byte("{\n  " + e.member() + "\n}\n") }

func (e daemonJSON) add(old []byte) ([]byte, error) {
	if len(bytes.TrimSpace(bytes.TrimPrefix(old, bom))) == 0 {
		return e.alone(), nil // dockerd treats an empty file as {}
	}
	s, err := scan(old)
	if err != nil {
		return nil, err
	}
	switch {
	case slices.ContainsFunc(s.mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == e.url }):
		return old, nil
	case len(s.mirrors) > 0:
		gap := s.inside + bytes.IndexByte(old[s.inside:], '"')
		between := string(old[s.inside:gap])
		if between == "" {
			between = " "
			return put(old, s.inside, e.quoted()+","+between), nil
		}
		return put(old, s.inside, between+e.quoted()+","), nil
	case s.has:
		return put(old, s.inside, e.quoted()), nil
	case s.empty:
		return put(old, s.open, "\n  "+e.member()+"\n"), nil
	}
	if between := string(old[s.open:s.first]); between != "" {
		return put(old, s.open, between+e.member()+","), nil
	}
	return put(old, s.open, e.member()+", "), nil
}

func (e daemonJSON) remove(now []byte) ([]byte, error) {
	if now == nil || bytes.Equal(now, e.alone()) {
		return nil, nil
	}
	if len(bytes.TrimSpace(bytes.TrimPrefix(now, bom))) == 0 {
		return now, nil
	}
	s, err := scan(now)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(s.mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == e.url })
	if i < 0 {
		return now, nil
	}
	if len(s.mirrors) > 1 {
		return e.removeOne(now, s, i), nil
	}
	return e.removeMember(now, s), nil
}

// removeOne removes one of several mirrors from the list.
func (e daemonJSON) removeOne(now []byte, s spans, i int) []byte {
	list := now[s.inside : s.outside-1]
	var starts, ends []int
	for at := 0; at < len(list); at++ {
		if list[at] == '"' {
			end := stringEnd(list, at)
			starts, ends = append(starts, at), append(ends, end)
			at = end - 1
		}
	}
	if i == 0 {
		from, to := 0, starts[1]
		if lead := list[:starts[0]]; len(lead) > 0 {
			from = len(lead)
			// The white space before the first element now precedes the next.
		}
		return cut(now, s.inside+from, s.inside+to)
	}
	return cut(now, s.inside+ends[i-1], s.inside+ends[i])
}

// removeMember removes the list from the object.
func (e daemonJSON) removeMember(now []byte, s spans) []byte {
	rest := now[s.outside:]
	next := bytes.IndexFunc(rest, func(r rune) bool { return r != ' ' && r != '\t' && r != '\r' && r != '\n' })
	if rest[next] == ',' {
		// The white space before the member now precedes the next.
		to := next + 1 + bytes.IndexByte(rest[next+1:], '"')
		return cut(now, s.key, s.outside+to)
	}
	if s.first == s.key {
		return cut(now, s.open, s.outside+next)
	}
	comma := bytes.LastIndexByte(now[:s.key], ',')
	return cut(now, comma, s.outside)
}

func put(text []byte, at int, what string) []byte {
	return slices.Concat(text[:at], []byte(what), text[at:])
}

func cut(text []byte, from, to int) []byte { return slices.Concat(text[:from], text[to:]) }
