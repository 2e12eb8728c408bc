package clientconf

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/darter-io/darter/pkg/oci"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	containerdCerts  = "/etc/containerd/certs.d"
	hostsFile        = "hosts.toml"
	defaultHosts     = "_default"
)

// containerd plans a hosts.toml per registry, and in containerd's own file the config_path that makes its CRI plugin
// (and so Kubernetes) read them.
func (p *planner) containerd() error {
	file := p.opts.Config
	if file == "" {
		file = containerdConfig
	}
	if p.opts.HostsOnly {
		return p.hosts(p.hostsDirs(file))
	}
	text, doc, err := p.readConfig(file)
	if err != nil {
		return err
	}
	section, version := criRegistry(doc)
	if !p.undo {
		if err := p.criAllows(file, doc, section); err != nil {
			return err
		}
	}
	set, _ := doc.get(append(section, "config_path")...).(string)
	value, edit := containerdCerts, set == ""
	if there, err := p.imported(file, doc); err != nil {
		return err
	} else if there != "" {
		// containerd 1 reads only imports that its file names, so its file must set the same value.
		named := doc.get("imports") != nil || version > 2
		edit = edit && !named
		if value = there; named || set == "" {
			set = there
		}
	}
	if edit && !p.undo && !hasBlock(text) && doc.get(append(section, "config_path")...) == nil &&
		readsCerts(p.opts.Version) {
		edit, set = false, containerdCerts+":"+dockerCerts // its default
	}
	if edit || p.undo {
		did, err := p.file(file, configPath{fresh: p.fresh(file), section: section, value: value})
		if err != nil {
			return err
		}
		if did {
			p.plan.Restart = "systemctl restart containerd"
			p.plan.RestartNote = "containers keep running; running pulls start again"
		}
	}
	// The hosts.toml files go to the directories of config_path.
	dirs := []string{containerdCerts}
	if set != "" {
		dirs = strings.Split(set, ":")
	}
	if p.undo && !slices.Contains(dirs, containerdCerts) {
		dirs = append(dirs, containerdCerts) // from before config_path was changed
	}
	return p.hosts(dirs)
}

