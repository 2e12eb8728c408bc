package config

import (
	"fmt"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/darter-io/darter/pkg/secret"
)

// A comment of a field is its page in docs/configuration.md, and its first paragraph is its
// line in --help. Tags: key is the name in the file, from which flag and variable follow;
// default is written as in a file; reload:"yes" marks what SIGHUP can change.

// Program is one of the programs and its empty settings.
type Program struct {
	Name, Purpose string
	New           func() any
}

// Programs lists the programs that are configured here.
func Programs() []Program {
	return []Program{
		{"dfdaemon", "dfdaemon runs on every node: registry mirror, piece store and peer.", func() any { return new(Dfdaemon) }},
		{"supernode", "supernode leads tasks: it fetches each content once from its origin and tells peers of each other.", func() any { return new(Supernode) }},
		{"dfget", "dfget downloads files through the dfdaemon of this machine.", func() any { return new(Dfget) }},
	}
}

// Dfdaemon is the configuration of dfdaemon.
type Dfdaemon struct {
	Node    Node    `yaml:"node"`
	Mirror  Mirror  `yaml:"mirror"`
	Proxy   Proxy   `yaml:"proxy"`
	API     API     `yaml:"api"`
	Peer    Peer    `yaml:"peer"`
	Cluster Cluster `yaml:"cluster"`

	// Supernodes are the API addresses of supernodes, host:port each; one live one is
	// enough, for it tells of the others. With none given the daemon leads its own tasks and is
	// a pull-through cache by itself. While none of them answers, three dfdaemons stand in for
	// them (peer.standby).
	//
	// A cluster may do without supernodes: give all its dfdaemons the same list of the piece
	// addresses (peer.advertise) of a few of them, which then lead.
	Supernodes []Address `yaml:"supernodes"`

	Limits Limits `yaml:"limits"`
	Cache  Cache  `yaml:"cache"`
	Origins
	Files DaemonFiles `yaml:"files"`
	Log   Log         `yaml:"log"`
	Drain
}

// Supernode is the configuration of supernode.
type Supernode struct {
	Node    Node           `yaml:"node"`
	API     SupernodeAPI   `yaml:"api"`
	Admin   SupernodeAdmin `yaml:"admin"`
	Peer    SupernodePeer  `yaml:"peer"`
	Cluster Cluster        `yaml:"cluster"`
	Gossip  Gossip         `yaml:"gossip"`
	Limits  Limits         `yaml:"limits"`
	Cache   Cache          `yaml:"cache"`
	Origins
	Files Files `yaml:"files"`
	Log   Log   `yaml:"log"`
	Drain
}

// Node says which machine this is.
type Node struct {
	// Name is what people call this node in logs, status and metrics. Default: the host name.
	Name string `yaml:"name"`
	// Zone is the name of a place inside of which traffic is cheap: a rack, a data centre,
	// a cloud zone. A few nodes of each zone fetch for the others there; nodes that name
	// none are one zone.
	Zone string `yaml:"zone"`
	// DataDir is where pieces, journals and the node's identity are kept. One process owns
	// it at a time. Default: /var/lib/darter/PROGRAM for root, else darter/PROGRAM under
	// $XDG_DATA_HOME or ~/.local/share.
	DataDir string `yaml:"dataDir"`
}

