package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/httpproxy"
	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/node"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/portmux"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/source/httporigin"
	"github.com/darter-io/darter/pkg/source/registry"
	"github.com/darter-io/darter/pkg/version"
)

// mirror checks that the registry mirror, and no other program, responds at each of its addresses.
func (x *exam) mirror(ctx context.Context) []Finding {
	all := []mirrorAt{{"mirror", x.Mirror.Addr, "mirror.listen", "mirror-listen"}}
	for _, l := range x.Settings.Mirror.Listeners {
		all = append(all, mirrorAt{"mirror of " + l.Upstream, local(l.Listen), "mirror.listeners", "mirror-listeners"})
	}
	return in(all, func(m mirrorAt) []Finding { return []Finding{m.ask(ctx)} })
}

// mirrorAt is an address of the mirror with its setting.
type mirrorAt struct{ name, addr, key, flag string }

func (m mirrorAt) ask(ctx context.Context) Finding {
	url := "http://" + m.addr + "/v2/"
	res, err := fetch(ctx, url)
	if err != nil {
		return Finding{Fail, m.name, fmt.Sprintf("%s: %v", url, plain(err)),
			fmt.Sprintf("start dfdaemon, or pass the mirror's address with --%s or its --config", m.flag)}
	}
	defer res.Body.Close()
	if res.Header.Get("Docker-Distribution-Api-Version") == "" {
		return Finding{Fail, m.name, fmt.Sprintf("%s: %s, not from a registry mirror", url, res.Status),
			"another program uses the port: give one of them another port, with " + m.key}
	}
	// The check of upstreams covers the registry's response.
	return Finding{OK, m.name, url + " responds", ""}
}

