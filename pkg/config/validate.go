package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/secret"
)

// secretMin is the least number of characters of a cluster secret. A shorter one can be guessed offline by anyone who
// connected once.
const secretMin = 32

// Validate completes settings that depend on others and rejects contradictions.
func (c *Dfdaemon) Validate() error {
	return errors.Join(
		c.Node.finish("dfdaemon"),
		c.Cluster.finish(),
		c.Cluster.guard("peer.listen", &c.Peer.Listen, "65002"),
		loopbackOnly("api.listen", c.API.Listen),
		c.Proxy.check(c.Upstreams),
		c.Mirror.check(),
		advertised("peer", c.Peer.Advertise),
		c.Peer.Upload.check(),
		c.Limits.check(),
		c.Origins.check(),
		c.Cache.check(),
		c.Drain.check(),
		each("supernodes", c.Supernodes, func(a Address) error {
			if a.Host() == "" || a.Port() == "0" {
				return fmt.Errorf("%q does not say where to connect; write host:port", a)
			}
			return nil
		}),
	)
}

func (p *Proxy) check(upstreams []Upstream) error {
	if (p.CA == "") != (p.CAKey == "") {
		return errors.New("proxy: ca and caKey go together: a certificate and its key")
	}
	if p.Listen != "" && !p.Listen.Loopback() && p.Tunnel == TunnelAny {
		return fmt.Errorf("proxy.listen: at %s every machine could reach any host from this node's address: "+
			"set proxy.tunnel to listed or none, or listen on 127.0.0.1", p.Listen)
	}
	if p.Tunnel == TunnelListed && slices.Contains(p.TunnelHosts, hostmatch.Any) {
		return fmt.Errorf("proxy.tunnelHosts: %q matches every host; set proxy.tunnel to any for that, or list the "+
			"hosts", hostmatch.Any)
	}
	for _, h := range p.Hosts {
		if !slices.ContainsFunc(upstreams, func(u Upstream) bool { return strings.EqualFold(u.Host, h) }) {
			return fmt.Errorf("proxy.hosts: %q is not in upstreams; add it there, too, in the same spelling", h)
		}
	}
	return nil
}

// Validate completes settings that depend on others and rejects contradictions.
func (c *Supernode) Validate() error {
	return errors.Join(
		c.Node.finish("supernode"),
		c.Cluster.finish(),
		c.Cluster.guard("api.listen", &c.API.Listen, "65000"),
		c.Cluster.guard("peer.listen", &c.Peer.Listen, "65004"),
		loopbackOnly("admin.listen", c.Admin.Listen),
		advertised("api", c.API.Advertise),
		advertised("peer", c.Peer.Advertise),
		c.Peer.Upload.check(),
		c.Limits.check(),
		advertised("gossip", c.Gossip.Advertise),
		c.Gossip.check(c.Cluster),
		c.Origins.check(),
		c.Cache.check(),
		c.Drain.check(),
	)
}

// check also normalises the names of registries.
func (m *Mirror) check() (err error) {
	if m.DefaultUpstream != "" {
		if m.DefaultUpstream, err = oci.ParseHost(m.DefaultUpstream); err != nil {
			return fmt.Errorf("mirror.defaultUpstream: %w; write for example quay.io", err)
		}
	}
	for i := range m.Listeners {
		if err := m.Listeners[i].check(); err != nil {
			return fmt.Errorf("mirror.listeners: entry %d: %w", i+1, err)
		}
	}
	if m.RightsLife < time.Second {
		return errors.New("mirror.rightsLife: must be 1s or more, or the registry is asked many times for one image")
	}
	if m.TagLife < 0 || m.TagLife > time.Hour {
		return errors.New("mirror.tagLife: must be from 0s (ask for each pull) to 1h")
	}
	if m.TagStale < 0 {
		return errors.New("mirror.tagStale: must be 0s (serve none) or more")
	}
	return nil
}

func (l *MirrorListener) check() (err error) {
	if l.Listen == "" {
		return errors.New("listen is missing: the address to listen on")
	}
	if l.Upstream, err = oci.ParseHost(l.Upstream); err != nil {
		return fmt.Errorf("%w; write for example %s=quay.io", err, l.Listen)
	}
	return nil
}

func (g *Gossip) check(c Cluster) error {
	if g.Listen == "" {
		if len(g.Join) > 0 {
			return errors.New("gossip.join: gossip.listen is not set; set it, for example to :65006")
		}
		return nil
	}
	return c.guard("gossip.listen", &g.Listen, "65006")
}

