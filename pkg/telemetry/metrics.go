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
	FromPeers  Source = "peers"  // other hosts that want or hold the content
	FromSeed   Source = "seed"   // a supernode's engine, whose parent is the origin
	FromOrigin Source = "origin" // the registry or web server itself
	FromCache  Source = "cache"  // this host's own store
)

var allSources = []Source{FromPeers, FromSeed, FromOrigin, FromCache}

// Result is how a pull, a seed or a question ended.
type Result string

// The results.
const (
	OK       Result = "ok"
	Refused  Result = "refused"  // the origin said no, and its answer was passed on
	Failed   Result = "failed"   // an error of ours or of the network
	Canceled Result = "canceled" // the client went away
)

var allResults = []Result{OK, Refused, Failed, Canceled}

// Direction tells what this host does to others from what they do to it.
type Direction string

// The directions.
const (
	Told  Direction = "told"  // this host told others
	Heard Direction = "heard" // others told this host
)

// known keeps values that somebody made up from becoming series: they count as fallback.
func known[T ~string](v T, all []T, fallback T) string {
	if slices.Contains(all, v) {
		return string(v)
	}
	return string(fallback)
}

// counters registers a counter whose series are all there from the beginning, at zero: a
// rate is then right from the first event on.
func counters[T ~string](reg prometheus.Registerer, name, help, label string, values []T) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, value := range values {
		v.WithLabelValues(string(value))
	}
	reg.MustRegister(v)
	return v
}

// Pulls are the contents that clients asked this host for.
type Pulls struct {
	ended            *prometheus.CounterVec
	bytes            *prometheus.CounterVec
	unconfirmed      *prometheus.CounterVec
	firstByte, total prometheus.Histogram
	outcomes         outcomes
}

// What is Unconfirmed: what a registry would have been asked about, had it answered.
type What string

// The kinds of it.
const (
	Tag   What = "tag"   // what a tag means
	Right What = "right" // whether a client may have a content
)

// Unconfirmed counts an answer that was given although a registry did not confirm it.
func (p *Pulls) Unconfirmed(w What) { p.unconfirmed.WithLabelValues(string(w)).Inc() }

// durations reach from a local hit to a giant layer on a slow line.
var durations = prometheus.ExponentialBuckets(0.001, 2.5, 14)

var kinds = []task.Kind{task.Blob, task.Manifest, task.Plain}

// NewPulls registers the group.
func NewPulls(reg prometheus.Registerer) *Pulls {
	p := &Pulls{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "darter_pulls_total", Help: "Contents that clients asked for, by what they were and how it ended."}, []string{"kind", "result"}),
		bytes:       counters(reg, "darter_pull_bytes_total", "Bytes given to clients, by where this host had them from.", "source", allSources),
		unconfirmed: counters(reg, "darter_pull_unconfirmed_total", "Answers from memory that a registry, being unreachable, did not confirm.", "what", []What{Tag, Right}),
		firstByte: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "darter_pull_first_byte_seconds", Help: "Time from a client's question to the first byte of its answer.", Buckets: durations}),
		total: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "darter_pull_seconds", Help: "Time from a client's question to the last byte, of pulls that ended well.", Buckets: durations}),
	}
	for _, k := range kinds {
		for _, r := range allResults {
			p.ended.WithLabelValues(string(k), string(r))
		}
	}
	reg.MustRegister(p.ended, p.firstByte, p.total)
	return p
}

// count takes in one pull that ended.
func (p *Pulls) count(pull Pull) {
	if p == nil {
		return
	}
	p.outcomes.add(pull.Result, pull.Name, pull.Err)
	p.ended.WithLabelValues(known(pull.Kind, kinds, task.Plain), known(pull.Result, allResults, Failed)).Inc()
	bySource(pull.Bytes, func(s Source, n int64) { p.bytes.WithLabelValues(string(s)).Add(float64(max(0, n))) })
	if pull.FirstByte > 0 {
		p.firstByte.Observe(pull.FirstByte.Seconds())
	}
	if pull.Result == OK {
		p.total.Observe(pull.Total.Seconds())
	}
}

// SwarmStats are the counters of the exchange of pieces since the start, in bytes where
// nothing else is said, and what of it goes on now.
type SwarmStats struct {
	Received             api.Sources // verified and stored; Cache is 0
	Duplicate            int64
	Sent                 int64
	BadPieces            int64 // pieces
	BusyTold, BusyHeard  int64 // requests
	Slots, SlotsUsed     int
	Connections, Running int
}