// local is the address at which this machine reaches a listener.
func local(a config.Address) string {
	if host, port, err := net.SplitHostPort(string(a)); err == nil && host == "" {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return string(a)
}

// fetch sends a GET to this machine, without a proxy.
func fetch(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return (&http.Transport{Proxy: nil, DisableKeepAlives: true}).RoundTrip(req)
}

// authoritySoon is how long before its expiry the proxy's authority is a warning: all clients must trust the next one
// first.
const authoritySoon = 60 * 24 * time.Hour

// proxy checks that an enabled proxy responds and can decrypt the TLS of the registries that it mirrors.
func (x *exam) proxy(ctx context.Context) (out []Finding) {
	p := x.Settings.Proxy
	if p.Listen == "" {
		return []Finding{} // off by default
	}
	found := func(l Level, do, format string, args ...any) {
		out = append(out, Finding{l, "proxy", fmt.Sprintf(format, args...), do})
	}
	// The proxy rejects a request that is meant for a server and says that it is a proxy.
	if res, err := fetch(ctx, "http://"+local(p.Listen)+"/"); err != nil {
		found(Fail, "start dfdaemon, or pass its --config", "%s: %v", p.Listen, plain(err))
	} else {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		res.Body.Close()
		if res.StatusCode == http.StatusBadRequest && strings.Contains(string(body), "HTTP proxy") {
			found(OK, "", "%s responds", p.Listen)
		} else {
			found(Fail, "another program uses the port: give one of them another port, with proxy.listen",
				"%s: %s, not from Darter's proxy", p.Listen, res.Status)
		}
	}
	behindTLS := x.proxied()
	if p.CA == "" {
		if len(behindTLS) > 0 {
			found(Warn, "to mirror them, create an authority with \"dfdaemon proxy-ca\" and let the clients trust it",
				"has no certificate authority: tunnels %s instead of mirroring", strings.Join(behindTLS, ", "))
		}
		return out
	}
	a, err := httpproxy.LoadAuthority(p.CA, p.CAKey)
	if err != nil {
		found(Fail, "create another one with \"dfdaemon proxy-ca\", and let the clients trust it", "%v", err)
		return out
	}
	if left := time.Until(a.Until()); left < authoritySoon {
		found(Warn, "create the next one with \"dfdaemon proxy-ca\", let the clients trust both, then change proxy.ca",
			"its certificate authority expires on %s", a.Until().Format(time.DateOnly))
	}
	for _, h := range behindTLS {
		name := h
		if host, _, err := net.SplitHostPort(h); err == nil {
			name = host
		}
		if _, err := a.For(name); err != nil {
			found(Fail, "create one that covers it with \"dfdaemon proxy-ca\", and let the clients trust it",
				"tunnels %s instead of mirroring: %v", h, err)
		}
	}
	return out
}

// proxied lists the registries with TLS that the proxy mirrors.
func (x *exam) proxied() (hosts []string) {
	for _, u := range x.Settings.Upstreams {
		host, err := oci.ParseHost(u.Host)
		if err != nil || u.PlainHTTP || len(u.URLs) > 0 && strings.HasPrefix(u.URLs[0], "http://") {
			continue
		}
		isHost := func(h string) bool {
			name, err := oci.ParseHost(h)
			return err == nil && name == host
		}
		listed := x.Settings.Proxy.Hosts
		if len(listed) == 0 && host == oci.DockerHub || len(listed) > 0 && !slices.ContainsFunc(listed, isHost) {
			continue
		}
		hosts = append(hosts, host)
	}
	return hosts
}

// ports checks that the daemon has its ports or could listen on them, and that other nodes reach the one for pieces.
func (x *exam) ports() []Finding {
	if x.runningErr == nil {
		s := x.running
		name, _, _ := net.SplitHostPort(s.Host.Addr)
		if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() && x.remote() {
			return []Finding{{Fail, "ports",
				"other nodes are sent to " + s.Host.Addr + " for pieces, which is their own machine",
				"set a cluster secret (dfdaemon then listens for pieces on all addresses), or peer.listen and " +
					"peer.advertise"}}
		}
		return []Finding{{OK, "ports",
			fmt.Sprintf("mirror %s, api %s, pieces %s", s.Listen["mirror"], s.Listen["api"], s.Host.Addr), ""}}
	}
	type port struct {
		key string
		at  config.Address
	}
	wanted := []port{{"mirror.listen", x.Settings.Mirror.Listen}, {"api.listen", x.Settings.API.Listen},
		{"peer.listen", x.Settings.Peer.Listen}, {"proxy.listen", x.Settings.Proxy.Listen}}
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
		out = append(out, Finding{Fail, "ports", fmt.Sprintf("%s: %v", p.key, plain(err)), node.ListenRemedy(p.key, err)})
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

// upstreams checks that each registry responds and accepts the node's credentials.
func (x *exam) upstreams(ctx context.Context) []Finding {
	client, err := node.OpenRegistries(node.Config{Origins: x.Settings.Origins, Files: x.Settings.Files.Files})
	if err != nil {
		return []Finding{{Fail, "upstreams", err.Error(), "correct the setting"}}
	}
	defer client.CloseIdleConnections()
	out := in(x.Settings.Upstreams, func(u config.Upstream) []Finding {
		return append([]Finding{x.upstream(ctx, client, u)}, opened(u)...)
	})
	if len(out) == 0 {
		return []Finding{{Warn, "upstreams", "none is set: the mirror serves no registry", "set upstreams"}}
	}
	if x.Standard && Failed(out) == 0 {
		for _, f := range out {
			if f.Level == OK {
				return out
			}
		}
		for i := range out {
			out[i].Level = Fail // if none is reachable, the network is the cause
		}
	}
	return out
}

// opened reports that an upstream's private images are open to local clients while the registry is unreachable.
func opened(u config.Upstream) []Finding {
	if u.Access != config.AccessCluster {
		return nil
	}
	return []Finding{{OK, "upstream " + u.Host, "access is cluster: while this registry or its token service is " +
		"unreachable, every client of this node gets all its images that the cluster holds, private ones too, without a " +
		"login", "to refuse them then: access: verify"}}
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
			return Finding{Fail, name, fmt.Sprintf("rejects %s (%s)", whose, res.Status), correct}
		case res.StatusCode == http.StatusOK && login:
			return Finding{OK, name, "responds and accepts " + whose, ""}
		case res.StatusCode == http.StatusOK:
			return Finding{OK, name, "responds", ""}
		case res.StatusCode == http.StatusUnauthorized:
			return Finding{OK, name, "responds and requires a login: clients send their own, or none for public images",
				""}
		}
		return Finding{Warn, name, "responds with " + res.Status, "check that registry"}
	}
	var status *source.StatusError
	if errors.As(err, &status) && login &&
		(status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden) {
		return Finding{Fail, name, fmt.Sprintf("rejects %s: %v", whose, err), correct}
	}
	what, do := explain(err)
	level := Fail
	if x.Standard {
		level, do = Warn, do+"; or remove it from upstreams"
	}
	found := fmt.Sprintf("%s: %v", what, err)
	if c := certificateOf(err); c != nil {
		found += "; " + describe(c)
	}
	return Finding{level, name, found, do}
}