// Mirror is where container runtimes pull.
type Mirror struct {
	// Listen is the address of the registry mirror, to be named in hosts.toml. Beyond
	// loopback, whoever reaches it can pull what the registry gives to anonymous clients,
	// over plain HTTP.
	Listen Address `yaml:"listen" default:"127.0.0.1:65001"`
	// DefaultUpstream is the registry that is meant by a client that names none (dockerd's
	// registry-mirrors).
	DefaultUpstream string `yaml:"defaultUpstream" default:"docker.io"`
	// Listeners are further addresses of the mirror, each with the registry that is meant there by
	// a client that names none: ADDRESS=REGISTRY, or in a file a mapping with the keys listen
	// and upstream. For clients that can neither send ?ns= nor put a registry into the path.
	Listeners []MirrorListener `yaml:"listeners"`
	// RightsLife is the longest that a registry's yes to one credential, for one digest of one
	// repository, is remembered. A token that ends earlier ends it; passwords, and tokens that
	// do not say when they end, count for a minute at the most. Longer spares the registry
	// questions; shorter sees sooner that it took a right away before the token ended.
	RightsLife time.Duration `yaml:"rightsLife" default:"1h" reload:"yes"`
	// RightsUnreachable says what happens to a right that has to be renewed while its
	// registry is unreachable: refuse, or serve-cached to count it on until the token ends by
	// its own word. What is served so says X-Darter-Unverified.
	RightsUnreachable Unreachable `yaml:"rightsUnreachable" default:"refuse" reload:"yes"`
	// TagLife is how old the answer may be to what a tag means; within it the cluster asks a
	// registry once for each tag. Longer spares questions, shorter sees sooner that a tag has
	// moved. 0 asks for each pull.
	TagLife time.Duration `yaml:"tagLife" default:"10s" reload:"yes"`
	// TagStale is how old that answer may be while the registry is unreachable. An old image
	// is then run without anybody asking for it, so it is off (0) by default. What is served so
	// says its age in seconds in X-Darter-Stale.
	TagStale time.Duration `yaml:"tagStale" default:"0s" reload:"yes"`
}

// MirrorListener is one of [Mirror].Listeners.
type MirrorListener struct {
	// Listen is an address as that of the mirror itself.
	Listen Address `yaml:"listen,omitempty"`
	// Upstream is a registry as image names write it.
	Upstream string `yaml:"upstream,omitempty"`
}

// UnmarshalText reads the short form ADDRESS=REGISTRY.
func (l *MirrorListener) UnmarshalText(b []byte) error {
	address, upstream, _ := strings.Cut(string(b), "=")
	*l = MirrorListener{Upstream: upstream}
	if err := l.Listen.UnmarshalText([]byte(address)); err != nil {
		return err
	}
	return l.check()
}

// Unit names the kind of value in --help.
func (MirrorListener) Unit() string { return "ADDRESS=REGISTRY" }

// Unreachable is refuse or serve-cached.
type Unreachable string

// ServeCached is the [Unreachable] that goes on serving.
const ServeCached Unreachable = "serve-cached"

// UnmarshalText checks what it is.
func (u *Unreachable) UnmarshalText(b []byte) error {
	return oneOf((*string)(u), string(b), "refuse", string(ServeCached))
}

// Unit names the kind of value in --help.
func (Unreachable) Unit() string { return "refuse|" + string(ServeCached) }

// Proxy is the HTTP proxy for clients that know no mirror for a registry: Docker's graph
// driver, for all but Docker Hub.
type Proxy struct {
	// Listen is the address of the HTTP proxy, to be named in HTTP_PROXY and HTTPS_PROXY of
	// the client. Usual port: 65007. Beyond loopback, tunnel must not be any. Default: none.
	Listen Address `yaml:"listen"`
	// CA is the PEM file of an authority that clients were told to trust for the
	// registries, caKey its key; "dfdaemon proxy-ca" makes both. With it the proxy can look into their TLS and
	// give pulls to the mirror. Without it only registries in plain HTTP are mirrored.
	CA string `yaml:"ca"`
	// CAKey is the PEM file of that authority's key. Who has it can pose as these registries towards the clients.
	CAKey string `yaml:"caKey"`
	// Hosts are the registries, of those in upstreams, whose pulls are given to the mirror.
	// A client that does not trust ca fails at them. Default: all of upstreams but docker.io,
	// for which Docker takes a mirror, and no certificate but the system's.
	Hosts []string `yaml:"hosts" reload:"yes"`
	// Tunnel says which other hosts clients reach through the proxy: any, listed (those in
	// tunnelHosts) or none. Loopback, link-local addresses and clouds' metadata are never
	// reached, except those in files.allowAddresses.
	Tunnel TunnelPolicy `yaml:"tunnel" default:"any" reload:"yes"`
	// TunnelHosts are the other hosts, where proxy.tunnel is listed; *.example.com stands for all hosts
	// under it. Token services of registries belong here.
	TunnelHosts []string `yaml:"tunnelHosts" reload:"yes"`
	// TunnelPorts are the ports of these other hosts that clients reach besides 443 (CONNECT), 80
	// (plain HTTP) and those of the registries in upstreams. Each opens whatever listens there, as mail or a
	// database, to who reaches the proxy. Default: none.
	TunnelPorts []Port `yaml:"tunnelPorts" reload:"yes"`
}

