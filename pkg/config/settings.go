package config

import (
	"fmt"
	"net/netip"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/rules"
	"github.com/darter-io/darter/pkg/secret"
)

// The comment of a field is its section in docs/configuration.md; --help shows its first sentence and its default.
// A field of a list's entry has a line there, together with the fields below it that have no comment.
// Tags: yaml is the key in the file, from which flag and variable follow; default is the value as a file has it;
// reload:"yes" marks settings that SIGHUP changes; short is a one-letter flag.

// Dfdaemon is the configuration of dfdaemon.
type Dfdaemon struct {
	Node    Node    `yaml:"node"`
	Mirror  Mirror  `yaml:"mirror"`
	Proxy   Proxy   `yaml:"proxy"`
	API     API     `yaml:"api"`
	Health  Health  `yaml:"health"`
	Peer    Peer    `yaml:"peer"`
	Cluster Cluster `yaml:"cluster"`

	// Supernodes are the API addresses of supernodes. One that answers is enough: it reports the others. Without any,
	// the daemon schedules its own tasks and works as a pull-through cache. While none of them answers, three
	// dfdaemons stand in (see peer.standby). Default: none.
	//
	// A cluster can also run without supernodes: give all its dfdaemons the same list with the piece addresses
	// (peer.advertise) of a few of them. Those then schedule for all.
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
	Health  Health         `yaml:"health"`
	Peer    SupernodePeer  `yaml:"peer"`
	Cluster Cluster        `yaml:"cluster"`
	Gossip  Gossip         `yaml:"gossip"`
	Preheat Preheat        `yaml:"preheat"`
	Limits  Limits         `yaml:"limits"`
	Cache   Cache          `yaml:"cache"`
	Origins
	Files Files `yaml:"files"`
	Log   Log   `yaml:"log"`
	Drain
}

// Node describes the machine.
type Node struct {
	// Name is the name of this node in logs, status and metrics. Default: the host name.
	Name string `yaml:"name"`
	// Zone is the name of a place with cheap internal traffic: a rack, a data centre, a cloud zone. A few nodes of
	// each zone download for the other nodes of that zone. Nodes without a zone form one zone. Default: none.
	Zone string `yaml:"zone"`
	// Labels are words about this node, each KEY=VALUE, by which a preheat chooses its nodes. Default: none.
	Labels []string `yaml:"labels"`
	// DataDir is the directory for pieces, journals and the node's identity. Only one process can use it at a time.
	// Default: /var/lib/darter/PROGRAM for root, else darter/PROGRAM under $XDG_DATA_HOME or ~/.local/share.
	DataDir string `yaml:"dataDir"`
}

