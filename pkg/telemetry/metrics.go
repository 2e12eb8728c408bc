package telemetry

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// Source is where bytes came from.
type Source string

// The sources.
const (
	FromPeers  Source = "peers"  // other hosts with pieces of the task
	FromSeed   Source = "seed"   // a supernode's engine, whose parent is the origin
	FromOrigin Source = "origin" // the registry or web server itself
	FromCache  Source = "cache"  // this host's own store
)

var allSources = []Source{FromPeers, FromSeed, FromOrigin, FromCache}

// Result is how a pull or a seed ended.
type Result string

// The results.
const (
	OK       Result = "ok"
	Refused  Result = "refused"  // by the origin, whose response the client received
	Failed   Result = "failed"   // by an error of this host or of the network
	Canceled Result = "canceled" // by the client
)

var allResults = []Result{OK, Refused, Failed, Canceled}

// Direction is whether this host sent a message or received it.
type Direction string

// The directions, with the names that the metrics keep.
const (
	Sent     Direction = "told"
	Received Direction = "heard"
)

// known replaces values that are not in the list by fallback, so that they do not become series.
func known[T ~string](v T, all []T, fallback T) string {
	if slices.Contains(all, v) {
		return string(v)
	}
	return string(fallback)
}

// counters registers a counter with all its series at zero, so that rates are right from the first event on.
func counters[T ~string](reg prometheus.Registerer, name, help, label string, values []T) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, value := range values {
		v.WithLabelValues(string(value))
	}
	reg.MustRegister(v)
	return v
}

// Pulls counts the downloads of clients from this host.
type Pulls struct {
	ended            *prometheus.CounterVec
	bytes            *prometheus.CounterVec
	unconfirmed      *prometheus.CounterVec
	firstByte, total *prometheus.HistogramVec
	outcomes         outcomes
}

// Unconfirmed is a kind of answer that an unreachable registry did not confirm.
type Unconfirmed string

// The kinds, with the names that the metrics keep.
const (
	Tag   Unconfirmed = "tag"   // a resolved tag
	Grant Unconfirmed = "right" // a client's permission to read a digest
)

// Unconfirmed counts an answer that an unreachable registry did not confirm.
func (p *Pulls) Unconfirmed(w Unconfirmed) { p.unconfirmed.WithLabelValues(string(w)).Inc() }

// durations range from a local hit to a huge layer over a slow network.
var durations = prometheus.ExponentialBuckets(0.001, 2.5, 14)

var kinds = []task.Kind{task.Blob, task.Manifest, task.Plain}

// NewPulls registers the group.
func NewPulls(reg prometheus.Registerer) *Pulls {
	p := &Pulls{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "darter_pulls_total", Help: "Blobs, manifests and files that clients requested, by kind and result."},
			[]string{"kind", "result"}),
		bytes: counters(reg, "darter_pull_bytes_total", "Bytes sent to clients, by where this host got them.",
			"source", allSources),
		unconfirmed: counters(reg, "darter_pull_unconfirmed_total",
			"Answers from memory while their registry was unreachable.", "what", []Unconfirmed{Tag, Grant}),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "darter_pull_first_byte_seconds",
			Help:    "Time from a client's request to the first byte of the response.",
			Buckets: durations}, []string{"kind"}),
		total: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "darter_pull_seconds", Help: "Time from a client's request to the last byte, of successful pulls.",
			Buckets: durations}, []string{"kind"}),
	}
	for _, k := range kinds {
		p.firstByte.WithLabelValues(string(k))
		p.total.WithLabelValues(string(k))
		for _, r := range allResults {
			p.ended.WithLabelValues(string(k), string(r))
		}
	}
	reg.MustRegister(p.ended, p.firstByte, p.total)
	return p
}

// count counts a pull that ended.
func (p *Pulls) count(pull Pull) {
	if p == nil {
		return
	}
	p.outcomes.add(pull.Result, pull.Name, pull.Err)
	kind := known(pull.Kind, kinds, task.Plain)
	p.ended.WithLabelValues(kind, known(pull.Result, allResults, Failed)).Inc()
	bySource(pull.Bytes, func(s Source, n int64) { p.bytes.WithLabelValues(string(s)).Add(float64(max(0, n))) })
	if pull.FirstByte > 0 {
		p.firstByte.WithLabelValues(kind).Observe(pull.FirstByte.Seconds())
	}
	if pull.Result == OK {
		p.total.WithLabelValues(kind).Observe(pull.Total.Seconds())
	}
}