// readConfig reads a configuration of containerd; doc is without our part.
func (p *planner) readConfig(file string) (text []byte, doc *document, err error) {
	if text, err = p.files.read(file); err != nil {
		return nil, nil, err
	}
	base, err := strip(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	if doc, err = parseTOML(base); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return text, doc, nil
}

// hostsDirs returns the directories for the hosts.toml files if containerd's own file is not to be changed. It notes
// what keeps containerd from reading them; none of that is a reason to write nothing.
func (p *planner) hostsDirs(file string) []string {
	if p.opts.HostsDir != "" {
		return []string{p.opts.HostsDir}
	}
	set, err := p.namedDirs(file)
	switch {
	case p.undo:
	case err != nil:
		p.plan.Pending = true
		p.note("%v. Until then containerd may not read %s", err, containerdCerts)
	case set == "" && !readsCerts(p.opts.Version):
		p.plan.Pending = true
		p.note("containerd 2.2 and newer read %s by default. Older ones read it only if config_path in %s names it, and "+
			"only after a restart: run configure once without --hosts-only, or set it with the machine's image",
			containerdCerts, file)
	}
	dirs := []string{containerdCerts}
	if set != "" {
		dirs = strings.Split(set, ":")
	}
	if p.undo && !slices.Contains(dirs, containerdCerts) {
		dirs = append(dirs, containerdCerts) // from before config_path was changed
	}
	return dirs
}

// namedDirs returns the config_path of containerd's own file and of those that it imports, empty for none. The error
// says what keeps containerd from reading the directories; set is right all the same if it is not empty.
func (p *planner) namedDirs(file string) (set string, err error) {
	text, doc, err := p.readConfig(file)
	if err != nil {
		return "", err
	}
	if hasBlock(text) { // an earlier configure set it
		if doc, err = parseTOML(text); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
	}
	section, version := criRegistry(doc)
	set, _ = doc.get(append(section, "config_path")...).(string)
	if err := p.criAllows(file, doc, section); err != nil {
		return set, err
	}
	there, err := p.imported(file, doc)
	if there != "" && (set == "" || doc.get("imports") != nil || version > 2) {
		set = there
	}
	return set, err
}

// versionText finds the version in what "containerd --version" prints, without a distribution's suffix.
var versionText = regexp.MustCompile(`(?:^|[ v])(\d+)\.(\d+)\.\d+`)

// readsCerts reports whether a containerd reads the directories of hosts.toml files without a config_path.
func readsCerts(version string) bool {
	m := versionText.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 2 || major == 2 && minor >= 2
}

// importsUsual are the files that containerd 2 imports if its own file names none.
const importsUsual = "/etc/containerd/conf.d/*.toml"

// imported returns the config_path of the files that containerd's own imports; the last one overrides all others.
func (p *planner) imported(file string, doc *document) (set string, err error) {
	patterns := []any{importsUsual}
	if named, ok := doc.get("imports").([]any); ok {
		patterns = named
	}
	for _, pattern := range patterns {
		pattern, _ := pattern.(string)
		if !path.IsAbs(pattern) {
			pattern = path.Join(path.Dir(file), pattern)
		}
		dir, base := path.Split(pattern)
		names, err := p.files.list(dir)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			other := path.Join(dir, name)
			if ok, _ := path.Match(base, name); !ok || other == file {
				continue
			}
			text, err := p.files.read(other)
			if err != nil {
				return "", err
			}
			doc, err := parseTOML(text)
			if err != nil {
				return "", fmt.Errorf("%s, which %s imports: %w", other, file, err)
			}
			section, _ := criRegistry(doc)
			if !p.undo {
				if err := p.criAllows(other, doc, section); err != nil {
					return "", err
				}
			}
			if s, _ := doc.get(append(section, "config_path")...).(string); s != "" {
				set = s
			}
		}
	}
	return set, nil
}

// criRegistry returns the table of containerd's configuration that holds config_path. It depends on the version of the
// file, not of containerd: containerd 2 converts files of version 2.
func criRegistry(d *document) (section []string, version int64) {
	version, _ = d.get("version").(int64)
	switch {
	case len(d.tree) == 0:
		version = 2 // containerd 1.3 and newer read it
	case version == 0:
		version = 1
	}
	switch version {
	case 1:
		return []string{"plugins", "cri", "registry"}, version
	case 2:
		return []string{"plugins", "io.containerd.grpc.v1.cri", "registry"}, version
	}
	return []string{"plugins", "io.containerd.cri.v1.images", "registry"}, version
}

// criAllows returns an error for settings with which containerd does not start once config_path is set.
func (p *planner) criAllows(file string, d *document, section []string) error {
	name := header(section)
	if m, ok := d.get(append(section, "mirrors")...).(map[string]any); ok && len(m) > 0 {
		return fmt.Errorf(
			"%s has its own mirrors in %s.mirrors, for %s. With a config_path, containerd rejects them and its CRI plugin "+
				"would not start. Move each into %s/REGISTRY/%s as [host.\"ENDPOINT\"], delete the section, and run this again",
			file, strings.Trim(name, "[]"), keys(m), containerdCerts, hostsFile)
	}
	if m, ok := d.get(append(section, "configs")...).(map[string]any); ok {
		for host, c := range m {
			if c, ok := c.(map[string]any); ok && c["tls"] != nil {
				return fmt.Errorf(
					"%s has certificates for %s in %s.configs. With a config_path, containerd rejects them and its CRI plugin "+
						"would not start. Move them into %s/%s/%s (ca, client, skip_verify), delete the section, and run this again",
					file, host, strings.Trim(name, "[]"), containerdCerts, host, hostsFile)
			}
		}
	}
	if list, _ := d.get("disabled_plugins").([]any); slices.ContainsFunc(list, func(v any) bool {
		return v == "cri" || v == "io.containerd.grpc.v1.cri" || v == "io.containerd.cri.v1.images"
	}) {
		p.note("%s disables the CRI plugin: Kubernetes cannot use this containerd. ctr (with --hosts-dir %s) and nerdctl "+
			"still use the mirror", file, containerdCerts)
	}
	return nil
}