// Mirror is the registry mirror that container runtimes pull from.
type Mirror struct {
	// Listen is the address of the registry mirror, which hosts.toml names. On an address other than loopback, every
	// machine that reaches it can pull public images, and those that the node's own credentials open, over plain HTTP.
	Listen Address `yaml:"listen" default:"127.0.0.1:65001"`
	// DefaultUpstream is the registry for clients that name none, such as dockerd with registry-mirrors.
	DefaultUpstream string `yaml:"defaultUpstream" default:"docker.io"`
	// Listeners are further addresses of the mirror, each with its own default registry: ADDRESS=REGISTRY, or in a
	// file a mapping with the keys listen and upstream. They serve clients that can neither send ?ns= nor put the
	// registry into the path. Default: none.
	Listeners []MirrorListener `yaml:"listeners"`
	// RightsLife limits how long the mirror remembers that a registry lets a credential read a digest of a repository.
	// The grant ends earlier when the client's token expires; for passwords and for tokens without a readable expiry
	// it lasts one minute. A longer time saves requests to the registry; a shorter time notices a withdrawn permission
	// sooner.
	RightsLife time.Duration `yaml:"rightsLife" default:"1h" reload:"yes"`
	// RightsUnreachable decides about an expired grant while its registry is unreachable: refuse rejects the pull,
	// serve-cached accepts the grant until the client's token expires. Such responses carry X-Darter-Unverified.
	RightsUnreachable Unreachable `yaml:"rightsUnreachable" default:"refuse" reload:"yes"`
	// TagLife is how long a resolved tag stays valid. Within that time the cluster asks the registry once per tag. A
	// longer time saves requests; a shorter time notices a moved tag sooner. 0 asks for each pull.
	TagLife time.Duration `yaml:"tagLife" default:"10s" reload:"yes"`
	// TagStale is how old a resolved tag may be while its registry is unreachable. A node can then start an outdated
	// image. Such responses carry their age in seconds in X-Darter-Stale. 0 serves none.
	TagStale time.Duration `yaml:"tagStale" default:"0s" reload:"yes"`
	// PublicUnreachable is how long the mirror serves public images of an unreachable registry to every client. The time
	// counts from the last answer with which the registry let an anonymous client of this node or of an owner read the
	// image. Tags keep their last meaning. Such responses carry X-Darter-Unverified. A longer time survives a longer
	// outage; a shorter time ends sooner for images that became private just before the outage. 0 serves none. Clients
	// that send a token at once, such as Docker, do not show which images are public: with rightsUnreachable:
	// serve-cached the mirror makes a lookup of its own for them.
	PublicUnreachable time.Duration `yaml:"publicUnreachable" default:"24h" reload:"yes"`
	// ClusterTags is how old a resolved tag may be while its registry is unreachable and its upstream has access: cluster.
	// A node can then start an outdated image.
	ClusterTags time.Duration `yaml:"clusterTags" default:"168h" reload:"yes"`
}

// MirrorListener is an entry of [Mirror].Listeners.
type MirrorListener struct {
	// Listen is the address, as mirror.listen.
	Listen Address `yaml:"listen,omitempty"`
	// Upstream is the registry as image names write it.
	Upstream string `yaml:"upstream,omitempty"`
}

// UnmarshalText parses the short form ADDRESS=REGISTRY.
func (l *MirrorListener) UnmarshalText(b []byte) error {
	address, upstream, _ := strings.Cut(string(b), "=")
	*l = MirrorListener{Upstream: upstream}
	if err := l.Listen.UnmarshalText([]byte(address)); err != nil {
		return err
	}
	return l.check()
}

// Unreachable is "refuse" or "serve-cached".
type Unreachable string

// ServeCached is the [Unreachable] that keeps serving.
const ServeCached Unreachable = "serve-cached"

func (Unreachable) choices() []string { return []string{"refuse", string(ServeCached)} }

// Proxy is the HTTP proxy for clients that cannot use a mirror for a registry: Docker's graph driver, for all
// registries but Docker Hub.
type Proxy struct {
	// Listen is the address of the HTTP proxy for clients that use no mirror; they name it in HTTP_PROXY and
	// HTTPS_PROXY. On an address other than loopback, tunnel must not be any. Usual port: 65007. Default: none.
	Listen Address `yaml:"listen"`
	// CA is the PEM file of a certificate authority that clients trust for the registries in hosts. With it the proxy
	// decrypts their requests and serves pulls from the mirror; without it only registries over plain HTTP are
	// mirrored. "dfdaemon proxy-ca" creates the authority and its key. Default: none.
	CA string `yaml:"ca"`
	// CAKey is the PEM file with the key of ca. A thief of this key can impersonate these registries towards the
	// clients.
	CAKey string `yaml:"caKey"`
	// Hosts are the registries, out of upstreams, whose pulls go to the mirror. A client that does not trust ca cannot
	// pull from them. Default: all of upstreams except docker.io, for which Docker uses a mirror.
	Hosts []string `yaml:"hosts" reload:"yes"`
	// Tunnel selects the other hosts that clients reach through the proxy: any, listed (those in tunnelHosts) or none.
	// Loopback and link-local addresses and the metadata services of clouds are reachable only if files.allowAddresses
	// lists them.
	Tunnel TunnelPolicy `yaml:"tunnel" default:"any" reload:"yes"`
	// TunnelHosts are the additional hosts that clients may reach if proxy.tunnel is "listed": a name, or
	// *.example.com for every name below example.com. List the token services of registries here. Default: none.
	TunnelHosts []string `yaml:"tunnelHosts" reload:"yes"`
	// TunnelPorts are additional ports that clients reach on those hosts. Ports 443 (CONNECT), 80 (plain HTTP) and the
	// ports of the registries in upstreams are always open. Each further port exposes its service, such as mail or a
	// database, to every client of the proxy. Default: none.
	TunnelPorts []Port `yaml:"tunnelPorts" reload:"yes"`
}