// SwarmStats are the counters of an engine since its start, in bytes where no unit is given, and its current load.
type SwarmStats struct {
	Received               api.Sources // verified and stored; Cache is 0
	Duplicate              int64
	Sent                   int64
	BadPieces              int64 // pieces
	BusySent, BusyReceived int64 // requests
	Slots, SlotsUsed       int
	Connections, Running   int
}

// NewSwarm registers the metrics of an engine. A scrape calls stats once.
func NewSwarm(reg prometheus.Registerer, stats func() SwarmStats) {
	c := &collector{}
	for source, value := range map[Source]func(SwarmStats) int64{
		FromPeers:  func(s SwarmStats) int64 { return s.Received.Peers },
		FromSeed:   func(s SwarmStats) int64 { return s.Received.Seeds },
		FromOrigin: func(s SwarmStats) int64 { return s.Received.Origin },
	} {
		add(c, "darter_received_bytes_total", "Bytes received, verified and stored, by their source.",
			prometheus.CounterValue, value, "source", string(source))
	}
	add(c, "darter_duplicate_bytes_total", "Bytes received that this host already had.", prometheus.CounterValue,
		func(s SwarmStats) int64 { return s.Duplicate })
	add(c, "darter_sent_bytes_total", "Bytes sent to other hosts.", prometheus.CounterValue, func(s SwarmStats) int64 {
		return s.Sent
	})
	add(c, "darter_pieces_bad_total", "Pieces that were discarded because of a wrong digest.", prometheus.CounterValue,
		func(s SwarmStats) int64 { return s.BadPieces })
	const busy = "Requests refused because all upload slots were in use, by this host (told) or by others (heard)."
	add(c, "darter_busy_total", busy, prometheus.CounterValue, func(s SwarmStats) int64 { return s.BusySent },
		"direction", string(Sent))
	add(c, "darter_busy_total", busy, prometheus.CounterValue, func(s SwarmStats) int64 { return s.BusyReceived },
		"direction", string(Received))
	add(c, "darter_upload_slots", "Nodes that this host can serve at once.", prometheus.GaugeValue,
		func(s SwarmStats) int64 { return int64(s.Slots) })
	add(c, "darter_upload_slots_used", "Nodes that this host serves now.", prometheus.GaugeValue,
		func(s SwarmStats) int64 { return int64(s.SlotsUsed) })
	add(c, "darter_connections", "Open connections of the piece protocol.", prometheus.GaugeValue,
		func(s SwarmStats) int64 { return int64(s.Connections) })
	add(c, "darter_downloads", "Tasks in memory: downloading, read or served.", prometheus.GaugeValue,
		func(s SwarmStats) int64 { return int64(s.Running) })
	c.read = func() any { return stats() }
	reg.MustRegister(c)
}

// collector makes many metrics from one reading, so that they belong to the same moment.
type collector struct {
	read    func() any
	metrics []metric
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(any) int64
}

// add adds a metric whose value is part of a reading of type S. label is a name and its value, or empty.
func add[S any](c *collector, name, help string, kind prometheus.ValueType, value func(S) int64, label ...string) {
	var labels prometheus.Labels
	if len(label) == 2 {
		labels = prometheus.Labels{label[0]: label[1]}
	}
	c.metrics = append(c.metrics, metric{prometheus.NewDesc(name, help, nil, labels), kind, func(s any) int64 {
		return value(s.(S))
	}})
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	now := c.read()
	for _, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(now)))
	}
}

// StoreStats is the current use of a store.
type StoreStats struct {
	Bytes, Quota int64 // Quota 0: none
	Tasks        int
	Evictions    int64 // since the start
}