// TunnelPolicy is any, listed or none.
type TunnelPolicy string

// The policies.
const (
	TunnelAny    TunnelPolicy = "any"
	TunnelListed TunnelPolicy = "listed"
	TunnelNone   TunnelPolicy = "none"
)

// UnmarshalText checks a policy.
func (p *TunnelPolicy) UnmarshalText(b []byte) error {
	return oneOf((*string)(p), string(b), string(TunnelAny), string(TunnelListed), string(TunnelNone))
}

// Unit names the kind of value in --help.
func (TunnelPolicy) Unit() string { return "any|listed|none" }

// API is dfdaemon's local API.
type API struct {
	// Listen is the address of the local API: files for dfget, status, health, metrics and
	// profiles. It knows no passwords, so only loopback addresses are taken.
	Listen Address `yaml:"listen" default:"127.0.0.1:65003"`
}

// SupernodeAPI is where peers announce themselves.
type SupernodeAPI struct {
	// Listen is the address at which peers announce themselves. Default: :65000 where the
	// cluster has a secret, else 127.0.0.1:65000.
	Listen Address `yaml:"listen"`
	// Advertise is the address that peers are told, where it differs from the one listened
	// on. Default: the listen address, or where that is all addresses, the one that this
	// machine uses towards others.
	Advertise Address `yaml:"advertise"`
}

// SupernodeAdmin is for operators.
type SupernodeAdmin struct {
	// Listen is the address for metrics, profiles and a status that needs no secret. It
	// knows no passwords, so only loopback addresses are taken.
	Listen Address `yaml:"listen" default:"127.0.0.1:65005"`
}

// Peer is the piece wire of a dfdaemon.
type Peer struct {
	// Listen is the address at which other nodes ask for pieces. Default: :65002 where the
	// cluster has a secret, else 127.0.0.1:65002.
	Listen Address `yaml:"listen"`
	// Advertise is the address that others are told, where it differs from the one listened
	// on. Default: the listen address, or where that is all addresses, the one that this
	// machine uses towards its supernodes.
	Advertise Address `yaml:"advertise"`
	// Standby lets this node lead tasks of others, asked at the piece wire's address. Supernodes
	// name three such nodes, whom all ask while no supernode answers.
	//
	// A node that leads brings contents from their registries for all others, with the credentials
	// of their clients. Without standbys each node asks registries itself meanwhile.
	Standby bool `yaml:"standby" default:"true"`
	Upload
}

// Upload says how much a node gives at once.
type Upload struct {
	// UploadSlots is how many requests of other nodes are accepted at once; whoever asks for
	// one more is told to ask elsewhere. Fewer leave a link idle between two pieces, more keep
	// askers waiting here who could be served elsewhere. 0 is 3 for a dfdaemon and 12 for a
	// supernode, whose link should be wider.
	UploadSlots int `yaml:"uploadSlots" default:"0" reload:"yes"`
}

// Limits are rates of content, each shared fairly by what goes on at once. Local clients of
// the mirror and of the API are never limited, and neither is what hosts say to each other
// beside the content.
type Limits struct {
	// Upload is the most that other nodes are sent per second. A lower one leaves more of
	// the link to the machine's own work, and makes every crowd that this node helps slower.
	Upload Rate `yaml:"upload" default:"unlimited" reload:"yes"`
	// Download is the most that is taken in per second, from other nodes and origins
	// together. Pulls then take at least their length by this rate.
	Download Rate `yaml:"download" default:"unlimited" reload:"yes"`
	// Task is the most that one content is downloaded at, from wherever it comes, so that a
	// large one leaves something to the others.
	Task Rate `yaml:"task" default:"unlimited" reload:"yes"`
	// Origin is the most that this node takes from registries and web servers per second. On
	// a supernode it holds for the whole cluster's cold pulls: what is new spreads no faster.
	Origin Rate `yaml:"origin" default:"unlimited" reload:"yes"`
}