// TunnelPolicy is "any", "listed" or "none".
type TunnelPolicy string

// The policies.
const (
	TunnelAny    TunnelPolicy = "any"
	TunnelListed TunnelPolicy = "listed"
	TunnelNone   TunnelPolicy = "none"
)

func (TunnelPolicy) choices() []string {
	return []string{string(TunnelAny), string(TunnelListed), string(TunnelNone)}
}

// API is the local API of a dfdaemon.
type API struct {
	// Listen is the address of the local API: files for dfget, status, health, metrics and profiles. It must be a
	// loopback address, because the API has no authentication.
	Listen Address `yaml:"listen" default:"127.0.0.1:65003"`
}

// SupernodeAPI is the API for announces.
type SupernodeAPI struct {
	// Listen is the address for announces from peers. Default: :65000 with a cluster secret, else 127.0.0.1:65000.
	Listen Address `yaml:"listen"`
	// Advertise is the address that peers connect to, where it differs from listen. Default: the listen address; if
	// that is every address of the machine, the one with which it reaches other hosts.
	Advertise Address `yaml:"advertise"`
}

// SupernodeAdmin is the local API for operators.
type SupernodeAdmin struct {
	// Listen is the address for metrics, profiles and a status without the cluster secret. It must be a loopback
	// address, because it has no authentication.
	Listen Address `yaml:"listen" default:"127.0.0.1:65005"`
}

// Health is the port for probes and scrapers of other machines.
type Health struct {
	// Listen is the address of a read-only port for programs of other machines, such as a kubelet and Prometheus:
	// /healthz, /readyz and /metrics, and nothing else. It has no authentication. Everyone who reaches it can read counts,
	// versions, the names of the registries in upstreams and the fingerprints of the cluster's secrets; no image and no
	// profile. Usual port: 65008 for a dfdaemon, 65009 for a supernode. Default: none.
	Listen Address `yaml:"listen"`
}

// Peer is the piece protocol of a dfdaemon.
type Peer struct {
	// Listen is the address for piece requests from other nodes. Default: :65002 with a cluster secret, else
	// 127.0.0.1:65002.
	Listen Address `yaml:"listen"`
	// Advertise is the address that other nodes connect to, where it differs from listen. Default: the listen address;
	// if that is every address of the machine, the one with which it reaches its supernodes.
	Advertise Address `yaml:"advertise"`
	// Standby lets this node schedule tasks of other nodes while no supernode answers. Supernodes choose three such
	// nodes and report them to all; the requests come to the address of peer.listen.
	//
	// A standby downloads from registries for the other nodes, with the credentials of their clients. Without any
	// standby, each node asks the registries itself in that time.
	Standby bool `yaml:"standby" default:"true"`
	Upload
}

// Upload bounds the concurrent uploads of a node.
type Upload struct {
	// UploadSlots is how many other nodes this node serves at once. It rejects the next one, and the requester tries
	// another node. Fewer slots leave the network idle between pieces; more slots make requesters wait that others
	// could serve. Default 0: 3 for a dfdaemon and 12 for a supernode, which usually has the faster network.
	UploadSlots int `yaml:"uploadSlots" default:"0" reload:"yes"`
}