// Validate rejects contradictions.
func (c *Dfget) Validate() error {
	var problems []error
	if c.Digest != "" {
		algorithm, digits, _ := strings.Cut(c.Digest, ":")
		b, err := hex.DecodeString(digits)
		if want := map[string]int{"sha256": 32, "sha512": 64}[algorithm]; err != nil || want == 0 || len(b) != want ||
			strings.ToLower(digits) != digits {
			problems = append(problems, fmt.Errorf("digest: %q is not a digest; "+
				"write sha256: and 64 lower-case hex digits, or sha512: and 128", c.Digest))
		}
	}
	if c.PasswordFile != "" && c.User == "" {
		problems = append(problems, errors.New("passwordFile: there is a password but no user; add --user"))
	}
	if c.User != "" && c.PasswordFile == "" {
		problems = append(problems, errors.New("user: there is a user but no password; "+
			"add --password-file, or an entry in ~/.netrc in place of --user"))
	}
	if err := c.Cluster.finish(); err != nil {
		problems = append(problems, err)
	}
	if c.Retries < 0 {
		problems = append(problems, errors.New("retries: must be 0 or more"))
	}
	if c.Timeout < 0 {
		problems = append(problems, errors.New("timeout: must be 0 (no limit) or more"))
	}
	return errors.Join(problems...)
}

func (n *Node) finish(program string) error {
	if n.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node.name: the host name is not known (%w); set one", err)
		}
		n.Name = name
	}
	if n.DataDir == "" {
		dir, err := defaultDataDir(program)
		if err != nil {
			return fmt.Errorf("node.dataDir: %w; set one", err)
		}
		n.DataDir = dir
	}
	abs, err := filepath.Abs(n.DataDir)
	if err != nil {
		return fmt.Errorf("node.dataDir: %w", err)
	}
	n.DataDir = abs
	return nil
}

func defaultDataDir(program string) (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/darter", program), nil
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "darter", program), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local/share/darter", program), nil
}

// finish reads the secret from its file.
func (c *Cluster) finish() error {
	if c.SecretFile != "" {
		if !c.Secret.IsZero() {
			return errors.New("cluster.secretFile: cluster.secret is set too; leave one of them out")
		}
		b, err := readSecretFile(c.SecretFile)
		if err != nil {
			return fmt.Errorf("cluster.secretFile: %w", err)
		}
		c.Secret = b
	}
	if n := len(c.Secret.Reveal()); n > 0 && n < secretMin {
		return fmt.Errorf(
			"cluster.secret: %d characters can be guessed; use %d or more, for example of: openssl rand -hex 32",
			n, secretMin)
	}
	return nil
}

// secretFileMax bounds the files that hold secrets, in bytes.
const secretFileMax = 64 << 10

