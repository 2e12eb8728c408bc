package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/version"
)

// mirror tells whether the registry mirror answers, and not something else at its port; its
// further addresses, too.
func (x *exam) mirror(ctx context.Context) []Finding {
	all := []mirrorAt{{"mirror", x.Mirror.Addr, "mirror.listen", "mirror-listen"}}
	for _, l := range x.Settings.Mirror.Listeners {
		all = append(all, mirrorAt{"mirror of " + l.Upstream, local(l.Listen), "mirror.listeners", "mirror-listeners"})
	}
	return in(all, func(m mirrorAt) []Finding { return []Finding{m.ask(ctx)} })
}

// mirrorAt is an address of the mirror, and what sets it.
type mirrorAt struct{ name, addr, key, flag string }

func (m mirrorAt) ask(ctx context.Context) Finding {
	url := "http://" + m.addr + "/v2/"
	res, err := fetch(ctx, url)
	if err != nil {
		return Finding{Fail, m.name, fmt.Sprintf("%s: %v", url, plain(err)), fmt.Sprintf("start dfdaemon, or name the mirror's address with --%s or its --config", m.flag)}
	}
	defer res.Body.Close()
	if res.Header.Get("Docker-Distribution-Api-Version") == "" {
		return Finding{Fail, m.name, fmt.Sprintf("%s: %s, and not from a registry mirror", url, res.Status), "something else has the port: give one of them another, with " + m.key}
	}
	// Whatever the registry behind it says is what that check tells.
	return Finding{OK, m.name, url + " answers", ""}
}

// local is where this machine finds what listens on all addresses.
func local(a config.Address) string {
	if host, port, err := net.SplitHostPort(string(a)); err == nil && host == "" {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return string(a)
}

// fetch gets a URL of this machine.
func fetch(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Transport{Proxy: nil, DisableKeepAlives: true}).RoundTrip(req)
}

// authoritySoon is how long before the end of the proxy's authority that is worth a word:
// clients have to be told to trust the next one.
const authoritySoon = 60 * 24 * time.Hour

// proxy tells whether the proxy mode answers, where it is on, and whether it can look into the
// TLS of the registries that it is to mirror.
func (x *exam) proxy(ctx context.Context) (out []Finding) {
	p := x.Settings.Proxy
	if p.Listen == "" {
		return []Finding{} // a mode that few want
	}
	found := func(l Level, do, format string, args ...any) {
		out = append(out, Finding{l, "proxy", fmt.Sprintf(format, args...), do})
	}
	// The proxy says of itself what it is to who takes it for a server.
	if res, err := fetch(ctx, "http://"+local(p.Listen)+"/"); err != nil {
		found(Fail, "start dfdaemon, or name its --config", "%s: %v", p.Listen, plain(err))
	} else {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		res.Body.Close()
		if res.StatusCode == http.StatusBadRequest && strings.Contains(string(said), "HTTP proxy") {
			found(OK, "", "%s answers", p.Listen)
		} else {
			found(Fail, "something else has the port: give one of them another, with proxy.listen", "%s: %s, and not from Darter's proxy", p.Listen, res.Status)
		}
	}
	behindTLS := x.proxied()
	if p.CA == "" {
		if len(behindTLS) > 0 {
			found(Warn, "make an authority with \"dfdaemon proxy-ca\" and have the clients trust it, if they are to be mirrored", "has no authority: %s are tunnelled and not mirrored", strings.Join(behindTLS, ", "))
		}
		return out
	}
	a, err := httpproxy.LoadAuthority(p.CA, p.CAKey)
	if err != nil {
		found(Fail, "make another with \"dfdaemon proxy-ca\", and have the clients trust it", "%v", err)
		return out
	}
	if left := time.Until(a.Until()); left < authoritySoon {
		found(Warn, "make the next one with \"dfdaemon proxy-ca\", have the clients trust both, then change proxy.ca", "its authority ends on %s", a.Until().Format(time.DateOnly))
	}
	for _, h := range behindTLS {
		name := h
		if host, _, err := net.SplitHostPort(h); err == nil {
			name = host
		}
		if _, err := a.For(name); err != nil {
			found(Fail, "make one that may with \"dfdaemon proxy-ca\", and have the clients trust it", "%s is tunnelled and not mirrored: %v", h, err)
		}
	}
	return out
}

