package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/http/httpguts"

	"github.com/darter-io/darter/pkg/hostmatch"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/rules"
)

// Bounds of settings.
const (
	// secretMin is the least number of characters of a cluster secret. A shorter one can be guessed offline by anyone who
	// connected once.
	secretMin = 32
	// quotaMin is the least quota, in bytes.
	quotaMin Size = 64 << 20
	// uploadSlotsMax bounds the pieces that are sent at once: each holds an open file.
	uploadSlotsMax = 1024
	// rateMin is the lowest limit, in bytes per second. The other side treats a slower transfer as dead.
	rateMin Rate = 64 << 10
)

// Validate completes settings that depend on others and rejects contradictions.
func (c *Dfdaemon) Validate() error {
	return errors.Join(
		c.Node.finish("dfdaemon"),
		c.Node.checkLabels(),
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
		connectable("supernodes", c.Supernodes...),
	)
}

// Validate completes settings that depend on others and rejects contradictions.
func (c *Supernode) Validate() error {
	return errors.Join(
		c.Node.finish("supernode"),
		c.Node.checkLabels(),
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
		c.Preheat.Doors.check(),
		c.Origins.check(),
		c.Cache.check(),
		c.Drain.check(),
	)
}

// Validate completes settings that depend on others and rejects contradictions.
func (c *Dfget) Validate() error {
	_, err := oci.ParseDigest(c.Digest)
	return errors.Join(
		reject(c.Digest != "" && err != nil, "digest: %q is not a digest; "+
			"write sha256: and 64 lower-case hex digits, or sha512: and 128", c.Digest),
		reject(c.PasswordFile != "" && c.User == "", "passwordFile: there is a password but no user; add --user"),
		reject(c.User != "" && c.PasswordFile == "", "user: there is a user but no password; "+
			"add --password-file, or an entry in ~/.netrc in place of --user"),
		c.Cluster.finish(),
		connectable("supernodes", c.Supernodes...),
		reject(c.Daemon.Port() == "0", "daemon: %s has no port to connect to; write that of the dfdaemon's api.listen",
			c.Daemon),
		reject(c.Retries < 0, "retries: must be 0 or more"),
		reject(c.Timeout < 0, "timeout: must be 0 (no limit) or more"),
	)
}

// labelMax bounds a key and a value of a label, in bytes, and labelsMax the labels of a node.
const labelMax, labelsMax = 256, 64

func (n *Node) checkLabels() error {
	if len(n.Labels) > labelsMax {
		return fmt.Errorf("node.labels: there are %d labels, at most %d are possible", len(n.Labels), labelsMax)
	}
	for _, l := range n.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" || len(k) > labelMax || len(v) > labelMax || strings.ContainsFunc(l, unicode.IsControl) {
			return fmt.Errorf("node.labels: %.60q is no label; write KEY=VALUE, as disk=ssd", l)
		}
	}
	return nil
}

// LabelMap returns the labels by their keys; of two with one key, the last counts.
func (n *Node) LabelMap() map[string]string {
	if len(n.Labels) == 0 {
		return nil
	}
	out := make(map[string]string, len(n.Labels))
	for _, l := range n.Labels {
		k, v, _ := strings.Cut(l, "=")
		out[k] = v
	}
	return out
}

// reject returns the error if a setting is wrong, else nil. [cmp.Or] chooses the first of several errors.
func reject(wrong bool, format string, args ...any) error {
	if !wrong {
		return nil
	}
	return fmt.Errorf(format, args...)
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
func (c *Cluster) finish() (err error) {
	if c.SecretFile != "" {
		if !c.Secret.IsZero() {
			return errors.New("cluster.secretFile: cluster.secret is set too; leave one of them out")
		}
		if c.Secret, err = ReadSecretFile(c.SecretFile); err != nil {
			return fmt.Errorf("cluster.secretFile: %w", err)
		}
	}
	n := len(c.Secret.Reveal())
	return reject(n > 0 && n < secretMin,
		"cluster.secret: %d characters can be guessed; use %d or more, for example of: openssl rand -hex 32", n, secretMin)
}

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
	return reject(!open && !a.Loopback(), "%s: %s can be reached from other machines, and the cluster has no secret: "+
		"set cluster.secretFile (or DARTER_CLUSTER_SECRET), listen on a loopback address, or set cluster.insecure "+
		"(--cluster-insecure)", key, *a)
}