// Limits are rates of blobs and files, each shared fairly between the transfers that run at once. Local clients of the
// mirror and of the API are never limited, nor are the control messages between hosts.
type Limits struct {
	// Upload limits the bytes per second to other nodes. A lower rate leaves more of the network to other programs and
	// slows every download that this node helps.
	Upload Rate `yaml:"upload" default:"unlimited" reload:"yes"`
	// Download limits the bytes per second from other nodes and origins together. It is also the fastest that a pull
	// can be.
	Download Rate `yaml:"download" default:"unlimited" reload:"yes"`
	// Task limits the bytes per second of one download, from all sources together, so that a large one leaves capacity
	// for the others.
	Task Rate `yaml:"task" default:"unlimited" reload:"yes"`
	// Origin limits the bytes per second from registries and web servers. On a supernode it limits the first download
	// of each blob for the whole cluster.
	Origin Rate `yaml:"origin" default:"unlimited" reload:"yes"`
}

// SupernodePeer is the piece protocol of a supernode.
type SupernodePeer struct {
	// Listen is the address for piece requests from other nodes. Default: :65004 with a cluster secret, else
	// 127.0.0.1:65004.
	Listen Address `yaml:"listen"`
	// Advertise is the address that other nodes connect to, where it differs from listen. Default: the listen address;
	// if that is every address of the machine, the one with which it reaches other hosts.
	Advertise Address `yaml:"advertise"`
	Upload
}

// Gossip is how supernodes find each other. A dfdaemon that knows one of them learns all that are alive, and turns to
// the next when one dies.
type Gossip struct {
	// Listen is the address for gossip between supernodes, over UDP and TCP, encrypted if the cluster has a secret.
	// Usual port: 65006. Default: none, which suits a single supernode.
	Listen Address `yaml:"listen"`
	// Advertise is the IP:port that other supernodes connect to, where it differs from listen. Default: the listen
	// address; if that is every address of the machine, the IP address of api.advertise.
	Advertise Address `yaml:"advertise"`
	// Join are the gossip addresses of other supernodes. One that is alive is enough; a name with many addresses
	// works, and so does a list that contains this supernode. Default: none.
	Join []Address `yaml:"join"`
}

// Preheat is what a supernode does for preheats.
type Preheat struct {
	Doors Doors `yaml:"doors"`
}

// Doors are the APIs with which Harbor and registries order preheats. Any one of the credentials lets a request in.
type Doors struct {
	// Listen is the address at which Harbor orders preheats and registries announce pushes. It needs a credential
	// (tokenFile, username or header), and on an address other than loopback a certificate. Usual port: 65010.
	// Default: none.
	Listen Address `yaml:"listen"`
	// Cert is the PEM file of the certificate of this address, with intermediate certificates after it. SIGHUP reads
	// it and its key again. Default: none, plain HTTP.
	Cert string `yaml:"cert" reload:"yes"`
	// Key is the PEM file with the key of cert.
	Key string `yaml:"key" reload:"yes"`
	// Insecure allows an address other than loopback without a certificate: then everyone on the network path can read
	// the credential and the tokens of Harbor.
	Insecure bool `yaml:"insecure" default:"false"`
	// TokenFile is a file with the token for Authorization: Bearer, or with several, one in each line; at most four. In
	// Harbor it is the auth mode OAuth of an instance, and the auth header of a webhook. Default: none.
	TokenFile string `yaml:"tokenFile" reload:"yes"`
	// Username is the name for Basic authentication; the password comes from passwordFile. Default: none.
	Username string `yaml:"username" reload:"yes"`
	// PasswordFile is a file with the password for username. Default: none.
	PasswordFile string `yaml:"passwordFile" reload:"yes"`
	// Header is the name of a header with a credential of its own, Harbor's auth mode Custom; its value comes from
	// headerFile. Default: none.
	Header string `yaml:"header" reload:"yes"`
	// HeaderFile is a file with the value of header. Default: none.
	HeaderFile string `yaml:"headerFile" reload:"yes"`
	// Scope is where an image goes that Harbor orders without a scope, and that matches no rule: one-seed (one copy on
	// the supernodes together), all-seeds (every supernode) or all-nodes.
	Scope PreheatScope `yaml:"scope" default:"all-seeds" reload:"yes"`
	// Rules decide which pushes become jobs, and where the images go. The first rule that matches counts; a push that
	// none matches is ignored. Each is GLOB or GLOB=SCOPE, or in a file a mapping. Default: none.
	Rules []DoorRule `yaml:"rules" reload:"yes"`
}