func keys(m map[string]any) string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

// configPath edits containerd's configuration.
type configPath struct {
	fresh   int
	section []string
	value   string
}

func (e configPath) add(old []byte) ([]byte, error) {
	base, doc, err := foreignTOML(old)
	if err != nil {
		return nil, err
	}
	s := doc.set(e.section, "config_path", strconv.Quote(e.value))
	changed := [][]string{append(slices.Clone(e.section), "config_path")}
	if len(doc.tree) == 0 {
		s.lines = append([]string{"version = 2"}, s.lines...)
		changed = append(changed, []string{"version"})
	}
	next := insert(base, e.fresh, s)
	if err := doc.onlyChanged(next, changed...); err != nil {
		return nil, fmt.Errorf("%w: set config_path = %q in %s by hand, restart containerd, and run this again",
			err, e.value, header(e.section))
	}
	return next, nil
}

func (configPath) remove(now []byte) ([]byte, error) { return strip(now) }

// hosts plans the hosts.toml of each registry in directories that are searched in turn, and removes our part for
// registries that are not mirrored any more.
func (p *planner) hosts(dirs []string) error {
	listed, trapped := map[string]bool{}, map[string][]string{}
	for _, u := range p.mirror.Upstreams {
		if p.undo {
			break
		}
		dir, err := p.hostDir(dirs, u.Host)
		if err != nil {
			return err
		}
		file := path.Join(dir, hostsFile)
		listed[file] = true
		server, err := p.server(dir, u)
		if err != nil {
			return err
		}
		if _, err := p.file(file, hostsEdit{fresh: p.fresh(file), mirror: p.mirror, server: server}); err != nil {
			return err
		}
		if by := p.defaultTrap(dirs, dir); by != "" {
			trapped[by] = append(trapped[by], u.Host)
		}
	}
	for _, by := range slices.Sorted(maps.Keys(trapped)) {
		p.note("%s applies to registries without a directory of their own. These registries get one now, so it no longer "+
			"applies to them: %s. Copy what they still need from it (another mirror, a certificate) into their %s", by,
			strings.Join(trapped[by], ", "), hostsFile)
	}
	for _, dir := range dirs {
		names, err := p.files.list(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := p.outdated(path.Join(dir, name, hostsFile), listed); err != nil {
				return err
			}
		}
	}
	return nil
}

// outdated removes our part from a file that is not listed any more.
func (p *planner) outdated(file string, listed map[string]bool) error {
	if listed[file] {
		return nil
	}
	text, err := p.files.read(file)
	if err != nil {
		return err
	}
	kept, err := p.files.read(file + keptSuffix)
	if err != nil || !hasBlock(text) && kept == nil {
		return err
	}
	_, err = p.restore(file, hostsEdit{}, text, kept)
	return err
}

// hostDir returns the directory of a registry: the first that containerd finds, else the one to create.
func (p *planner) hostDir(dirs []string, host string) (string, error) {
	name, port, err := net.SplitHostPort(host)
	for _, dir := range dirs {
		if err == nil && p.files.has(path.Join(dir, name+"_"+port+"_")) {
			return path.Join(dir, name+"_"+port+"_"), nil
		}
		if p.files.has(path.Join(dir, host)) {
			return path.Join(dir, host), nil
		}
	}
	return path.Join(dirs[0], host), nil
}

// defaultTrap returns the _default file that no longer applies to a registry once it has its own directory. It is empty
// if there is none, or if the registry already has a directory.
func (p *planner) defaultTrap(dirs []string, dir string) string {
	if p.files.has(dir) {
		return ""
	}
	for _, d := range dirs {
		if file := path.Join(d, defaultHosts, hostsFile); p.files.has(file) {
			return file
		}
	}
	return ""
}