// NewStore registers the metrics of a store. A scrape calls stats once.
func NewStore(reg prometheus.Registerer, stats func() StoreStats) {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_store_bytes", "Disk space that the pieces use.", prometheus.GaugeValue, func(s StoreStats) int64 {
		return s.Bytes
	})
	add(c, "darter_store_quota_bytes", "Disk space that the pieces may use; 0 if only the file system bounds it.",
		prometheus.GaugeValue, func(s StoreStats) int64 { return s.Quota })
	add(c, "darter_store_tasks", "Tasks that are stored, whole or in part.", prometheus.GaugeValue,
		func(s StoreStats) int64 { return int64(s.Tasks) })
	add(c, "darter_store_evictions_total", "Tasks evicted to free space.", prometheus.CounterValue,
		func(s StoreStats) int64 { return s.Evictions })
	reg.MustRegister(c)
}

// MemberStats is the state of a member in relation to the others.
type MemberStats struct {
	Skew       time.Duration // the largest difference between an owner's clock and this host's
	Unfollowed int           // purges that this host could not carry out yet
	Lost       time.Duration // for how long the process did not run
	// OwnersReachable and OwnersUnreachable count the supernodes to which a dfdaemon announces.
	OwnersReachable, OwnersUnreachable int
}

// NewMember registers the metrics of a member. A scrape calls stats once.
func NewMember(reg prometheus.Registerer, stats func() MemberStats) {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_clock_skew_seconds", "The largest known difference between an owner's clock and this host's.",
		prometheus.GaugeValue, func(s MemberStats) int64 { return int64(s.Skew / time.Second) })
	add(c, "darter_withdrawals_unfollowed", "Purges that this host knows and could not carry out yet, at most 16.",
		prometheus.GaugeValue, func(s MemberStats) int64 { return int64(s.Unfollowed) })
	add(c, "darter_lag_seconds_total", "Time for which this process did not run: it was stopped, or lacked CPU time.",
		prometheus.CounterValue, func(s MemberStats) int64 { return int64(s.Lost / time.Second) })
	const owners = "Supernodes to which this host announces, by whether they answer; 0 on a supernode."
	add(c, "darter_owners", owners, prometheus.GaugeValue,
		func(s MemberStats) int64 { return int64(s.OwnersReachable) }, "state", "reachable")
	add(c, "darter_owners", owners, prometheus.GaugeValue,
		func(s MemberStats) int64 { return int64(s.OwnersUnreachable) }, "state", "unreachable")
	reg.MustRegister(c)
}

// SecretStats is the use of a cluster secret. State is first, accepted or removed.
type SecretStats struct {
	Fingerprint, State string
	Connections        int
	Handshakes         int64
}

// secretsCollector reads the secrets at each scrape, because they change while a program runs.
type secretsCollector struct {
	stats                   func() []SecretStats
	connections, handshakes *prometheus.Desc
}

// NewSecrets registers the metrics of the cluster secrets. A scrape calls stats once.
func NewSecrets(reg prometheus.Registerer, stats func() []SecretStats) {
	labels := []string{"secret", "state"}
	reg.MustRegister(&secretsCollector{stats,
		prometheus.NewDesc("darter_secret_connections",
			"Open connections with members, by the fingerprint of the cluster secret that the other end proved.", labels,
			nil),
		prometheus.NewDesc("darter_secret_handshakes_total",
			"Handshakes with members, by the fingerprint of the cluster secret that the other end proved.", labels,
			nil)})
}

func (c *secretsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.handshakes
}

func (c *secretsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.stats() {
		ch <- prometheus.MustNewConstMetric(c.connections, prometheus.GaugeValue, float64(s.Connections), s.Fingerprint,
			s.State)
		ch <- prometheus.MustNewConstMetric(c.handshakes, prometheus.CounterValue, float64(s.Handshakes), s.Fingerprint,
			s.State)
	}
}

// Owner counts the work of a coordinator.
type Owner struct {
	announces    *prometheus.CounterVec
	took         prometheus.Histogram
	seeds        *prometheus.CounterVec
	clockRefused prometheus.Counter
	refused      *prometheus.CounterVec
	outcomes     outcomes
}

// events are the events of announces; any other counts as "other".
var events = []string{"started", "progress", "completed", "stopped", "starving", "other"}

// refusals are the reasons to refuse an announce; any other counts as "broken".
var refusals = []string{"foreign", "in_use", "clock", "full", "tasks", "broken"}