// certificateOf is the certificate that was not accepted, nil if the error is another one.
func certificateOf(err error) *x509.Certificate {
	var unverified *tls.CertificateVerificationError
	var pin *httporigin.PinError
	switch {
	case errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0:
		return unverified.UnverifiedCertificates[0]
	case errors.As(err, &pin):
		return pin.Certificate
	}
	return nil
}

// namesMax bounds the names of a certificate that are printed.
const namesMax = 8

// describe says what a certificate is, for its comparison with what the registry's operator says.
func describe(c *x509.Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) > namesMax {
		names = append(names[:namesMax], "…")
	}
	return fmt.Sprintf("its certificate: subject %.200q, names %.400q, issuer %.200q, valid from %s to %s, key %s",
		c.Subject, strings.Join(names, " "), c.Issuer, c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly),
		httporigin.PinOf(c))
}

// explain returns the cause of a connection error and the remedy.
func explain(err error) (what, do string) {
	var (
		dns      *net.DNSError
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		invalid  x509.CertificateInvalidError
		notTLS   tls.RecordHeaderError
		timedOut net.Error
		pin      *httporigin.PinError
		status   *source.StatusError
	)
	switch {
	case errors.As(err, &pin):
		return "TLS: its certificate has another key than pin of the upstream",
			"ask the registry's operator whether the key has changed, and only then set pin of the upstream to the new one"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "no such name", "check the name and the name server of your network"
	case errors.As(err, &dns):
		return "the name server does not respond", "check /etc/resolv.conf and the network"
	case errors.As(err, &unknown):
		return "TLS: this machine does not trust the authority of its certificate",
			"set ca of the upstream to the certificate of that authority; or compare the key with the registry's operator, " +
				"and set pin of the upstream to it"
	case errors.As(err, &name):
		return "TLS: its certificate is for another name",
			"set serverName of the upstream to a name in the certificate if it is that registry's, or have the certificate " +
				"corrected"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "TLS: its certificate is not valid now", "check the clock of this machine (date), then the certificate; pin " +
			"of the upstream accepts its key whatever the dates are"
	case errors.As(err, &notTLS), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "TLS: it speaks plain HTTP", "set plainHTTP of the upstream if that is intended"
	case alerted(err):
		return "TLS: it rejects this node",
			"it may require a client certificate: set clientCert and clientKey of the upstream"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refuses connections", "check that it runs and that this is its port"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to it", "check the network and the firewall; if it needs an HTTP proxy, set proxy of the " +
			"upstream"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timedOut) && timedOut.Timeout():
		return "does not respond in time",
			"check the network and the firewall; if it needs an HTTP proxy, set proxy of the upstream"
	case errors.As(err, &status):
		return fmt.Sprintf("responds with %d", status.Status), "check that registry and the proxies in front of it"
	}
	return "cannot be reached", "check the address and the network"
}

// supernodes checks each configured supernode, with this node's own membership.
func (x *exam) supernodes(ctx context.Context) []Finding {
	if len(x.Settings.Supernodes) == 0 && x.runningErr == nil {
		var known []string
		for _, o := range x.running.Owners {
			if !o.Standby {
				known = append(known, o.Addr)
			}
		}
		if len(known) > 0 {
			return []Finding{{Warn, "supernodes", "none is in these settings, but the running daemon knows " +
				strings.Join(known, ", "), "pass the daemon's settings: --config or " + config.EnvFile +
				", or its flags"}}
		}
	}
	if len(x.Settings.Supernodes) == 0 {
		return []Finding{{OK, "supernodes",
			"none is set: this node schedules its own tasks and shares with no other node", ""}}
	}
	id, err := identity.New(identity.Config{Secret: x.Settings.Cluster.Secret, HostID: host.NewID(),
		Insecure: x.Settings.Cluster.Insecure})
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
			out[i].Level = Warn // the others do its work
		}
	}
	// A daemon that has just started may not have connected yet.
	if x.runningErr == nil && x.running.Embedded && alive > 0 && x.uptime() > time.Minute {
		out = append(out, Finding{Fail, "supernodes", "respond here, but the daemon reaches none of them",
			"read its log, and check that it uses this configuration"})
	}
	return out
}

