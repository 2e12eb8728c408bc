package telemetry

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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

// Place is the part of the program in which an error happened.
type Place string

// The places.
const (
	InOrigin   Place = "origin"
	InStore    Place = "store"
	InPeer     Place = "peer"
	InAnnounce Place = "announce"
	InGossip   Place = "gossip"
	InMirror   Place = "mirror"
)

var allPlaces = []Place{InOrigin, InStore, InPeer, InAnnounce, InGossip, InMirror}

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

func counter(reg prometheus.Registerer, name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	reg.MustRegister(c)
	return c
}

func gauge(reg prometheus.Registerer, name, help string, value func() float64) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// Pulls are the contents that clients asked this host for.
type Pulls struct {
	ended            *prometheus.CounterVec
	bytes            *prometheus.CounterVec
	firstByte, total prometheus.Histogram
}

// durations reach from a local hit to a giant layer on a slow line.
var durations = prometheus.ExponentialBuckets(0.001, 2.5, 14)

var kinds = []task.Kind{task.Blob, task.Manifest, task.Plain}

// NewPulls registers the group.
func NewPulls(reg prometheus.Registerer) *Pulls {
	p := &Pulls{
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "darter_pulls_total", Help: "Contents that clients asked for, by what they were and how it ended."}, []string{"kind", "result"}),
		bytes: counters(reg, "darter_pull_bytes_total", "Bytes given to clients, by where this host had them from.", "source", allSources),
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
	p.ended.WithLabelValues(known(pull.Kind, kinds, task.Plain), known(pull.Result, allResults, Failed)).Inc()
	for s, n := range pull.Bytes.each() {
		p.bytes.WithLabelValues(string(s)).Add(float64(max(0, n)))
	}
	if pull.FirstByte > 0 {
		p.firstByte.Observe(pull.FirstByte.Seconds())
	}
	if pull.Result == OK {
		p.total.Observe(pull.Total.Seconds())
	}
}

// Swarm is the exchange of pieces with other hosts and the origin.
type Swarm struct {
	received, pieces, busy *prometheus.CounterVec
	sent, sentPieces, bad  prometheus.Counter
}

// NewSwarm registers the group; slots tells how many upload slots are used, of how many,
// at the time of the call.
func NewSwarm(reg prometheus.Registerer, slots func() (used, all int)) *Swarm {
	sources := []Source{FromPeers, FromSeed, FromOrigin}
	gauge(reg, "darter_upload_slots", "Pieces that this host serves at once, at most.", func() float64 { _, all := slots(); return float64(all) })
	gauge(reg, "darter_upload_slots_used", "Pieces that this host serves now.", func() float64 { used, _ := slots(); return float64(used) })
	return &Swarm{
		received:   counters(reg, "darter_received_bytes_total", "Content that came in, verified or not, by its source.", "source", sources),
		pieces:     counters(reg, "darter_pieces_total", "Pieces verified and stored, by their source.", "source", sources),
		sent:       counter(reg, "darter_sent_bytes_total", "Content sent to other hosts."),
		sentPieces: counter(reg, "darter_pieces_sent_total", "Pieces sent to other hosts."),
		bad:        counter(reg, "darter_pieces_bad_total", "Pieces that came with a wrong digest and were thrown away."),
		busy:       counters(reg, "darter_busy_total", "Requests refused for want of an upload slot, told to others or heard from them.", "direction", []Direction{Told, Heard}),
	}
}

// Received counts content that came in.
func (s *Swarm) Received(from Source, bytes int64) {
	if s != nil && from != FromCache {
		s.received.WithLabelValues(known(from, allSources, FromPeers)).Add(float64(max(0, bytes)))
	}
}

// Stored counts a piece that was verified and stored.
func (s *Swarm) Stored(from Source) {
	if s != nil && from != FromCache {
		s.pieces.WithLabelValues(known(from, allSources, FromPeers)).Inc()
	}
}