// DoorRule is an entry of [Doors].Rules.
type DoorRule struct {
	// Images are globs of image names with their registry: harbor.corp/shop/web, harbor.corp/shop/* for one further
	// part, harbor.corp/shop/** for any number, {a,b} for either.
	Images []string `yaml:"images,omitempty"`
	// Tags are globs of tags. Default: every tag, except those with which tools attach signatures to another image.
	Tags []string `yaml:"tags,omitempty"`
	// Scope is one-seed, all-seeds or all-nodes, or none for images that no push preheats. Default: all-nodes.
	Scope PreheatScope `yaml:"scope,omitempty"`
	// Zones are those of the hosts. Default: all.
	Zones []string `yaml:"zones,omitempty"`
	// Platforms are those of the image, such as linux/amd64. Default: all.
	Platforms []string `yaml:"platforms,omitempty"`
}

// UnmarshalText parses the short form GLOB or GLOB=SCOPE.
func (r *DoorRule) UnmarshalText(b []byte) error {
	glob, scope, has := strings.Cut(string(b), "=")
	*r = DoorRule{Images: []string{glob}, Scope: PreheatScope(scope)}
	if has && !slices.Contains(r.Scope.choices(), scope) {
		return fmt.Errorf("%q is not one of %s", scope, strings.Join(r.Scope.choices(), ", "))
	}
	return r.check()
}

// PreheatScope is "one-seed", "all-seeds", "all-nodes" or "none".
type PreheatScope string

func (PreheatScope) choices() []string {
	return []string{string(preheat.OneSeed), string(preheat.AllSeeds), string(preheat.AllNodes), string(rules.ScopeNone)}
}

// Cluster decides which hosts are members.
type Cluster struct {
	// Secret is the password that all members share, at least 32 characters. It authenticates and encrypts announces
	// and pieces; anyone who has it can act as any member. To keep it out of the configuration file, set
	// DARTER_CLUSTER_SECRET or secretFile. It has no flag, because every user of a machine can read the arguments of a
	// process. To change it without downtime, write several, one in each line: the node uses the first one and accepts
	// all. A node cannot get its first secret, or lose its last one, without a restart. Default: none.
	Secret secret.String `yaml:"secret" reload:"yes"`
	// SecretFile is a file with the secret, or with several, one in each line; at most four. White space at both ends
	// of a line is ignored. SIGHUP reads the file again. Default: none.
	SecretFile string `yaml:"secretFile" reload:"yes"`
	// Insecure allows addresses other than loopback without a secret: then every machine that reaches them can read
	// what this node holds and send it data. Use it for tests in closed networks only.
	Insecure bool `yaml:"insecure" default:"false"`
}

// Cache bounds the disk space for pieces.
type Cache struct {
	// Quota is the disk space for pieces; each task counts with its full length. When it fills up, the task that was
	// read longest ago is evicted first, and never one that is in use. A larger quota saves downloads from origins and
	// other nodes. Default 0: half of the free space at the start, plus what the cache already holds.
	Quota Size `yaml:"quota" default:"0" reload:"yes"`
	// HighWater is the fraction of the quota at which eviction begins.
	HighWater float64 `yaml:"highWater" default:"0.95" reload:"yes"`
	// LowWater is the fraction of the quota at which eviction ends. A value close to highWater evicts more often, a
	// lower one evicts more at once.
	LowWater float64 `yaml:"lowWater" default:"0.85" reload:"yes"`
}

// Origins are the registries outside the cluster.
type Origins struct {
	// Upstreams are the registries that clients may pull from. Each is HOST or HOST=URL, or in a file a mapping; a URL
	// that begins with http:// selects plain HTTP. Default: the large public registries. SIGHUP also reloads passwords
	// and certificates.
	Upstreams []Upstream `yaml:"upstreams" default:"docker.io,ghcr.io,quay.io,gcr.io,registry.k8s.io,mcr.microsoft.com,public.ecr.aws" reload:"yes"`
	// AllowUnlisted lets clients pull from registries that upstreams does not list. Every client of the mirror can
	// then make this node connect to any host, including hosts of your internal network.
	AllowUnlisted bool `yaml:"allowUnlisted" default:"false" reload:"yes"`
}

