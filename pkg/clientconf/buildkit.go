package clientconf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const buildkitConfig = "/etc/buildkit/buildkitd.toml"

// buildkit plans the mirrors in the configuration of buildkitd.
func (p *planner) buildkit() error {
	file := p.opts.Config
	if file == "" {
		file = buildkitConfig
	}
	if _, err := p.file(file, buildkitEdit{fresh: p.fresh(file), mirror: p.mirror}); err != nil {
		return err
	}
	p.plan.Restart = "systemctl restart buildkit"
	p.plan.RestartNote = "running builds are aborted"
	if !p.undo {
		p.note("This configures a standalone buildkitd. Pass the file to \"docker buildx create\" with --buildkitd-config; " +
			"its builder reaches 127.0.0.1 of this machine only with --driver-opt network=host. The builder inside dockerd " +
			"uses Docker's configuration")
	}
	return nil
}

// buildkitEdit adds the mirror as the first mirror of each registry.
type buildkitEdit struct {
	fresh  int
	mirror Mirror
}

func (e buildkitEdit) add(old []byte) ([]byte, error) {
	base, doc, err := foreignTOML(old)
	if err != nil {
		return nil, err
	}
	var splices []splice
	var changed [][]string
	end := splice{at: len(base), end: len(base)}
	// set sets keys of a table, each with its value.
	set := func(table []string, pairs ...[2]string) {
		fresh := false // the table is new: its header comes once
		for i, pair := range pairs {
			changed = append(changed, append(slices.Clone(table), pair[0]))
			s := doc.set(table, pair[0], pair[1])
			if s.at == len(base) && s.end == len(base) && len(s.lines) > 1 {
				fresh = true
			}
			switch {
			case fresh && i > 0:
				end.lines = append(end.lines, s.lines[1:]...)
			case fresh:
				end.lines = append(end.lines, s.lines...)
			default:
				splices = append(splices, s)
			}
		}
	}
	for _, u := range e.mirror.Upstreams {
		table := []string{"registry", u.Host}
		pairs := e.own(doc, table, u)
		theirs, _ := doc.get(append(table, "mirrors")...).([]any)
		if !slices.Contains(theirs, any(e.mirror.Addr)) { // else the user added it
			list := []string{strconv.Quote(e.mirror.Addr)}
			for _, m := range theirs {
				if s, ok := m.(string); ok {
					list = append(list, strconv.Quote(s))
				}
			}
			pairs = append([][2]string{{"mirrors", "[" + strings.Join(list, ", ") + "]"}}, pairs...)
		}
		set(table, pairs...)
	}
	if own := []string{"registry", e.mirror.Addr}; len(changed) > 0 && doc.get(append(own, "http")...) != true {
		set(own, [2]string{"http", "true"})
	}
	if len(changed) == 0 {
		return base, nil
	}
	if len(end.lines) > 0 {
		splices = append(splices, end)
	}
	next := insert(base, e.fresh, splices...)
	if err := doc.onlyChanged(next, changed...); err != nil {
		return nil, fmt.Errorf("%w: add %q to the mirrors of each [registry.\"…\"] by hand, and [registry.%q] with "+
			"http = true", err, e.mirror.Addr, e.mirror.Addr)
	}
	return next, nil
}

// own returns what buildkitd needs for its own requests to a registry, which it makes if the mirror does not answer.
// It keeps the values that the user has set.
func (e buildkitEdit) own(doc *document, table []string, u Upstream) (pairs [][2]string) {
	add := func(key, value string) {
		if doc.get(append(slices.Clone(table), key)...) == nil {
			pairs = append(pairs, [2]string{key, value})
		}
	}
	if u.PlainHTTP {
		add("http", "true")
	}
	if u.CA != "" {
		add("ca", "["+strconv.Quote(u.CA)+"]")
	}
	if u.ClientCert != "" && u.ClientKey != "" {
		add("keypair", fmt.Sprintf("[{ key = %q, cert = %q }]", u.ClientKey, u.ClientCert))
	}
	return pairs
}

func (buildkitEdit) remove(now []byte) ([]byte, error) { return strip(now) }