// Sent counts content that another host was given; piece says that it ended a piece.
func (s *Swarm) Sent(bytes int64, piece bool) {
	if s == nil {
		return
	}
	s.sent.Add(float64(max(0, bytes)))
	if piece {
		s.sentPieces.Inc()
	}
}

// Bad counts a piece with a wrong digest.
func (s *Swarm) Bad() {
	if s != nil {
		s.bad.Inc()
	}
}

// Busy counts a request that was refused for want of a slot.
func (s *Swarm) Busy(d Direction) {
	if s != nil {
		s.busy.WithLabelValues(known(d, []Direction{Told, Heard}, Heard)).Inc()
	}
}

// StoreStats is what a store holds at one time.
type StoreStats struct {
	Bytes, Quota int64 // Quota 0: none
	Tasks        int
	Evictions    int64 // since the start
}

type store struct {
	stats                          func() StoreStats
	bytes, quota, tasks, evictions *prometheus.Desc
}

// NewStore registers the group; stats is called once per scrape.
func NewStore(reg prometheus.Registerer, stats func() StoreStats) {
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, nil, nil) }
	reg.MustRegister(&store{
		stats:     stats,
		bytes:     desc("darter_store_bytes", "Disk that the pieces occupy."),
		quota:     desc("darter_store_quota_bytes", "Disk that the pieces may occupy; 0 where only the file system bounds them."),
		tasks:     desc("darter_store_tasks", "Contents that are stored, whole or in part."),
		evictions: desc("darter_store_evictions_total", "Contents evicted to make room."),
	})
}

func (s *store) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.bytes
	ch <- s.quota
	ch <- s.tasks
	ch <- s.evictions
}

func (s *store) Collect(ch chan<- prometheus.Metric) {
	now := s.stats()
	ch <- prometheus.MustNewConstMetric(s.bytes, prometheus.GaugeValue, float64(now.Bytes))
	ch <- prometheus.MustNewConstMetric(s.quota, prometheus.GaugeValue, float64(now.Quota))
	ch <- prometheus.MustNewConstMetric(s.tasks, prometheus.GaugeValue, float64(now.Tasks))
	ch <- prometheus.MustNewConstMetric(s.evictions, prometheus.CounterValue, float64(now.Evictions))
}

// Owner is what a coordinator does for the tasks that it owns.
type Owner struct {
	announces *prometheus.CounterVec
	took      prometheus.Histogram
	seeds     *prometheus.CounterVec
}

// events are those of the announces; another one counts as "other".
var events = []string{"started", "progress", "completed", "stopped", "starving", "other"}

// NewOwner registers the group; running tells how many seeds run, hosts how many hosts are
// known, both at the time of the call.
func NewOwner(reg prometheus.Registerer, running, hosts func() int) *Owner {
	gauge(reg, "darter_seeds_running", "Contents that this host brings from an origin now.", func() float64 { return float64(running()) })
	gauge(reg, "darter_hosts", "Hosts that announced themselves and are taken to be alive.", func() float64 { return float64(hosts()) })
	o := &Owner{
		announces: counters(reg, "darter_announces_total", "Entries of announces taken in, by their event.", "event", events),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "darter_announce_seconds",
			Help: "Time to answer one announce.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8)}),
		seeds: counters(reg, "darter_seeds_total", "Contents brought from an origin, by how it ended.", "result", allResults),
	}
	reg.MustRegister(o.took)
	return o
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

// Seeded counts a seed that ended.
func (o *Owner) Seeded(r Result) {
	if o != nil {
		o.seeds.WithLabelValues(known(r, allResults, Failed)).Inc()
	}
}

// Errors counts what went wrong in a part of the program, told to somebody or not.
type Errors struct{ total *prometheus.CounterVec }

// NewErrors registers the group.
func NewErrors(reg prometheus.Registerer) *Errors {
	return &Errors{counters(reg, "darter_errors_total", "Errors, by the part of the program that met them.", "place", allPlaces)}
}

// Count counts one error.
func (e *Errors) Count(p Place) {
	if e != nil && slices.Contains(allPlaces, p) {
		e.total.WithLabelValues(string(p)).Inc()
	}
}