// Upstream is an entry of [Origins].Upstreams.
type Upstream struct {
	// Host is the registry as image names write it, with its port: quay.io or registry.test:5000.
	Host string `yaml:"host,omitempty"`
	// URLs are base URLs, tried in this order. A path goes before the repository (https://harbor.test/hub-cache); with a
	// part v2 it is taken as it is (https://jfrog.test/artifactory/api/docker/hub/v2). Default: https://HOST.
	URLs []string `yaml:"urls,omitempty"`
	// CA is a PEM file with certificates to trust in addition to the system's.
	CA string `yaml:"ca,omitempty"`
	// ServerName is the name that the certificate of these URLs must have, if that is not the host in the URL.
	ServerName string `yaml:"serverName,omitempty"`
	// Pin is the key that this certificate must have, as curl's --pinnedpubkey: sha256// and the SHA-256 of the public
	// key in base64, with ";" between several. The key then replaces authority, name and dates. dfdaemon doctor prints it;
	// compare it with the registry's operator first.
	Pin string `yaml:"pin,omitempty"`
	// ClientCert and ClientKey are PEM files for registries that require a client certificate.
	ClientCert string `yaml:"clientCert,omitempty"`
	ClientKey  string `yaml:"clientKey,omitempty"`
	// PlainHTTP is true for HTTP where urls is empty.
	PlainHTTP bool `yaml:"plainHTTP,omitempty"`
	// Username and PasswordFile are the node's own credentials. Every local client then pulls with them, and every
	// supernode needs them, too.
	Username     string `yaml:"username,omitempty"`
	PasswordFile string `yaml:"passwordFile,omitempty"`
	// DockerConfig is a file with such credentials instead, as docker login, podman login or a Kubernetes pull secret
	// writes it. Credential helpers in it are run.
	DockerConfig string `yaml:"dockerConfig,omitempty"`
	// Realms are other hosts whose token services receive those credentials. Those of Docker Hub and gitlab.com are
	// built in.
	Realms []string `yaml:"realms,omitempty"`
	// Proxy is the URL of an HTTP proxy, or "none". Default: HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
	Proxy secret.String `yaml:"proxy,omitempty"`
	// FirstByte is how long the registry may take to begin an answer, and how long clients of the mirror wait for it. A
	// proxy that scans blobs needs minutes; a registry that hangs keeps clients as long. Default: 10m.
	FirstByte time.Duration `yaml:"firstByte,omitempty"`
	// AllowPrivateRealm allows a token service at a private IP address that is not the registry's own. Without it a
	// registry cannot make this node connect to such an address.
	AllowPrivateRealm bool `yaml:"allowPrivateRealm,omitempty"`
	// ForbidPlainRedirects refuses blobs that an HTTPS registry redirects to plain HTTP. Without it they come: their
	// digest protects them, and no credentials go there, but everyone on the network path can read them.
	ForbidPlainRedirects bool `yaml:"forbidPlainRedirects,omitempty"`
	// Access is what a dfdaemon gives its local clients while the registry or its token service is unreachable. With
	// verify (the default) that is what the registry granted to them, or to anonymous clients
	// (mirror.publicUnreachable). With cluster it is every image of this registry that the cluster holds, private ones
	// too, to every local client without any login. It holds for this node and this registry alone.
	Access Access `yaml:"access,omitempty"`
}

// Access is "verify" or "cluster"; empty is verify.
type Access string

// AccessCluster is the [Access] that gives local clients what the cluster holds.
const AccessCluster Access = "cluster"

func (Access) choices() []string { return []string{"verify", string(AccessCluster)} }

// UnmarshalText parses the short form HOST or HOST=URL.
func (u *Upstream) UnmarshalText(b []byte) error {
	host, base, has := strings.Cut(string(b), "=")
	*u = Upstream{Host: host}
	if has {
		u.URLs = []string{base}
		u.PlainHTTP = strings.HasPrefix(base, "http://")
	}
	return u.check()
}