func readSecretFile(path string) (secret.String, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if _, err := SecretFileMode(path); err != nil {
		return "", err
	}
	if info.Size() > secretFileMax {
		return "", fmt.Errorf("%s is larger than %d bytes and cannot be a secret", path, secretFileMax)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return secret.String(text), nil
}

// SecretFileMode checks the permissions of a file with a secret. The error says that every user of the machine may
// change it: its content is then not under the operator's control. The warning says that every user may read it, or
// that its group may change it, as container platforms mount secrets; it is empty if neither is so.
func SecretFileMode(path string) (warning string, err error) {
	info, err := os.Stat(path) // follows links
	if err != nil {
		return "", err
	}
	mode := info.Mode().Perm()
	if !info.Mode().IsRegular() {
		return "", nil
	}
	switch {
	case mode&0o002 != 0:
		return "", fmt.Errorf(
			"%s holds a secret, and every user of the machine may change it (mode %04o): chmod 600 %s",
			path, mode, path)
	case mode&0o004 != 0:
		return fmt.Sprintf("%s holds a secret, and every user of the machine may read it (mode %04o): "+
			"chmod 600 %s, or for a Kubernetes secret set defaultMode: 0400", path, mode, path), nil
	case mode&0o020 != 0:
		return fmt.Sprintf("%s holds a secret, and its group may change it (mode %04o): chmod g-w %s", path,
			mode, path), nil
	}
	return "", nil
}

// ReadSecretFile reads a file with one secret and removes white space at both ends. The error names the file and never
// its content.
func ReadSecretFile(path string) (secret.String, error) { return readSecretFile(path) }

// guard sets the default of a listen address. It rejects an address that other machines reach while no secret protects
// it.
func (c *Cluster) guard(key string, a *Address, port string) error {
	open := !c.Secret.IsZero() || c.SecretFile != "" || c.Insecure
	if *a == "" {
		*a = Address("127.0.0.1:" + port)
		if open {
			*a = Address(":" + port)
		}
	}
	if !open && !a.Loopback() {
		return fmt.Errorf("%s: %s can be reached from other machines, and the cluster has no secret: "+
			"set cluster.secretFile (or DARTER_CLUSTER_SECRET), listen on a loopback address, or set cluster.insecure "+
			"(--cluster-insecure)", key, *a)
	}
	return nil
}

func loopbackOnly(key string, a Address) error {
	if !a.Loopback() {
		return fmt.Errorf("%s: %s can be reached from other machines, and this API has no authentication: use "+
			"127.0.0.1:%s or [::1]:%s", key, a, a.Port(), a.Port())
	}
	return nil
}

func advertised(section string, a Address) error {
	if a == "" {
		return nil
	}
	if host := a.Host(); host == "" || host == "0.0.0.0" || host == "::" || a.Port() == "0" {
		return fmt.Errorf("%s.advertise: %s is not an address that others can connect to; "+
			"write the node's own, or remove the setting", section, a)
	}
	return nil
}

func (o *Origins) check() error {
	var problems []error
	seen := map[string]bool{}
	for i, u := range o.Upstreams {
		if err := u.check(); err != nil {
			problems = append(problems, fmt.Errorf("upstreams: entry %d: %w", i+1, err))
		}
		if seen[u.Host] {
			problems = append(problems,
				fmt.Errorf("upstreams: %s is there twice; one entry can have several urls", u.Host))
		}
		seen[u.Host] = true
	}
	return errors.Join(problems...)
}

func (u *Upstream) check() error {
	if u.Host == "" {
		return errors.New("host is missing: the registry's name as image names write it")
	}
	if strings.Contains(u.Host, "/") {
		return fmt.Errorf("host %q is not a host name; write for example quay.io or registry.test:5000, "+
			"and the URL to connect to under urls", u.Host)
	}
	for _, base := range u.URLs {
		p, err := url.Parse(base)
		if err != nil || p.Host == "" || !slices.Contains([]string{"http", "https"}, p.Scheme) {
			return fmt.Errorf("%s: urls: %q is not a URL; write for example https://registry.test:5000", u.Host, base)
		}
		if p.User != nil {
			return fmt.Errorf("%s: urls: a URL must not contain a user; use username and passwordFile", u.Host)
		}
	}
	if u.FirstByte != 0 && u.FirstByte < time.Second {
		return fmt.Errorf("%s: firstByte: %s is too short for a registry to answer; write at least 1s, or leave it out "+
			"for 10m", u.Host, u.FirstByte)
	}
	if u.PlainHTTP && (u.Pin != "" || u.ServerName != "") {
		return fmt.Errorf("%s: pin and serverName are about a certificate, and plainHTTP has none; leave one of them out",
			u.Host)
	}
	if (u.ClientCert == "") != (u.ClientKey == "") {
		return fmt.Errorf("%s: clientCert and clientKey belong together; set both", u.Host)
	}
	if (u.Username == "") != (u.PasswordFile == "") {
		return fmt.Errorf("%s: username and passwordFile belong together; set both", u.Host)
	}
	if u.DockerConfig != "" && u.Username != "" {
		return fmt.Errorf("%s: username and dockerConfig are both credentials; leave one of them out", u.Host)
	}
	if u.Proxy != "" && u.Proxy != "none" {
		if p, err := url.Parse(u.Proxy.Reveal()); err != nil || p.Host == "" {
			return fmt.Errorf("%s: proxy is not a URL; write for example http://proxy.corp:3128, or none", u.Host)
		}
	}
	return nil
}

func (c *Cache) check() error {
	if c.Quota != 0 && c.Quota < 64<<20 {
		return fmt.Errorf("cache.quota: %s is too little for a layer; use 64MiB or more, or 0 for half of the free "+
			"space", c.Quota)
	}
	if c.LowWater <= 0 || c.LowWater > c.HighWater || c.HighWater > 1 {
		return fmt.Errorf("cache: lowWater %g and highWater %g must satisfy 0 < lowWater <= highWater <= 1",
			c.LowWater, c.HighWater)
	}
	return nil
}

// uploadSlotsMax bounds the pieces that are sent at once: each holds an open file.
const uploadSlotsMax = 1024

func (u *Upload) check() error {
	if u.UploadSlots < 0 || u.UploadSlots > uploadSlotsMax {
		return fmt.Errorf("peer.uploadSlots: %d is not between 0 and %d", u.UploadSlots, uploadSlotsMax)
	}
	return nil
}

// rateMin is the lowest limit, in bytes per second. The other side treats a slower transfer as dead.
const rateMin = 64 << 10

func (l *Limits) check() error {
	var problems []error
	for _, limit := range []struct {
		key  string
		rate Rate
	}{{"upload", l.Upload}, {"download", l.Download}, {"task", l.Task}, {"origin", l.Origin}} {
		if limit.rate != 0 && limit.rate < rateMin {
			problems = append(problems,
				fmt.Errorf("limits.%s: %s is so slow that other nodes give up; write at least %s, "+
					"or unlimited", limit.key, limit.rate, Rate(rateMin)))
		}
	}
	return errors.Join(problems...)
}

func (d *Drain) check() error {
	if d.DrainTimeout < 0 {
		return errors.New("drainTimeout: must be 0 or more")
	}
	return nil
}

func each[T any](key string, list []T, check func(T) error) error {
	var problems []error
	for _, item := range list {
		if err := check(item); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		}
	}
	return errors.Join(problems...)
}