// SupernodePeer is the piece wire of a supernode.
type SupernodePeer struct {
	// Listen is the address at which nodes ask for pieces. Default: :65004 where the cluster
	// has a secret, else 127.0.0.1:65004.
	Listen Address `yaml:"listen"`
	// Advertise is the address that others are told, where it differs from the one listened
	// on. Default: the listen address, or where that is all addresses, the one that this
	// machine uses towards others.
	Advertise Address `yaml:"advertise"`
	Upload
}

// Gossip is how several supernodes know of each other, so that every dfdaemon that knows one
// of them knows all that are alive, and asks the next when one dies.
type Gossip struct {
	// Listen is the address at which supernodes gossip, over UDP and TCP, encrypted where
	// the cluster has a secret. Usual port: 65006. Default: none, for a supernode alone.
	Listen Address `yaml:"listen"`
	// Advertise is the IP:port that the others are told, where it differs from the one
	// listened on. Default: the listen address, or where that is all addresses, the one
	// that api.advertise says.
	Advertise Address `yaml:"advertise"`
	// Join are host:port of other supernodes' gossip; one that is alive is enough, and a
	// name with many addresses is fine. The list may hold this supernode itself.
	Join []Address `yaml:"join"`
}

// Cluster says who may be a member.
type Cluster struct {
	// Secret is what all members share: it gives TLS to announces and pieces, and whoever
	// holds it can act as any member. At least 32 characters; DARTER_CLUSTER_SECRET or
	// secretFile keep it out of the configuration file. There is no flag, because every
	// user of the machine can read flags.
	Secret secret.String `yaml:"secret"`
	// SecretFile is a file that holds the secret; white space at its ends does not count.
	SecretFile string `yaml:"secretFile"`
	// Insecure allows addresses beyond loopback without a secret: then everybody who
	// reaches them can feed this node and read what it holds. For tests in closed networks.
	Insecure bool `yaml:"insecure" default:"false"`
}

// Cache is what pieces may occupy.
type Cache struct {
	// Quota is how much disk the pieces may use, each content counting with its whole
	// length. Beyond it, what was read longest ago goes first; what is being read stays. A
	// larger quota spares the origin and the other nodes. Default 0: half of what is free,
	// and what the cache holds already, at the start.
	Quota Size `yaml:"quota" default:"0" reload:"yes"`
	// HighWater is the fraction of the quota at which old content is evicted.
	HighWater float64 `yaml:"highWater" default:"0.95" reload:"yes"`
	// LowWater is the fraction of the quota down to which content is evicted. Closer to
	// highWater evicts more often, farther from it more at once.
	LowWater float64 `yaml:"lowWater" default:"0.85" reload:"yes"`
}

// Origins are the places outside the cluster that content comes from.
type Origins struct {
	// Upstreams are the registries that may be pulled from. In a file each is a mapping;
	// on the command line and in the environment it is HOST or HOST=URL, where a URL of
	// http:// means plain HTTP. Default: the large public registries.
	//
	// Keys of an entry: host (as image names write it, with its port), urls (base URLs, tried
	// in order; default https://HOST), ca (file of certificates to trust besides the system's),
	// clientCert and clientKey (files, for registries that ask for a certificate), plainHTTP
	// (true to speak HTTP), username and passwordFile, or dockerConfig (the node's own credentials:
	// every local client then pulls with them, and every supernode needs them, too; dockerConfig is
	// a file as docker login, podman login or a Kubernetes pull secret has it, whose credential
	// helpers are run), realms (further hosts whose token services get those credentials), proxy (URL of an HTTP proxy, or "none"; default: what
	// HTTPS_PROXY, HTTP_PROXY and NO_PROXY say), allowPrivateRealm (true where the registry's token
	// service is named by a private IP address other than the registry's). SIGHUP reads
	// passwords and certificates anew, too.
	Upstreams []Upstream `yaml:"upstreams" default:"docker.io,ghcr.io,quay.io,gcr.io,registry.k8s.io,mcr.microsoft.com,public.ecr.aws" reload:"yes"`
	// AllowUnlisted lets clients name any registry, not only those in upstreams. Whoever
	// reaches the mirror can then make this node ask any host, those of your internal network too.
	AllowUnlisted bool `yaml:"allowUnlisted" default:"false" reload:"yes"`
}