// Files bounds the origins of dfget's downloads.
type Files struct {
	// AllowHosts are the hosts that files may come from: a name, *.example.com for every name below example.com, or *
	// for every host. Every client of the local API can make this node, and the supernode that schedules the download,
	// connect to these hosts.
	AllowHosts []string `yaml:"allowHosts" default:"*" reload:"yes"`
	// AllowAddresses are the networks that files may come from in spite of the default protection. Without an entry,
	// nothing is downloaded from loopback, link-local and multicast addresses, from the metadata services of clouds,
	// and from addresses that lead to one of these (NAT64, 6to4). Written 127.0.0.0/8 or [fe80::]/10. Default: none.
	AllowAddresses []Network `yaml:"allowAddresses" reload:"yes"`
	// CA is a PEM file with certificates to trust for files in addition to the system's. Default: none.
	CA string `yaml:"ca" reload:"yes"`
	// Proxy is the URL of an HTTP proxy for files, or "none". Default: HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
	Proxy secret.String `yaml:"proxy" reload:"yes"`
}

// DaemonFiles are the settings of a dfdaemon for dfget's downloads.
type DaemonFiles struct {
	Files
	// IgnoreQuery are the query parameters that sign a URL without naming another file. They are sent to the origin
	// and treated as credentials, but URLs that differ only in them share one download. A final * matches every name
	// that begins so.
	IgnoreQuery []string `yaml:"ignoreQuery" default:"X-Amz-*,X-Goog-*,X-Oss-*,Signature,Expires,Policy,Key-Pair-Id,AWSAccessKeyId,GoogleAccessId,OSSAccessKeyId,security-token,sig,se,sp,sv,sr,st,spr,skoid,sktid,skt,ske,sks,skv" reload:"yes"`
}

// Network is a range of IP addresses, as in 10.0.0.0/8.
type Network struct{ netip.Prefix }

