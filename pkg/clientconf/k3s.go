package clientconf

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/darter-io/darter/pkg/oci"
)

// rancherConfig is the file from which k3s and RKE2 write the hosts.toml files of their own containerd.
func rancherConfig(c Client) string { return "/etc/rancher/" + string(c) + "/registries.yaml" }

// rancher plans the mirrors in the registries.yaml of k3s or RKE2.
func (p *planner) rancher() error {
	c := p.plan.Client
	file := p.opts.Config
	if file == "" {
		file = rancherConfig(c)
	}
	if _, err := p.file(file, registriesYAML{fresh: p.fresh(file), mirror: p.mirror}); err != nil {
		return err
	}
	unit, agent := "k3s", "k3s-agent"
	if c == RKE2 {
		unit, agent = "rke2-server", "rke2-agent"
	}
	for _, dir := range []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"} {
		if p.files.has(dir + "/" + agent + ".service") {
			unit = agent
		}
	}
	p.plan.Restart = "systemctl restart " + unit
	p.plan.RestartNote = "containers keep running; running pulls start again"
	if p.mirror.DigestsOnly && !p.undo {
		p.note("%s knows no mirror for digests alone: --digests-only has no effect", c)
	}
	return nil
}

// registriesYAML adds the mirror as the first endpoint of each registry.
type registriesYAML struct {
	fresh  int
	mirror Mirror
}

// registriesTree is the part of a registries.yaml that the edit reads.
type registriesTree struct {
	Mirrors map[string]struct {
		Endpoint []string `yaml:"endpoint"`
	} `yaml:"mirrors"`
	Configs map[string]any `yaml:"configs"`
}

var errByHand = errors.New("it has a form that cannot be edited in place")

func (e registriesYAML) add(old []byte) ([]byte, error) {
	base, err := strip(old)
	if err != nil {
		return nil, err
	}
	next, err := e.edit(base)
	if err != nil {
		return nil, fmt.Errorf("%w: add endpoint: [%q] under mirrors for each registry by hand, before its other endpoints",
			err, e.mirror.url())
	}
	return next, nil
}

func (e registriesYAML) edit(base []byte) ([]byte, error) {
	var root yaml.Node
	var was registriesTree
	if err := yaml.Unmarshal(base, &root); err != nil {
		return nil, fmt.Errorf("not YAML: the client cannot read it either: %w", err)
	}
	if err := root.Decode(&was); err != nil {
		return nil, fmt.Errorf("not a registries.yaml: the client cannot read it either: %w", err)
	}
	var top *yaml.Node
	if len(root.Content) > 0 && root.Content[0].Kind == yaml.MappingNode {
		top = root.Content[0]
		if top.Style&yaml.FlowStyle != 0 {
			return nil, errByHand
		}
	}
	mirrors := child(top, "mirrors")
	var splices []splice
	var fresh []string // the entries of registries that the file does not have
	indent := "  "
	if m := value(mirrors); m != nil && m.Kind == yaml.MappingNode && len(m.Content) > 0 {
		if m.Style&yaml.FlowStyle != 0 {
			return nil, errByHand
		}
		indent = strings.Repeat(" ", m.Content[0].Column-1)
	} else if m != nil && (m.Kind != yaml.ScalarNode || m.Tag != "!!null" || m.Value != "") {
		return nil, errByHand // mirrors: {} and the like
	}
	for _, u := range e.mirror.Upstreams {
		if entry := child(value(mirrors), u.Host); entry != nil {
			s, err := e.first(base, entry[1])
			if err != nil {
				return nil, err
			}
			splices = append(splices, s...)
			continue
		}
		fresh = append(fresh, indent+strconv.Quote(u.Host)+":", indent+"  endpoint:",
			indent+"    - "+strconv.Quote(e.mirror.url()))
		if u.PlainHTTP { // else the client asks the registry itself by https
			fresh = append(fresh, indent+"    - "+strconv.Quote("http://"+oci.Endpoint(u.Host)))
		}
	}
	at := len(base)
	if mirrors != nil {
		at = lineOffset(base, mirrors[0].Line+1)
	} else if len(fresh) > 0 {
		fresh = append([]string{"mirrors:"}, fresh...)
	}
	if len(fresh) > 0 {
		splices = append(splices, splice{at: at, end: at, lines: fresh})
	}
	configs, err := e.configs(base, top, was)
	if err != nil {
		return nil, err
	}
	if len(configs.lines) > 0 {
		if configs.at == at && at == len(base) && mirrors == nil && len(fresh) > 0 {
			last := &splices[len(splices)-1]
			last.lines = append(last.lines, configs.lines...)
		} else {
			splices = append(splices, configs)
		}
	}
	if len(splices) == 0 {
		return base, nil
	}
	next := insert(base, e.fresh, splices...)
	return next, e.check(was, next)
}