// proxied lists the registries behind TLS that the proxy mode is to mirror.
func (x *exam) proxied() (hosts []string) {
	for _, u := range x.Settings.Upstreams {
		host, err := oci.ParseHost(u.Host)
		if err != nil || u.PlainHTTP || len(u.URLs) > 0 && strings.HasPrefix(u.URLs[0], "http://") {
			continue
		}
		if listed := x.Settings.Proxy.Hosts; len(listed) == 0 && host == oci.DockerHub || len(listed) > 0 && !slices.ContainsFunc(listed, func(h string) bool {
			name, err := oci.ParseHost(h)
			return err == nil && name == host
		}) {
			continue
		}
		hosts = append(hosts, host)
	}
	return hosts
}

// ports tells whether the daemon has its ports or could have them, and whether others reach
// the one for pieces.
func (x *exam) ports() []Finding {
	if x.runningErr == nil {
		s := x.running
		name, _, _ := net.SplitHostPort(s.Host.Addr)
		if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() && x.remote() {
			return []Finding{{Fail, "ports", "other nodes are told to get pieces at " + s.Host.Addr + ", which leads them to themselves",
				"set a cluster secret (then the piece wire listens on all addresses), or peer.listen and peer.advertise"}}
		}
		return []Finding{{OK, "ports", fmt.Sprintf("mirror %s, api %s, pieces %s", s.Listen["mirror"], s.Listen["api"], s.Host.Addr), ""}}
	}
	type port struct {
		key string
		at  config.Address
	}
	wanted := []port{{"mirror.listen", x.Settings.Mirror.Listen}, {"api.listen", x.Settings.API.Listen}, {"peer.listen", x.Settings.Peer.Listen}, {"proxy.listen", x.Settings.Proxy.Listen}}
	for _, l := range x.Settings.Mirror.Listeners {
		wanted = append(wanted, port{"mirror.listeners", l.Listen})
	}
	var out []Finding
	for _, p := range wanted {
		if p.at == "" {
			continue
		}
		l, err := net.Listen("tcp", string(p.at))
		if err == nil {
			l.Close()
			continue
		}
		do := "set another one with " + p.key
		if errors.Is(err, syscall.EADDRINUSE) {
			do = "stop what has it (ss -ltnp names it), or " + do
		}
		out = append(out, Finding{Fail, "ports", fmt.Sprintf("%s: %v", p.key, plain(err)), do})
	}
	if out == nil {
		out = []Finding{{OK, "ports", "are free", ""}}
	}
	return out
}

// remote reports whether a supernode is on another machine.
func (x *exam) remote() bool {
	for _, s := range x.Settings.Supernodes {
		name, _, _ := net.SplitHostPort(string(s))
		if ip := net.ParseIP(name); name != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return true
		}
	}
	return false
}

// upstreams tells of each registry whether it answers, and takes the node's login.
func (x *exam) upstreams(ctx context.Context) []Finding {
	client, err := node.OpenRegistries(node.Config{Origins: x.Settings.Origins, Files: x.Settings.Files.Files})
	if err != nil {
		return []Finding{{Fail, "upstreams", err.Error(), "correct the setting"}}
	}
	defer client.CloseIdleConnections()
	out := in(x.Settings.Upstreams, func(u config.Upstream) []Finding { return []Finding{x.upstream(ctx, client, u)} })
	if len(out) == 0 {
		return []Finding{{Warn, "upstreams", "none is listed: the mirror serves no registry", "set upstreams"}}
	}
	if x.Standard && Failed(out) == 0 {
		for _, f := range out {
			if f.Level == OK {
				return out
			}
		}
		for i := range out {
			out[i].Level = Fail // one of them would be a matter of choice, all of them is the network
		}
	}
	return out
}