func loopbackOnly(key string, a Address) error {
	return reject(!a.Loopback(), "%s: %s can be reached from other machines, and this API has no authentication: use "+
		"127.0.0.1:%s or [::1]:%s", key, a, a.Port(), a.Port())
}

func advertised(section string, a Address) error {
	nowhere := slices.Contains([]string{"", "0.0.0.0", "::"}, a.Host()) || a.Port() == "0"
	return reject(a != "" && nowhere, "%s.advertise: %s is not an address that others can connect to; "+
		"write the node's own, or remove the setting", section, a)
}

// connectable rejects addresses of other machines that have no host or no port.
func connectable(key string, addresses ...Address) error {
	var problems []error
	for _, a := range addresses {
		problems = append(problems, reject(a.Host() == "" || a.Port() == "0",
			"%s: %q does not say where to connect; write host:port", key, a))
	}
	return errors.Join(problems...)
}

func (p *Proxy) check(upstreams []Upstream) error {
	err := cmp.Or(
		reject((p.CA == "") != (p.CAKey == ""), "proxy: ca and caKey go together: a certificate and its key"),
		reject(p.Listen != "" && !p.Listen.Loopback() && p.Tunnel == TunnelAny,
			"proxy.listen: at %s every machine could reach any host from this node's address: "+
				"set proxy.tunnel to listed or none, or listen on 127.0.0.1", p.Listen),
		reject(p.Tunnel == TunnelListed && slices.Contains(p.TunnelHosts, hostmatch.Any),
			"proxy.tunnelHosts: %q matches every host; set proxy.tunnel to any for that, or list the hosts", hostmatch.Any),
	)
	for _, h := range p.Hosts {
		listed := slices.ContainsFunc(upstreams, func(u Upstream) bool { return strings.EqualFold(u.Host, h) })
		err = cmp.Or(err, reject(!listed, "proxy.hosts: %q is not in upstreams; add it there, too, in the same spelling", h))
	}
	return err
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
	return cmp.Or(
		reject(m.RightsLife < time.Second,
			"mirror.rightsLife: must be 1s or more, or the registry is asked many times for one image"),
		reject(m.TagLife < 0 || m.TagLife > time.Hour, "mirror.tagLife: must be from 0s (ask for each pull) to 1h"),
		reject(m.TagStale < 0, "mirror.tagStale: must be 0s (serve none) or more"),
		reject(m.PublicUnreachable < 0, "mirror.publicUnreachable: must be 0s (serve none) or more"),
		reject(m.ClusterTags < 0, "mirror.clusterTags: must be 0s (serve none) or more"),
	)
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
		return reject(len(g.Join) > 0, "gossip.join: gossip.listen is not set; set it, for example to :65006")
	}
	return errors.Join(c.guard("gossip.listen", &g.Listen, "65006"), connectable("gossip.join", g.Join...))
}

func (d *Doors) check() error {
	const key = "preheat.doors."
	err := cmp.Or(
		reject(d.Listen != "" && d.TokenFile == "" && d.Username == "" && d.Header == "", key+"listen: everybody could "+
			"order preheats at %s: set "+key+"tokenFile, or username and passwordFile, or header and headerFile", d.Listen),
		reject((d.Cert == "") != (d.Key == ""), key+"cert: a certificate and its key go together; set both"),
		reject(d.Listen != "" && !d.Listen.Loopback() && d.Cert == "" && !d.Insecure, key+"listen: at %s everyone on the "+
			"network path could read the credential and Harbor's tokens: set "+key+"cert and key, listen on a loopback "+
			"address, or set "+key+"insecure", d.Listen),
		reject((d.Username == "") != (d.PasswordFile == ""), key+"username and passwordFile belong together; set both"),
		reject((d.Header == "") != (d.HeaderFile == ""), key+"header and headerFile belong together; set both"),
		reject(d.Header != "" && !httpguts.ValidHeaderFieldName(d.Header), key+"header: %q is no name of a header",
			d.Header),
		reject(d.Scope == PreheatScope(rules.ScopeNone), key+"scope: none is for rules; write one-seed, all-seeds or "+
			"all-nodes"),
	)
	for i := range d.Rules {
		if e := d.Rules[i].check(); e != nil {
			err = cmp.Or(err, fmt.Errorf(key+"rules: entry %d: %w", i+1, e))
		}
	}
	return err
}