// first puts the mirror before the endpoints of a registry's entry.
func (e registriesYAML) first(base []byte, entry *yaml.Node) ([]splice, error) {
	list := value(child(entry, "endpoint"))
	switch {
	case list == nil || list.Kind != yaml.SequenceNode:
		return nil, errByHand
	case slices.ContainsFunc(list.Content, func(n *yaml.Node) bool {
		return strings.TrimSuffix(n.Value, "/") == e.mirror.url()
	}):
		return nil, nil // the user added it
	case list.Style&yaml.FlowStyle != 0 || len(list.Content) == 0:
		return nil, errByHand
	}
	item := list.Content[0]
	at := lineOffset(base, item.Line)
	line, _, _ := strings.Cut(string(base[at:]), "\n")
	dash := strings.IndexByte(line, '-')
	if dash < 0 || strings.TrimSpace(line[:dash]) != "" {
		return nil, errByHand
	}
	return []splice{{at: at, end: at, lines: []string{line[:dash] + "- " + strconv.Quote(e.mirror.url())}}}, nil
}

// configs plans what the client needs for its own requests to registries with certificates of their own.
func (e registriesYAML) configs(base []byte, top *yaml.Node, was registriesTree) (splice, error) {
	entries := child(top, "configs")
	indent := "  "
	if c := value(entries); c != nil && c.Kind == yaml.MappingNode && len(c.Content) > 0 {
		indent = strings.Repeat(" ", c.Content[0].Column-1)
	}
	var lines []string
	for _, u := range e.mirror.Upstreams {
		if _, theirs := was.Configs[u.Host]; theirs || u.CA == "" && u.ClientCert == "" {
			continue
		}
		lines = append(lines, indent+strconv.Quote(u.Host)+":", indent+"  tls:")
		for _, file := range []struct{ key, path string }{
			{"ca_file", u.CA}, {"cert_file", u.ClientCert}, {"key_file", u.ClientKey},
		} {
			if file.path != "" {
				lines = append(lines, indent+"    "+file.key+": "+strconv.Quote(file.path))
			}
		}
	}
	if len(lines) == 0 {
		return splice{}, nil
	}
	if entries == nil {
		return splice{at: len(base), end: len(base), lines: append([]string{"configs:"}, lines...)}, nil
	}
	if c := value(entries); c.Style&yaml.FlowStyle != 0 || c.Kind != yaml.MappingNode {
		return splice{}, errByHand
	}
	at := lineOffset(base, entries[0].Line+1)
	return splice{at: at, end: at, lines: lines}, nil
}

// check returns an error unless an edited file has the mirror first for each registry, and all else as it was.
func (e registriesYAML) check(was registriesTree, next []byte) error {
	var is registriesTree
	if err := yaml.Unmarshal(next, &is); err != nil {
		return errByHand
	}
	for _, u := range e.mirror.Upstreams {
		endpoints := is.Mirrors[u.Host].Endpoint
		if !slices.ContainsFunc(endpoints, func(s string) bool { return strings.TrimSuffix(s, "/") == e.mirror.url() }) {
			return errByHand
		}
		left := slices.DeleteFunc(slices.Clone(endpoints), func(s string) bool { return s == e.mirror.url() })
		if theirs, ok := was.Mirrors[u.Host]; ok && len(theirs.Endpoint) < len(endpoints) &&
			!slices.Equal(left, theirs.Endpoint) {
			return errByHand
		}
	}
	for host, entry := range was.Mirrors {
		if !slices.ContainsFunc(e.mirror.Upstreams, func(u Upstream) bool { return u.Host == host }) &&
			!slices.Equal(entry.Endpoint, is.Mirrors[host].Endpoint) {
			return errByHand
		}
	}
	for host, entry := range was.Configs {
		if !reflect.DeepEqual(entry, is.Configs[host]) {
			return errByHand
		}
	}
	return nil
}

func (registriesYAML) remove(now []byte) ([]byte, error) { return strip(now) }

// child returns the key and the value of an entry of a mapping, or nil.
func child(mapping *yaml.Node, key string) []*yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i : i+2]
		}
	}
	return nil
}

// value returns the value of an entry, or nil.
func value(entry []*yaml.Node) *yaml.Node {
	if entry == nil {
		return nil
	}
	return entry[1]
}

// lineOffset returns the offset of a line, the first of which is 1.
func lineOffset(text []byte, line int) int {
	at := 0
	for ; line > 1 && at < len(text); line-- {
		at = lineEnd(text, at)
	}
	return at
}