// UnmarshalText parses a range; a single address is a range of one.
func (n *Network) UnmarshalText(b []byte) error {
	text := strings.NewReplacer("[", "", "]", "").Replace(string(b))
	if addr, err := netip.ParseAddr(text); err == nil {
		n.Prefix = netip.PrefixFrom(addr, addr.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return fmt.Errorf("%q is not a network; write for example 10.0.0.0/8 or fd00::/8", b)
	}
	n.Prefix = p.Masked()
	return nil
}

// Log selects which log lines are written, and their format.
type Log struct {
	// Level is the least severe level to log: debug, info, warn or error.
	Level LogLevel `yaml:"level" default:"info" reload:"yes"`
	// Format is text for people or json for machines.
	Format LogFormat `yaml:"format" default:"text"`
}

// LogLevel is "debug", "info", "warn" or "error".
type LogLevel string

func (LogLevel) choices() []string { return []string{"debug", "info", "warn", "error"} }

// LogFormat is "text" or "json".
type LogFormat string

func (LogFormat) choices() []string { return []string{"text", "json"} }

// Drain bounds the time that a program needs to end.
type Drain struct {
	// DrainTimeout is how long the program waits for running pulls after SIGTERM. Pulls that are still running then
	// break off, and clients resume them elsewhere. A second signal ends the program at once.
	DrainTimeout time.Duration `yaml:"drainTimeout" default:"20s" reload:"yes"`
}

// Dfget is the configuration of dfget. Its flags carry no section names.
type Dfget struct {
	// Output is the file to write, or for several URLs the directory; - is standard output. Default: the last part of
	// the URL's path, in the current directory.
	Output string `yaml:"output" short:"o"`
	// Daemon is the local API address of the dfdaemon to download through.
	Daemon Address `yaml:"daemon" default:"127.0.0.1:65003"`
	// Supernodes are the API addresses of supernodes. If no dfdaemon answers, dfget becomes a peer while it runs: it
	// downloads pieces from other nodes and uploads its own. Default: none.
	Supernodes []Address `yaml:"supernodes"`
	// Cluster is what a peer needs to join.
	Cluster Cluster `yaml:"cluster"`
	// Direct downloads from the origin, without a dfdaemon and without peers.
	Direct bool `yaml:"direct" default:"false"`
	// Digest is the expected digest of the whole file: sha256: or sha512: and hex digits. A file with another digest
	// is deleted. Default: none.
	Digest string `yaml:"digest"`
	// Header is an HTTP header for the origin, such as -H "Name: value". It can be repeated.
	Header []Header `yaml:"header" short:"H"`
	// User is the name for basic authentication; the password comes from passwordFile. Without a user here and in the
	// URL, dfget looks into ~/.netrc. Default: none.
	User string `yaml:"user" short:"u"`
	// PasswordFile is a file with the password for user. White space at both ends is ignored. Default: none.
	PasswordFile string `yaml:"passwordFile"`
	// Netrc is the file with names and passwords per host; "none" reads no file. Default: $NETRC or ~/.netrc, if it
	// exists.
	Netrc string `yaml:"netrc"`
	// Tag separates downloads of the same URL: another tag is another file. Default: none.
	Tag string `yaml:"tag"`
	// Application is the name of the downloading application. It separates downloads as tag does. Default: none.
	Application string `yaml:"application"`
	// IgnoreQuery are query parameters that sign a URL without naming another file, in addition to those that the
	// daemon knows. Default: none.
	IgnoreQuery []string `yaml:"ignoreQuery"`
	// NoCache downloads the file from its origin and uses nothing that was stored before (RFC 9111 §5.2.1.4), for this
	// command only.
	NoCache bool `yaml:"noCache" default:"false"`
	// MaxAge is the highest age of a stored copy since its download from the origin, such as 10m (RFC 9111 §5.2.1.1).
	// 0s is as noCache; "any" accepts every copy that the origin still confirms. Commands with the same age share one
	// download.
	MaxAge MaxAge `yaml:"maxAge" default:"any"`
	// LimitRate limits the bytes per second that dfget writes. The daemon may download faster.
	LimitRate Rate `yaml:"limitRate" default:"unlimited"`
	// Timeout limits the duration of the whole command. 0 is no limit.
	Timeout time.Duration `yaml:"timeout" default:"0"`
	// Retries is how often dfget resumes a broken download. An attempt that brings bytes does not count.
	Retries int `yaml:"retries" default:"5"`
	// Progress selects the progress report on standard error: bar, plain, json, none, or auto for bars on a terminal
	// and plain lines elsewhere.
	Progress Progress `yaml:"progress" default:"auto"`
}

// MaxAge is "any" or a duration.
type MaxAge string

// Duration returns the age; ok is false for "any".
func (m MaxAge) Duration() (age time.Duration, ok bool) {
	if m == "" || m == "any" {
		return 0, false
	}
	age, err := time.ParseDuration(string(m))
	return age, err == nil
}

// UnmarshalText checks the value.
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

// Progress is the format of dfget's progress report.
type Progress string

func (Progress) choices() []string { return []string{"auto", "bar", "plain", "json", "none"} }

// Header is an HTTP header field. Its value may be a credential, so it is never printed.
type Header struct {
	Name  string
	Value secret.String
}

// UnmarshalText parses "Name: value".
func (h *Header) UnmarshalText(b []byte) error {
	name, value, ok := strings.Cut(string(b), ":")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("a header is written \"Name: value\"")
	}
	*h = Header{Name: textproto.CanonicalMIMEHeaderKey(name), Value: secret.String(value)}
	return nil
}

// MarshalText returns the name, with the value redacted.
func (h Header) MarshalText() ([]byte, error) {
	return []byte(h.Name + ": " + h.Value.String()), nil
}

// Port is a TCP port, 1 to 65535.
type Port uint16

// UnmarshalText parses a port.
func (p *Port) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not a port; write a number from 1 to 65535", b)
	}
	*p = Port(n)
	return nil
}

// MarshalText writes a port so that it reads back the same.
func (p Port) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(p), 10), nil }
