package clientconf

import (
	"bytes"
	"fmt"
	"path"
	"strconv"
	"strings"
)

const (
	registriesConf = "/etc/containers/registries.conf"
	registriesDir  = "/etc/containers/registries.conf.d"
	registriesName = "050-darter.conf"
)

func (p *planner) podman() error {
	if err := p.registries(); err != nil {
		return err
	}
	p.note("Podman, Buildah and skopeo read this at each start; a running Podman service reads it after \"systemctl " +
		"restart podman\"")
	return nil
}

func (p *planner) crio() error {
	if err := p.registries(); err != nil {
		return err
	}
	p.plan.Restart = "systemctl reload crio"
	p.plan.RestartNote = "a SIGHUP: nothing is interrupted"
	return nil
}

// registries plans the drop-in file that Podman, CRI-O, Buildah and skopeo read.
func (p *planner) registries() error {
	dir := p.opts.Config
	if dir == "" {
		dir = registriesDir
	}
	file := path.Join(dir, registriesName)
	taken := map[string]string{}
	if !p.undo {
		var err error
		if taken, err = p.taken(dir); err != nil {
			return err
		}
	}
	e := ownFile{fresh: p.fresh(file), name: file, lines: []string{
		"# Clients try this node's mirror first. If it serves the manifest of an image, they pull every layer from it.",
		"# If it does not answer, they pull the image from the registry.",
	}}
	tables := 0
	for _, u := range p.mirror.Upstreams {
		if by := taken[u.Host]; by != "" {
			p.plan.Pending = true
			p.note("%s has its own [[registry]] for %s, and only one table per registry applies. It stays unchanged: add "+
				"[[registry.mirror]] with location = %q and insecure = true there", by, u.Host, p.location(u.Host))
			continue
		}
		tables++
		e.lines = append(e.lines, "", "[[registry]]", "prefix = "+strconv.Quote(u.Host), "location = "+strconv.Quote(u.Host))
		if u.PlainHTTP {
			e.lines = append(e.lines, "insecure = true")
		}
		e.lines = append(e.lines, "", "[[registry.mirror]]", "location = "+strconv.Quote(p.location(u.Host)),
			"insecure = true")
		if p.mirror.DigestsOnly {
			e.lines = append(e.lines, `pull-from-mirror = "digest-only"`)
		}
	}
	if tables == 0 && !p.undo {
		return fmt.Errorf("%s would be empty: %s", file, strings.Join(p.plan.Notes, "; "))
	}
	_, err := p.file(file, e)
	return err
}

// location is the mirror's location for a registry: the registry is the first part of the path, with an underscore
// before a port, because image names allow no colon there.
func (p *planner) location(host string) string {
	return p.mirror.Addr + "/" + strings.ReplaceAll(host, ":", "_")
}

// taken returns the registries with tables in other files, and those files.
func (p *planner) taken(dir string) (map[string]string, error) {
	names, err := p.files.list(dir)
	if err != nil {
		return nil, err
	}
	files := []string{registriesConf}
	for _, name := range names {
		if strings.HasSuffix(name, ".conf") && name != registriesName {
			files = append(files, path.Join(dir, name))
		}
	}
	out := map[string]string{}
	for _, file := range files {
		text, err := p.files.read(file)
		if err != nil {
			return nil, err
		}
		doc, err := parseTOML(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if doc.get("registries") != nil {
			return nil, fmt.Errorf("%s has the old form ([registries.search]), which excludes the new one: rewrite it with "+
				"unqualified-search-registries and [[registry]], and run this again", file)
		}
		list, _ := doc.get("registry").([]any)
		for _, r := range list {
			r, _ := r.(map[string]any)
			prefix, _ := r["prefix"].(string)
			if prefix == "" {
				prefix, _ = r["location"].(string)
			}
			out[prefix] = file
		}
	}
	return out, nil
}

// ownFile is a file that is entirely ours.
type ownFile struct {
	fresh int
	name  string
	lines []string
}

func (e ownFile) add(old []byte) ([]byte, error) {
	if old != nil && !bytes.HasPrefix(old, []byte(beginPrefix)) {
		return nil, fmt.Errorf("another program wrote this file: move it away")
	}
	return insert([]byte{}, max(e.fresh, 0), splice{lines: e.lines}), nil
}

func (e ownFile) remove(now []byte) ([]byte, error) {
	if bytes.HasPrefix(now, []byte(beginPrefix)) {
		return nil, nil
	}
	return now, nil
}