// uptime is how long the daemon has been running.
func (x *exam) uptime() time.Duration {
	if up := x.running.Uptime; up > 0 { // by its monotonic clock
		return time.Duration(up * float64(time.Second))
	}
	return time.Since(x.running.Started)
}

// leads reports whether a status comes from a supernode, or from a dfdaemon that schedules for others at its piece
// address.
func leads(s api.Status, at config.Address) bool {
	return s.Program == "supernode" || s.OnNode() && config.Address(s.Listen["api"]).Port() != at.Port()
}

func askSupernode(ctx context.Context, id *identity.Identity, at config.Address) []Finding {
	name := "supernode " + string(at)
	d := net.Dialer{Timeout: 3 * time.Second}
	tr := &http.Transport{
		DialContext: d.DialContext, DialTLSContext: id.WrapDialer(d.DialContext, portmux.ProtocolAPI),
		DisableKeepAlives: true,
	}
	scheme := "http"
	if id.Secure() {
		scheme = "https"
	}
	before := time.Now()
	s, header, err := apiclient.Client{Base: scheme + "://" + string(at), Transport: tr}.Status(ctx)
	var status *apiclient.StatusError
	var body *apiclient.BodyError
	answer := "200 OK"
	switch {
	case errors.As(err, &status):
		answer = status.Status
	case errors.As(err, &body):
		answer = body.Status
	case err != nil:
		return []Finding{notReached(name, err)}
	}
	switch {
	case status != nil && status.Code == http.StatusBadRequest && !id.Secure():
		return []Finding{{Fail, name, "speaks TLS: it has a cluster secret, and this node has none",
			"set the same secret on this node, with cluster.secretFile"}}
	case err != nil || !leads(s, at):
		return []Finding{{Fail, name, "responds, but is not a supernode (" + answer + ")",
			"set supernodes to the API address (api.listen) of a supernode"}}
	}
	out := []Finding{{OK, name, "responds and belongs to this cluster", ""}}
	if s.Version != version.Current() {
		out = append(out, Finding{Warn, name, fmt.Sprintf("has version %s, this program has %s", s.Version,
			version.Current()), "neighbouring versions work together; update to the same version soon"})
	}
	out = append(out, refused(name, s)...)
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		if skew := date.Sub(before).Abs(); skew > identity.ClockSkew {
			out = append(out, Finding{Fail, name, fmt.Sprintf("its clock and this machine's differ by %s",
				skew.Round(time.Second)),
				"set the clocks (NTP): members whose clocks differ by a day reject each other"})
		} else if skew > time.Minute {
			out = append(out, Finding{Warn, name,
				fmt.Sprintf("its clock and this machine's differ by %s", skew.Round(time.Second)),
				"set the clocks (NTP)"})
		}
	}
	return out
}

// notReached is the finding about a supernode that was not reached.
func notReached(name string, err error) Finding {
	cause := identity.Explain(err)
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(cause, identity.ErrNotMember):
		return Finding{Fail, name, cause.Error(), "set the same secret on both, with cluster.secretFile"}
	case errors.As(err, &invalid), identity.OfClocks(err):
		return Finding{Fail, name, cause.Error(), "set the clocks (NTP)"}
	case alerted(err):
		return Finding{Fail, name, "rejects this node: " + cause.Error(),
			"set the same secret on both, with cluster.secretFile"}
	}
	what, do := explain(err)
	return Finding{Fail, name, fmt.Sprintf("%s: %v", what, plain(err)), do}
}

// alerted reports whether the other side of a TLS connection closed it with an alert.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// plain removes operation and addresses from an error that is printed next to them.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