// server returns the lines for the registry itself, which clients use if the mirror does not respond. They name the
// certificates in the directory, because containerd does not look for these once there is a hosts.toml.
func (p *planner) server(dir string, u Upstream) ([]string, error) {
	scheme := "https://"
	if u.PlainHTTP {
		scheme = "http://"
	}
	lines := []string{"server = " + strconv.Quote(scheme+oci.Endpoint(u.Host))}
	names, err := p.files.list(dir)
	if err != nil {
		return nil, err
	}
	var cas, pairs []string
	if u.CA != "" {
		cas = append(cas, strconv.Quote(u.CA))
	}
	if u.ClientCert != "" && u.ClientKey != "" {
		pairs = append(pairs, fmt.Sprintf("[%q, %q]", u.ClientCert, u.ClientKey))
	}
	for _, name := range names {
		switch path.Ext(name) {
		case ".crt":
			cas = append(cas, strconv.Quote(path.Join(dir, name)))
		case ".cert":
			if key := strings.TrimSuffix(name, ".cert") + ".key"; slices.Contains(names, key) {
				pairs = append(pairs, fmt.Sprintf("[%q, %q]", path.Join(dir, name), path.Join(dir, key)))
			}
		}
	}
	if len(cas) > 0 {
		lines = append(lines, "ca = ["+strings.Join(cas, ", ")+"]")
	}
	if len(pairs) > 0 {
		lines = append(lines, "client = ["+strings.Join(pairs, ", ")+"]")
	}
	return lines, nil
}

// hostsEdit adds the mirror as the first host of a hosts.toml.
type hostsEdit struct {
	fresh  int
	mirror Mirror
	server []string
}

func (e hostsEdit) add(old []byte) ([]byte, error) {
	base, doc, err := foreignTOML(old)
	if err != nil {
		return nil, err
	}
	if doc.get("host", e.mirror.url()) != nil || doc.get("server") == e.mirror.url() {
		return base, nil // the user added it
	}
	at := len(base)
	if len(doc.tables) > 0 {
		at = doc.tables[0].start
		// A comment above a table belongs to it.
		for at > 0 && base[lineStart(base, at-1)] == '#' {
			at = lineStart(base, at-1)
		}
	}
	s := splice{at: at, end: at}
	changed := [][]string{{"host", e.mirror.url()}}
	if len(doc.tree) == 0 {
		s.lines = append(slices.Clone(e.server), "")
		for _, l := range e.server {
			name, _, _ := strings.Cut(l, " ")
			changed = append(changed, []string{name})
		}
	}
	capabilities := `["pull", "resolve"]`
	if e.mirror.DigestsOnly {
		capabilities = `["pull"]`
	}
	s.lines = append(s.lines, header([]string{"host", e.mirror.url()}),
		"capabilities = "+capabilities, "dial_timeout = "+strconv.Quote(e.dialTimeout()))
	next := insert(base, e.fresh, s)
	if err := doc.onlyChanged(next, changed...); err != nil {
		return nil, fmt.Errorf("%w: add %s with capabilities = %s before its other hosts by hand",
			err, header([]string{"host", e.mirror.url()}), capabilities)
	}
	return next, nil
}

// dialTimeout is how long containerd (2.1 and newer) tries to connect to the mirror. The mirror of this machine accepts
// at once or not at all.
func (e hostsEdit) dialTimeout() string {
	host, _, _ := net.SplitHostPort(e.mirror.Addr)
	if addr, err := netip.ParseAddr(host); err == nil && addr.IsLoopback() {
		return "200ms"
	}
	return "1s"
}

func (hostsEdit) remove(now []byte) ([]byte, error) {
	if bytes.Contains(now, []byte(beginPrefix)) {
		return strip(now)
	}
	return now, nil
}