func (x *exam) upstream(ctx context.Context, client *registry.Client, u config.Upstream) Finding {
	name, login, whose := "upstream "+u.Host, client.Credentialed(u.Host), "the node's login"
	if u.Username != "" {
		whose = fmt.Sprintf("the login of %q", u.Username)
	}
	const correct = "correct username and passwordFile, or dockerConfig, of the upstream"
	res, err := client.Do(ctx, source.RegistryRequest{Upstream: u.Host, Method: http.MethodGet, Path: "/v2/"})
	if err == nil {
		res.Body.Close()
		switch {
		case res.StatusCode == http.StatusUnauthorized && login, res.StatusCode == http.StatusForbidden && login:
			return Finding{Fail, name, fmt.Sprintf("refuses %s (%s)", whose, res.Status), correct}
		case res.StatusCode == http.StatusOK && login:
			return Finding{OK, name, "answers, and takes " + whose, ""}
		case res.StatusCode == http.StatusOK:
			return Finding{OK, name, "answers", ""}
		case res.StatusCode == http.StatusUnauthorized:
			return Finding{OK, name, "answers, and asks who calls: each client brings its own login, or none for what is public", ""}
		}
		return Finding{Warn, name, "answers with " + res.Status, "look at that registry"}
	}
	var status *source.StatusError
	if errors.As(err, &status) && login && (status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden) {
		return Finding{Fail, name, fmt.Sprintf("refuses %s: %v", whose, err), correct}
	}
	what, do := explain(err)
	level := Fail
	if x.Standard {
		level, do = Warn, do+"; or leave it out of upstreams"
	}
	return Finding{level, name, fmt.Sprintf("%s: %v", what, err), do}
}

// explain says which case an error of a connection is, and what to do about it.
func explain(err error) (what, do string) {
	var (
		dns      *net.DNSError
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		notTLS   tls.RecordHeaderError
		timedOut net.Error
		status   *source.StatusError
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "no such name", "check the name; a name server of your network may know it"
	case errors.As(err, &dns):
		return "the name server does not answer", "check /etc/resolv.conf and the network"
	case errors.As(err, &unknown):
		return "TLS: its certificate is of an authority that this machine does not trust", "set ca of the upstream to that authority's certificate"
	case errors.As(err, &name):
		return "TLS: its certificate is for another name", "name it as its certificate does, or have the certificate corrected"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "TLS: its certificate is not valid now", "check this machine's clock (date), then the certificate"
	case errors.As(err, &notTLS), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "TLS: it speaks plain HTTP", "set plainHTTP of the upstream if that is meant"
	case alerted(err):
		return "TLS: it refuses this node", "it may want a certificate: set clientCert and clientKey of the upstream"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses connections", "is it running, and is this its port?"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no way leads there", "check the network and the firewall; proxy of the upstream names an HTTP proxy"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timedOut) && timedOut.Timeout():
		return "does not answer in time", "check the network and the firewall; proxy of the upstream names an HTTP proxy"
	case errors.As(err, &status):
		return fmt.Sprintf("answers with %d", status.Status), "look at that registry, and at what stands between"
	}
	return "cannot be asked", "check the address and the network"
}

// supernodes asks each that is configured, with this node's own proof of membership.
func (x *exam) supernodes(ctx context.Context) []Finding {
	if len(x.Settings.Supernodes) == 0 && x.runningErr == nil {
		var told []string
		for _, o := range x.running.Owners {
			if !o.Standby {
				told = append(told, o.Addr)
			}
		}
		if len(told) > 0 {
			return []Finding{{Warn, "supernodes", "none is in these settings, and the daemon that runs knows " + strings.Join(told, ", "),
				"name its settings: --config or " + config.EnvFile + ", or the flags that it has"}}
		}
	}
	if len(x.Settings.Supernodes) == 0 {
		return []Finding{{OK, "supernodes", "none is configured: this node leads its own tasks, and shares with no other", ""}}
	}
	id, err := identity.New(identity.Config{Secret: x.Settings.Cluster.Secret, HostID: host.NewID(), Insecure: x.Settings.Cluster.Insecure})
	if err != nil {
		return []Finding{{Fail, "supernodes", err.Error(), "correct cluster.secretFile"}}
	}
	out := in(x.Settings.Supernodes, func(at config.Address) []Finding { return askSupernode(ctx, id, at) })
	alive := 0
	for _, f := range out {
		if f.Level == OK {
			alive++
		}
	}
	for i := range out {
		if alive > 0 && out[i].Level == Fail {
			out[i].Level = Warn // others stand in for it
		}
	}
	// A daemon that has just started may not have asked yet.
	if x.runningErr == nil && x.running.Embedded && alive > 0 && x.uptime() > time.Minute {
		out = append(out, Finding{Fail, "supernodes", "answer here, and the daemon reaches none of them", "see its log; is it the daemon of this configuration?"})
	}
	return out
}