// Upstream is one registry, as an entry of [Origins].Upstreams.
type Upstream struct {
	// Host is the registry as image names write it: "quay.io", "registry.test:5000".
	Host string `yaml:"host,omitempty"`
	// URLs are base URLs, tried in this order; none is https://Host.
	URLs []string `yaml:"urls,omitempty"`
	// CA is a file of PEM certificates to trust besides the system's.
	CA string `yaml:"ca,omitempty"`
	// ClientCert and ClientKey are PEM files for registries that ask for a certificate.
	ClientCert string `yaml:"clientCert,omitempty"`
	ClientKey  string `yaml:"clientKey,omitempty"`
	// PlainHTTP speaks HTTP where no URL says otherwise.
	PlainHTTP bool `yaml:"plainHTTP,omitempty"`
	// Username and PasswordFile are the node's own credentials; every local client then
	// pulls with them.
	Username     string `yaml:"username,omitempty"`
	PasswordFile string `yaml:"passwordFile,omitempty"`
	// DockerConfig is a file that holds such credentials instead: Docker's config.json,
	// Podman's auth.json, or a mounted Kubernetes pull secret.
	DockerConfig string `yaml:"dockerConfig,omitempty"`
	// Realms are hosts, beside the registry's own, whose token services get the node's
	// credentials. Those of Docker Hub and gitlab.com are known.
	Realms []string `yaml:"realms,omitempty"`
	// Proxy is the URL of an HTTP proxy, or "none"; empty follows the environment.
	Proxy secret.String `yaml:"proxy,omitempty"`
	// AllowPrivateRealm lets the registry's token service be named by a private IP address
	// that is not the registry's own. Without it a registry cannot make this node ask such
	// an address.
	AllowPrivateRealm bool `yaml:"allowPrivateRealm,omitempty"`
}

// UnmarshalText reads the short form HOST or HOST=URL.
func (u *Upstream) UnmarshalText(b []byte) error {
	host, base, has := strings.Cut(string(b), "=")
	*u = Upstream{Host: host}
	if has {
		u.URLs = []string{base}
		u.PlainHTTP = strings.HasPrefix(base, "http://")
	}
	return u.check()
}

// Unit names the kind of value in --help.
func (Upstream) Unit() string { return "HOST[=URL]" }

// Files is about dfget's downloads.
type Files struct {
	// AllowHosts are the hosts that files may come from; *.example.com stands for all hosts
	// under it and * for every host. Whoever reaches a node's local API can make that node,
	// and the supernode that leads the download, ask any of them.
	AllowHosts []string `yaml:"allowHosts" default:"*" reload:"yes"`
	// AllowAddresses are networks that files may come from although nobody should be led
	// there by accident: loopback, link-local and multicast, the addresses at which clouds keep the
	// metadata and the credentials of a machine, and what leads to any of these (NAT64, 6to4). Written
	// 127.0.0.0/8 or [fe80::]/10.
	AllowAddresses []Network `yaml:"allowAddresses" reload:"yes"`
	// CA is a file of PEM certificates to trust besides the system's when files are fetched.
	CA string `yaml:"ca" reload:"yes"`
	// Proxy is the URL of an HTTP proxy for files, or "none". Default: what HTTPS_PROXY,
	// HTTP_PROXY and NO_PROXY say.
	Proxy secret.String `yaml:"proxy" reload:"yes"`
}