// NewSwarm registers what an engine counts; stats is called once per scrape.
func NewSwarm(reg prometheus.Registerer, stats func() SwarmStats) {
	c := &collector{}
	for source, value := range map[Source]func(SwarmStats) int64{
		FromPeers:  func(s SwarmStats) int64 { return s.Received.Peers },
		FromSeed:   func(s SwarmStats) int64 { return s.Received.Seeds },
		FromOrigin: func(s SwarmStats) int64 { return s.Received.Origin },
	} {
		add(c, "darter_received_bytes_total", "Content that came in, verified and stored, by its source.", prometheus.CounterValue, value, "source", string(source))
	}
	add(c, "darter_duplicate_bytes_total", "Content that came in although it was here already.", prometheus.CounterValue, func(s SwarmStats) int64 { return s.Duplicate })
	add(c, "darter_sent_bytes_total", "Content sent to other hosts.", prometheus.CounterValue, func(s SwarmStats) int64 { return s.Sent })
	add(c, "darter_pieces_bad_total", "Pieces that came with a wrong digest and were thrown away.", prometheus.CounterValue, func(s SwarmStats) int64 { return s.BadPieces })
	const busy = "Requests refused for want of an upload slot, told to others or heard from them."
	add(c, "darter_busy_total", busy, prometheus.CounterValue, func(s SwarmStats) int64 { return s.BusyTold }, "direction", string(Told))
	add(c, "darter_busy_total", busy, prometheus.CounterValue, func(s SwarmStats) int64 { return s.BusyHeard }, "direction", string(Heard))
	add(c, "darter_upload_slots", "Pieces that this host serves at once, at most.", prometheus.GaugeValue, func(s SwarmStats) int64 { return int64(s.Slots) })
	add(c, "darter_upload_slots_used", "Pieces that this host serves now.", prometheus.GaugeValue, func(s SwarmStats) int64 { return int64(s.SlotsUsed) })
	add(c, "darter_connections", "Connections of the piece wire that are open.", prometheus.GaugeValue, func(s SwarmStats) int64 { return int64(s.Connections) })
	add(c, "darter_downloads", "Contents in memory: they are downloaded, read or served.", prometheus.GaugeValue, func(s SwarmStats) int64 { return int64(s.Running) })
	c.read = func() any { return stats() }
	reg.MustRegister(c)
}

// collector turns one reading into many metrics, so that they are of one moment.
type collector struct {
	read    func() any
	metrics []metric
}

type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(any) int64
}