// uptime is for how long the daemon has run.
func (x *exam) uptime() time.Duration {
	if up := x.running.Uptime; up > 0 { // by a clock that nobody sets
		return time.Duration(up * float64(time.Second))
	}
	return time.Since(x.running.Started)
}

// leads reports whether a status is that of a supernode, or of a dfdaemon at its piece address,
// where it leads for others.
func leads(s api.Status, at config.Address) bool {
	return s.Program == "supernode" || s.Program == "dfdaemon" && config.Address(s.Listen["api"]).Port() != at.Port()
}

func askSupernode(ctx context.Context, id *identity.Identity, at config.Address) []Finding {
	name := "supernode " + string(at)
	d := net.Dialer{Timeout: 3 * time.Second}
	tr := &http.Transport{DialContext: d.DialContext, DialTLSContext: id.WrapDialer(d.DialContext, node.ProtocolAPI), DisableKeepAlives: true}
	scheme := "http"
	if id.Secure() {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+string(at)+api.PathStatus, nil)
	if err != nil {
		return []Finding{{Fail, name, err.Error(), "write host:port in supernodes"}}
	}
	before := time.Now()
	res, err := tr.RoundTrip(req)
	if err != nil {
		return []Finding{notReached(name, err)}
	}
	defer res.Body.Close()
	var s api.Status
	err = json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&s)
	switch {
	case res.StatusCode == http.StatusBadRequest && !id.Secure():
		return []Finding{{Fail, name, "speaks TLS: it has a cluster secret, and this node has none", "give this node the same one, with cluster.secretFile"}}
	case res.StatusCode != http.StatusOK || err != nil || !leads(s, at):
		return []Finding{{Fail, name, "something answers that is no supernode (" + res.Status + ")", "write the address of a supernode's API (api.listen) in supernodes"}}
	}
	out := []Finding{{OK, name, "answers, and is of this cluster", ""}}
	if s.Version != version.Current() {
		out = append(out, Finding{Warn, name, fmt.Sprintf("is version %s, this program %s", s.Version, version.Current()), "neighbouring versions work together; bring both to the same one soon"})
	}
	out = append(out, refused(name, s)...)
	if date, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		if skew := date.Sub(before).Abs(); skew > identity.ClockSkew {
			out = append(out, Finding{Fail, name, fmt.Sprintf("its clock and this one are %s apart", skew.Round(time.Second)), "set the clocks (NTP): members that are a day apart refuse each other"})
		} else if skew > time.Minute {
			out = append(out, Finding{Warn, name, fmt.Sprintf("its clock and this one are %s apart", skew.Round(time.Second)), "set the clocks (NTP)"})
		}
	}
	return out
}

// notReached says why a supernode was not reached.
func notReached(name string, err error) Finding {
	told := identity.Explain(err)
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(told, identity.ErrNotMember):
		return Finding{Fail, name, told.Error(), "give both the same secret, with cluster.secretFile"}
	case errors.As(err, &invalid), identity.OfClocks(err):
		return Finding{Fail, name, told.Error(), "set the clocks (NTP)"}
	case alerted(err):
		return Finding{Fail, name, "refuses this node: " + told.Error(), "give both the same secret, with cluster.secretFile"}
	}
	what, do := explain(err)
	return Finding{Fail, name, fmt.Sprintf("%s: %v", what, plain(err)), do}
}

// alerted reports whether the other end of a TLS connection ended it.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// plain takes the operation and the addresses off an error that is told beside them.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