// DaemonFiles is about dfget's downloads.
type DaemonFiles struct {
	Files
	// IgnoreQuery are the query parameters that only sign a request and so do not make a
	// file another file: their values are left out of its identity, but sent to the origin, and
	// count as credentials. A name that ends in * stands for all that begin so.
	IgnoreQuery []string `yaml:"ignoreQuery" default:"X-Amz-*,X-Goog-*,X-Oss-*,Signature,Expires,Policy,Key-Pair-Id,AWSAccessKeyId,GoogleAccessId,OSSAccessKeyId,security-token,sig,se,sp,sv,sr,st,spr,skoid,sktid,skt,ske,sks,skv" reload:"yes"`
}

// Network is a range of IP addresses, as in 10.0.0.0/8.
type Network struct{ netip.Prefix }

// UnmarshalText reads a range; a single address is a range of one.
func (n *Network) UnmarshalText(b []byte) error {
	text := strings.NewReplacer("[", "", "]", "").Replace(string(b))
	if addr, err := netip.ParseAddr(text); err == nil {
		n.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%q is no network; write for example 10.0.0.0/8 or fd00::/8", b)
	}
	n.Prefix = p.Masked()
	return nil
}

// Unit names the kind of value in --help.
func (Network) Unit() string { return "network" }

// Log says what is told, and how.
type Log struct {
	// Level is the least important that is told: debug, info, warn or error.
	Level LogLevel `yaml:"level" default:"info" reload:"yes"`
	// Format is text for people or json for machines.
	Format LogFormat `yaml:"format" default:"text"`
}

// LogLevel is one of debug, info, warn, error.
type LogLevel string

// UnmarshalText checks a level.
func (l *LogLevel) UnmarshalText(b []byte) error {
	return oneOf((*string)(l), string(b), "debug", "info", "warn", "error")
}

// Unit names the kind of value in --help.
func (LogLevel) Unit() string { return "debug|info|warn|error" }

// LogFormat is text or json.
type LogFormat string

// UnmarshalText checks a format.
func (f *LogFormat) UnmarshalText(b []byte) error {
	return oneOf((*string)(f), string(b), "text", "json")
}

// Unit names the kind of value in --help.
func (LogFormat) Unit() string { return "text|json" }