// add adds one metric whose value is a part of a reading of type S; label is a name and its
// value, or nothing.
func add[S any](c *collector, name, help string, kind prometheus.ValueType, value func(S) int64, label ...string) {
	var labels prometheus.Labels
	if len(label) == 2 {
		labels = prometheus.Labels{label[0]: label[1]}
	}
	c.metrics = append(c.metrics, metric{prometheus.NewDesc(name, help, nil, labels), kind, func(s any) int64 { return value(s.(S)) }})
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

// StoreStats is what a store holds at one time.
type StoreStats struct {
	Bytes, Quota int64 // Quota 0: none
	Tasks        int
	Evictions    int64 // since the start
}

// NewStore registers what a store holds; stats is called once per scrape.
func NewStore(reg prometheus.Registerer, stats func() StoreStats) {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_store_bytes", "Disk that the pieces occupy.", prometheus.GaugeValue, func(s StoreStats) int64 { return s.Bytes })
	add(c, "darter_store_quota_bytes", "Disk that the pieces may occupy; 0 where only the file system bounds them.", prometheus.GaugeValue, func(s StoreStats) int64 { return s.Quota })
	add(c, "darter_store_tasks", "Contents that are stored, whole or in part.", prometheus.GaugeValue, func(s StoreStats) int64 { return int64(s.Tasks) })
	add(c, "darter_store_evictions_total", "Contents evicted to make room.", prometheus.CounterValue, func(s StoreStats) int64 { return s.Evictions })
	reg.MustRegister(c)
}

// MemberStats is how a member stands to the others at one time.
type MemberStats struct {
	Skew       time.Duration // the largest difference between an owner's clock and this host's
	Unfollowed int           // withdrawals that could not be followed yet
}

// NewMember registers how a member stands to the others; stats is called once per scrape.
func NewMember(reg prometheus.Registerer, stats func() MemberStats) {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_clock_skew_seconds", "By how much an owner's clock differs from this host's, the largest of those known.", prometheus.GaugeValue, func(s MemberStats) int64 { return int64(s.Skew / time.Second) })
	add(c, "darter_withdrawals_unfollowed", "Withdrawals that this host knows and could not follow yet, at most 16.", prometheus.GaugeValue, func(s MemberStats) int64 { return int64(s.Unfollowed) })
	reg.MustRegister(c)
}

// Owner is what a coordinator does for the tasks that it owns.
type Owner struct {
	announces *prometheus.CounterVec
	took      prometheus.Histogram
	seeds     *prometheus.CounterVec
	apart     prometheus.Counter
	refused   *prometheus.CounterVec
	outcomes  outcomes
}

// events are those of the announces; another one counts as "other".
var events = []string{"started", "progress", "completed", "stopped", "starving", "other"}

// refusals are why announces are refused; another one counts as "broken".
var refusals = []string{"foreign", "in_use", "clock", "full", "tasks", "broken"}

// OwnerStats is what a coordinator knows at one time.
type OwnerStats struct{ Hosts, Seeding int }

// NewOwner registers the group; stats is called once per scrape.
func NewOwner(reg prometheus.Registerer, stats func() OwnerStats) *Owner {
	c := &collector{read: func() any { return stats() }}
	add(c, "darter_seeds_running", "Contents that this host brings from an origin now.", prometheus.GaugeValue, func(s OwnerStats) int64 { return int64(s.Seeding) })
	add(c, "darter_hosts", "Hosts that announced themselves and are taken to be alive.", prometheus.GaugeValue, func(s OwnerStats) int64 { return int64(s.Hosts) })
	reg.MustRegister(c)
	o := &Owner{
		announces: counters(reg, "darter_announces_total", "Entries of announces taken in, by their event.", "event", events),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "darter_announce_seconds",
			Help: "Time to answer one announce.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}),
		refused: counters(reg, "darter_announces_refused_total", "Announces refused, or taken in without some of their tasks, by why.", "why", refusals),
		seeds:   counters(reg, "darter_seeds_total", "Contents brought from an origin, by how it ended.", "result", allResults),
	}
	o.apart = prometheus.NewCounter(prometheus.CounterOpts{Name: "darter_clock_refused_total",
		Help: "Announces refused because the host's clock is more than a day from this one's."})
	reg.MustRegister(o.took, o.apart)
	return o
}

// Apart counts an announce that was refused because of the host's clock.
func (o *Owner) Apart() {
	if o != nil {
		o.apart.Inc()
	}
}

// Announced counts one announce and the events of its entries.
func (o *Owner) Announced(took time.Duration, entries ...string) {
	if o == nil {
		return
	}
	o.took.Observe(took.Seconds())
	for _, e := range entries {
		o.announces.WithLabelValues(known(e, events, "other")).Inc()
	}
}

// Refused counts an announce that was refused, or a part of it.
func (o *Owner) Refused(why string) {
	if o != nil {
		o.refused.WithLabelValues(known(why, refusals, "broken")).Inc()
	}
}

// Seeded counts a seed that ended; err says why it did not end well.
func (o *Owner) Seeded(r Result, id task.ID, err error) {
	if o != nil {
		o.seeds.WithLabelValues(known(r, allResults, Failed)).Inc()
		o.outcomes.add(r, id.Short(), err)
	}
}

// Turned is why a connection was turned away or cut.
type Turned string

// The reasons.
const (
	TurnedNoCertificate Turned = "no_certificate" // its other end showed none, and has no cluster secret
	TurnedOtherSecret   Turned = "other_secret"   // a certificate of another cluster secret, or it refused ours
	TurnedClock         Turned = "clock"          // a certificate outside its time: clocks differ
	TurnedNoTLS         Turned = "no_tls"         // it spoke something else
	TurnedSilent        Turned = "silent"         // it did not finish the handshake in time
	TurnedCrowded       Turned = "crowded"        // too many connections were open, here or from its address
	TurnedSlow          Turned = "slow"           // its request came too slowly
	TurnedOther         Turned = "other"
)

var allTurned = []Turned{
	TurnedNoCertificate, TurnedOtherSecret, TurnedClock, TurnedNoTLS, TurnedSilent, TurnedCrowded, TurnedSlow, TurnedOther,
}

// Door counts connections that were turned away.
type Door struct{ turned *prometheus.CounterVec }

// NewDoor registers the group.
func NewDoor(reg prometheus.Registerer) *Door {
	return &Door{counters(reg, "darter_connections_refused_total", "Connections turned away or cut, by why.", "why", allTurned)}
}

// Turned counts a connection that was turned away.
func (d *Door) Turned(why Turned) {
	if d != nil {
		d.turned.WithLabelValues(known(why, allTurned, TurnedOther)).Inc()
	}
}