// OwnerStats is the current load of a coordinator. Hosts are the other ones.
type OwnerStats struct{ Hosts, Seeding int }

// NewOwner registers the metrics of a coordinator. A scrape calls stats once.
func NewOwner(reg prometheus.Registerer, stats func() OwnerStats) *Owner {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_seeds_running", "Tasks that this host downloads from an origin now.", prometheus.GaugeValue,
		func(s OwnerStats) int64 { return int64(s.Seeding) })
	add(c, "darter_hosts", "Other hosts that announced themselves and count as alive.", prometheus.GaugeValue,
		func(s OwnerStats) int64 { return int64(s.Hosts) })
	reg.MustRegister(c)
	o := &Owner{
		announces: counters(reg, "darter_announces_total", "Entries of accepted announces, by event.", "event", events),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "darter_announce_seconds",
			Help: "Time to answer an announce.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}),
		refused: counters(reg, "darter_announces_refused_total",
			"Announces refused, or accepted without some of their tasks, by reason.", "why", refusals),
		seeds: counters(reg, "darter_seeds_total", "Downloads from an origin, by result.", "result", allResults),
	}
	o.clockRefused = prometheus.NewCounter(prometheus.CounterOpts{Name: "darter_clock_refused_total",
		Help: "Announces refused because the clocks of the two hosts differ by more than a day."})
	reg.MustRegister(o.took, o.clockRefused)
	return o
}

// ClockRefused counts an announce that was refused because the clocks differ.
func (o *Owner) ClockRefused() {
	if o != nil {
		o.clockRefused.Inc()
	}
}

// Announced counts an announce and the events of its entries.
func (o *Owner) Announced(took time.Duration, entries ...string) {
	if o == nil {
		return
	}
	o.took.Observe(took.Seconds())
	for _, e := range entries {
		o.announces.WithLabelValues(known(e, events, "other")).Inc()
	}
}

// Refused counts an announce that was refused in whole or in part.
func (o *Owner) Refused(why string) {
	if o != nil {
		o.refused.WithLabelValues(known(why, refusals, "broken")).Inc()
	}
}

// Seeded counts a seed that ended; err is why it failed.
func (o *Owner) Seeded(r Result, id task.ID, err error) {
	if o != nil {
		o.seeds.WithLabelValues(known(r, allResults, Failed)).Inc()
		o.outcomes.add(r, id.Short(), err)
	}
}

// ConnRefusal is the reason why a connection was refused or closed.
type ConnRefusal string

// The reasons.
const (
	ConnNoCertificate ConnRefusal = "no_certificate" // the other side has none, and no cluster secret
	ConnOtherSecret   ConnRefusal = "other_secret"   // one side has the certificate of another cluster secret
	ConnClock         ConnRefusal = "clock"          // the certificate is not valid now: the clocks differ
	ConnNoTLS         ConnRefusal = "no_tls"         // the other side does not speak TLS
	ConnTLS           ConnRefusal = "tls"            // the other side speaks TLS, and this port does not
	ConnSilent        ConnRefusal = "silent"         // no handshake in time
	ConnCrowded       ConnRefusal = "crowded"        // too many open connections, in total or from its address
	ConnSlow          ConnRefusal = "slow"           // the request arrived too slowly
	ConnOther         ConnRefusal = "other"
)

var allConnRefusals = []ConnRefusal{
	ConnNoCertificate, ConnOtherSecret, ConnClock, ConnNoTLS, ConnTLS, ConnSilent, ConnCrowded,
	ConnSlow, ConnOther,
}

// ConnRefusals counts refused connections by reason.
type ConnRefusals struct{ refused *prometheus.CounterVec }

// NewConnRefusals registers the group.
func NewConnRefusals(reg prometheus.Registerer) *ConnRefusals {
	return &ConnRefusals{counters(reg, "darter_connections_refused_total", "Connections refused or closed, by reason.",
		"why", allConnRefusals)}
}

// Count counts a refused connection. A nil group counts nothing.
func (c *ConnRefusals) Count(why ConnRefusal) {
	if c != nil {
		c.refused.WithLabelValues(known(why, allConnRefusals, ConnOther)).Inc()
	}
}