func oneOf(to *string, text string, allowed ...string) error {
	for _, a := range allowed {
		if strings.EqualFold(a, text) {
			*to = a
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s%s", text, strings.Join(allowed, ", "), suggest(text, allowed))
}

// Drain is how a program ends.
type Drain struct {
	// DrainTimeout is how long a SIGTERM waits for running pulls; after it they end short,
	// and clients resume elsewhere. A second signal ends at once.
	DrainTimeout time.Duration `yaml:"drainTimeout" default:"20s" reload:"yes"`
}

// Dfget is the configuration of dfget. Its flags carry no section names.
type Dfget struct {
	// Output is the file to write, or with several URLs the directory; - is standard output.
	// Default: the last part of the URL's path, in the current directory.
	Output string `yaml:"output" short:"o"`
	// Daemon is the local API of the dfdaemon to download through.
	Daemon Address `yaml:"daemon" default:"127.0.0.1:65003"`
	// Supernodes are the API addresses of supernodes, host:port each: where no dfdaemon
	// answers, dfget is then a peer itself as long as it runs. It gets pieces from other nodes
	// and gives them what it has.
	Supernodes []Address `yaml:"supernodes"`
	// Cluster is what a peer needs to be let in.
	Cluster Cluster `yaml:"cluster"`
	// Direct downloads from the origin itself, without a dfdaemon and without peers.
	Direct bool `yaml:"direct" default:"false"`
	// Digest is what the whole file must hash to: sha256: or sha512: and hex digits. What
	// does not match is deleted.
	Digest string `yaml:"digest"`
	// Header is sent to the origin, as in -H "Name: value"; may be repeated.
	Header []Header `yaml:"header" short:"H"`
	// User is the name for basic authentication; the password comes from passwordFile. A
	// ~/.netrc is read where neither this nor the URL names a user.
	User string `yaml:"user" short:"u"`
	// PasswordFile holds the password for user; white space at its ends does not count.
	PasswordFile string `yaml:"passwordFile"`
	// Netrc is the file with names and passwords by host; "none" reads no file. Default:
	// $NETRC or ~/.netrc, where it exists.
	Netrc string `yaml:"netrc"`
	// Tag keeps apart files that would else be the same: another tag is another download.
	Tag string `yaml:"tag"`
	// Application names who downloads, and keeps files apart as a tag does.
	Application string `yaml:"application"`
	// IgnoreQuery are query parameters that only sign a request, besides those that the
	// daemon knows.
	IgnoreQuery []string `yaml:"ignoreQuery"`
	// NoCache takes nothing that was stored before (RFC 9111 §5.2.1.4): the file comes straight from its
	// origin, for this command alone.
	NoCache bool `yaml:"noCache" default:"false"`
	// MaxAge is how long ago the file may have been brought from its origin, such as 10m (RFC 9111 §5.2.1.1); 0s is
	// as noCache, "any" takes what the origin still confirms, however old. Those that name the
	// same age share what one of them brought.
	MaxAge MaxAge `yaml:"maxAge" default:"any"`
	// LimitRate is the most that is written per second; the daemon may fetch faster.
	LimitRate Rate `yaml:"limitRate" default:"unlimited"`
	// Timeout is the longest that the whole command may take; 0 is no limit.
	Timeout time.Duration `yaml:"timeout" default:"0"`
	// Retries is how often a broken download is taken up again where it broke. Each try
	// that brings bytes gives the count back.
	Retries int `yaml:"retries" default:"5"`
	// Progress is how to tell how far it is, on standard error: bar, plain, json, none, or
	// auto for bars on a terminal and plain lines elsewhere.
	Progress Progress `yaml:"progress" default:"auto"`
}

// MaxAge is "any" or a duration.
type MaxAge string

// Duration is the age, ok false for any.
func (m MaxAge) Duration() (age time.Duration, ok bool) {
	if m == "" || m == "any" {
		return 0, false
	}
	age, err := time.ParseDuration(string(m))
	return age, err == nil
}

// UnmarshalText checks an age.
func (m *MaxAge) UnmarshalText(b []byte) error {
	*m = MaxAge(b)
	if *m == "any" {
		return nil
	}
	if age, err := time.ParseDuration(string(b)); err != nil || age < 0 {
		return fmt.Errorf("an age is \"any\", or a duration such as 90s, 10m or 0s")
	}
	return nil
}

// Unit names the kind of value in --help.
func (MaxAge) Unit() string { return "any|DURATION" }

// Progress is how dfget tells how far it is.
type Progress string

// UnmarshalText checks a way of telling.
func (p *Progress) UnmarshalText(b []byte) error {
	return oneOf((*string)(p), string(b), "auto", "bar", "plain", "json", "none")
}

// Unit names the kind of value in --help.
func (Progress) Unit() string { return "auto|bar|plain|json|none" }

// Header is one HTTP header field. Its value may be a credential, so it is never printed.
type Header struct {
	Name  string
	Value secret.String
}

// UnmarshalText reads "Name: value".
func (h *Header) UnmarshalText(b []byte) error {
	name, value, ok := strings.Cut(string(b), ":")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !ok || name == "" || strings.ContainsAny(name, " \t\"(),/;<=>?@[]{}\\") || strings.ContainsAny(value, "\r\n\x00") {
		return fmt.Errorf("a header is written \"Name: value\"")
	}
	*h = Header{Name: textproto.CanonicalMIMEHeaderKey(name), Value: secret.String(value)}
	return nil
}

// MarshalText shows the header's name.
func (h Header) MarshalText() ([]byte, error) {
	return []byte(h.Name + ": " + h.Value.String()), nil
}

// Unit names the kind of value in --help.
func (Header) Unit() string { return "header" }

// Whole says that a comma is part of the value and separates nothing.
func (Header) Whole() {}

// Port is a TCP port, 1 to 65535.
type Port uint16

// UnmarshalText reads a port.
func (p *Port) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is no port; write a number from 1 to 65535", b)
	}
	*p = Port(n)
	return nil
}

// MarshalText writes a port as it is read.
func (p Port) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(p), 10), nil }

// Unit names the kind of value in --help.
func (Port) Unit() string { return "port" }