func (r *DoorRule) check() error {
	if len(r.Images) == 0 {
		return errors.New("images is missing: the names of the images, as harbor.corp/shop/**")
	}
	for _, glob := range slices.Concat(r.Images, r.Tags) {
		if err := rules.CheckGlob(glob); err != nil {
			return err
		}
	}
	// The bounds are those of a job.
	spec := preheat.Spec{Kind: preheat.Image, Reference: "a.test/b", Platforms: r.Platforms,
		Scope: preheat.Scope{Zones: r.Zones}}
	return spec.Validate()
}

// Policy returns the rules as package order takes them.
func (d *Doors) Policy() (list rules.Rules, scope preheat.ScopeKind) {
	for _, r := range d.Rules {
		list = append(list, rules.Rule{Images: r.Images, Tags: r.Tags, Scope: preheat.ScopeKind(r.Scope), Zones: r.Zones,
			Platforms: r.Platforms})
	}
	return list, preheat.ScopeKind(d.Scope)
}

func (o *Origins) check() error {
	var problems []error
	seen := map[string]bool{}
	for i, u := range o.Upstreams {
		if err := u.check(); err != nil {
			problems = append(problems, fmt.Errorf("upstreams: entry %d: %w", i+1, err))
		}
		problems = append(problems, reject(seen[u.Host],
			"upstreams: %s is there twice; one entry can have several urls", u.Host))
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
		if err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https" {
			return fmt.Errorf("%s: urls: %q is not a URL; write for example https://registry.test:5000", u.Host, base)
		}
		if p.User != nil {
			return fmt.Errorf("%s: urls: a URL must not contain a user; use username and passwordFile", u.Host)
		}
	}
	proxy, err := url.Parse(u.Proxy.Reveal())
	return cmp.Or(
		reject(u.FirstByte != 0 && u.FirstByte < time.Second, "%s: firstByte: %s is too short for a registry to answer; "+
			"write at least 1s, or leave it out for 10m", u.Host, u.FirstByte),
		reject(u.PlainHTTP && (u.Pin != "" || u.ServerName != ""), "%s: pin and serverName are about a certificate, and "+
			"plainHTTP has none; leave one of them out", u.Host),
		reject((u.ClientCert == "") != (u.ClientKey == ""), "%s: clientCert and clientKey belong together; set both", u.Host),
		reject((u.Username == "") != (u.PasswordFile == ""), "%s: username and passwordFile belong together; set both",
			u.Host),
		reject(u.DockerConfig != "" && u.Username != "", "%s: username and dockerConfig are both credentials; leave one of "+
			"them out", u.Host),
		reject(u.Proxy != "" && u.Proxy != "none" && (err != nil || proxy.Host == ""), "%s: proxy is not a URL; write for "+
			"example http://proxy.corp:3128, or none", u.Host),
	)
}

func (c *Cache) check() error {
	return cmp.Or(
		reject(c.Quota != 0 && c.Quota < quotaMin, "cache.quota: %s is too little for a layer; use %s or more, or 0 for "+
			"half of the free space", c.Quota, quotaMin),
		reject(c.LowWater <= 0 || c.LowWater > c.HighWater || c.HighWater > 1,
			"cache: lowWater %g and highWater %g must satisfy 0 < lowWater <= highWater <= 1", c.LowWater, c.HighWater),
	)
}

func (u *Upload) check() error {
	return reject(u.UploadSlots < 0 || u.UploadSlots > uploadSlotsMax,
		"peer.uploadSlots: %d is not between 0 and %d", u.UploadSlots, uploadSlotsMax)
}

func (l *Limits) check() error {
	check := func(key string, rate Rate) error {
		return reject(rate != 0 && rate < rateMin, "limits.%s: %s is so slow that other nodes give up; write at least %s, "+
			"or unlimited", key, rate, rateMin)
	}
	return errors.Join(check("upload", l.Upload), check("download", l.Download), check("task", l.Task),
		check("origin", l.Origin))
}

func (d *Drain) check() error { return reject(d.DrainTimeout < 0, "drainTimeout: must be 0 or more") }
