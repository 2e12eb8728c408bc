// Package sim simulates crowds of thousands of hosts with discrete events. The real scheduler, picker, spread, upload
// slots and send queues decide; links, latency and the work of an engine between two decisions are modelled.
//
// A run with the same Crowd gives the same outcome to the last bit: nothing here reads a clock or starts a goroutine. A
// test measures how far the results are from those of real engines: it runs the same small crowds here and in
// test/simnet. Start at [Crowd.Run].
package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/upload"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/simnet"
)

// Crowd is one task of K pieces and N nodes that want it. The rate of a link is one piece in PieceTime; a zero field
// means its default.
type Crowd struct {
	N, K int
	// PieceTime is how long a node's link takes for one piece. Default 5 ms.
	PieceTime time.Duration
	// Latency is the one-way latency. Default 250 µs.
	Latency time.Duration
	// SeedMultiple is the rate of the seed's links, in units of a node's. Default 4.
	SeedMultiple float64
	// OriginPieceTime is how long the origin takes for one piece; 0 if the seed holds everything from the start.
	OriginPieceTime time.Duration
	// Stagger is the time over which the nodes start.
	Stagger time.Duration
	// Zones spreads the nodes over so many zones, each with a link to the others that
	// takes ZonePieceTime for a piece.
	Zones         int
	ZonePieceTime time.Duration
	// Dead is the share of the nodes that die at DeadAfter.
	Dead      float64
	DeadAfter time.Duration
	// Slow is the share of the nodes whose uplink is SlowBy times slower. SlowBy defaults to 10.
	Slow, SlowBy float64
	// Seed is the seed of all random choices.
	Seed uint64

	// Picker, Slots, SeedSlots, Lines and Neighbours are the policy's settings, as in the engine.
	Picker                  picker.Config
	Slots, SeedSlots, Lines int
	Neighbours, Gateways    int
	// Copies is how often a seed sends each piece. Default picker.CopiesMax.
	Copies int
	// BackOff is the shortest pause after a refusal by a busy neighbour, in piece-times as the node measures them; a
	// random part is added. Default ¼ (and up to ¾).
	BackOff float64
	// Turns is the order of accepted requests.
	Turns Turns
	// HeadStart is how many more pieces a waiting neighbour has than a new one that takes its place; below 0, no
	// neighbour loses its place. Default 3.
	HeadStart int
}

// Turns is an order of accepted requests.
type Turns int

// The orders. The engine serves the neighbour with the fewest pieces first.
const (
	LeastFirst Turns = iota
	FirstCome
	Rarest
)

// Outcome is the result of a crowd.
type Outcome struct {
	// Makespan is the time from the start until the last live node holds everything.
	Makespan time.Duration
	// Took is the time of each live node from its own start, sorted.
	Took []time.Duration
	// FirstPiece is when each live node received its first piece, and Half when an in-order reader could have read half
	// of the task, both from its own start, sorted.
	FirstPiece, Half []time.Duration
	// SeedCopies are the bytes that the seed sent, in units of the task.
	SeedCopies float64
	// CrossZone are the bytes that each zone received from the others, in units of the task.
	CrossZone []float64
	// ZoneSent are the bytes that each zone sent to the others, in units of the task.
	ZoneSent []float64
	// Busy counts refused requests, Wasted the received pieces that the node already had.
	Busy, Wasted int64
	// Rate is the used part of all nodes' downlinks in each span of 32 piece-times since the start.
	Rate []float64
	// Events is the number of simulated events, Unfinished the number of live nodes that did not finish.
	Events, Unfinished int
}

// Bound returns the bound for this crowd.
func (c Crowd) Bound() simnet.Bound {
	c.defaults()
	b := simnet.Bound{
		N: c.N, K: c.K, PieceTime: c.PieceTime, Seed: c.SeedMultiple, OriginPieceTime: c.OriginPieceTime,
		Slow: int(c.Slow * float64(c.N)), SlowBy: c.SlowBy,
	}
	if c.Zones > 1 {
		b.ZonePieceTime = c.ZonePieceTime
	}
	if c.N > 1 {
		b.Stagger = c.Stagger * time.Duration(c.N-1) / time.Duration(c.N)
	}
	return b
}

// Ratio returns the makespan in units of the bound.
func (c Crowd) Ratio(o Outcome) float64 {
	return float64(o.Makespan) / float64(c.Bound().Makespan())
}

func (c *Crowd) defaults() {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if c.PieceTime == 0 {
		c.PieceTime = 5 * time.Millisecond
	}
	if c.Latency == 0 {
		c.Latency = 250 * time.Microsecond
	}
	if c.SeedMultiple == 0 {
		c.SeedMultiple = 4
	}
	if c.SlowBy == 0 {
		c.SlowBy = 10
	}
	if c.BackOff == 0 {
		c.BackOff = 0.25
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
	set(&c.Zones, 1)
	set(&c.Slots, upload.SlotsDefault)
	set(&c.SeedSlots, max(1, int(upload.SlotsDefault*c.SeedMultiple)))
	set(&c.Lines, 2)
	set(&c.HeadStart, 3)
	set(&c.Copies, picker.CopiesMax)
	set(&c.Neighbours, 16)
}

// segments is the number of small messages that cross a link in the time of a piece.
const segments = 16

// chunks is the number of parts in which a piece crosses a link: pieces that are sent at once share the link part by
// part.
const chunks = 4

// moment is virtual time since the start.
type moment = time.Duration

// wire sends one thing after the other.
type wire struct {
	piece moment // for one whole piece; 0 for no limit
	free  moment
	sent  float64 // pieces
}

// pass reserves the wire for a part of a piece that is ready at a given time, and returns when it has left.
func (w *wire) pass(share float64, there moment) moment {
	w.sent += share
	if w.piece == 0 {
		return there
	}
	w.free = max(w.free, there) + moment(share*float64(w.piece))
	return w.free
}

// asked is a request of this node.
type asked struct {
	piece piece.Index // -1 until a seed has chosen it
	any   bool
	drop  bool
}

// link is one side's state of a connection.
type link struct {
	to *node
	// pending are this side's requests, in their order.
	pending []*asked
	// announced is the number of pieces that the other side announced.
	announced int
	// sending is the number of pieces that this side sends now, held the messages that wait for them, and arrives the
	// arrival of the last sent piece.
	sending int
	held    []func()
	arrives moment
}

// job is a piece that a node sends.
type job struct {
	from, to *node
	link     *link // from's, once the job has begun
	piece    piece.Index
	left     int // chunks
	begun    bool
	since    moment // when it began
	dropped  bool
}

// lane holds the slots and the queue with which a node serves the neighbours of one kind.
type lane struct {
	slots *upload.Slots
	line  *upload.SendQueue
}

func newLane(slots, lines int) lane { return lane{upload.NewSlots(slots), upload.NewSendQueue(lines)} }

// lane returns the lane that serves o.
func (n *node) lane(o *node) *lane {
	if n.host.Zone != o.host.Zone {
		return &n.afar
	}
	return &n.near
}

type node struct {
	i        int
	host     host.Host
	seed     bool
	dead     bool
	started  moment
	done     bool
	pick     *picker.Picker
	spread   *picker.Spread
	up, down wire
	// near serves neighbours in the node's zone, afar those in other zones, as in the engine.
	near, afar lane
	links      map[int]*link
	order      []*link // of links, so that a run repeats
	jobs       []*job
	dialing    map[int]bool

	pieceTime, lastGot moment
	local              bool   // not a gateway
	wake               moment // of the pending wake event; 0 for none
	nextTold           moment // progress announce
	starveDelay        moment
	prefix             piece.Index // an in-order reader's next piece, since when
	since              moment
}

// event is something that happens at a moment.
type event struct {
	at  moment
	seq uint64
	do  func()
}

// heap is a binary heap of events, the earliest first.
type heap []event

func (h heap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

func (h *heap) push(e event) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			break
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

func (h *heap) pop() event {
	s := *h
	first := s[0]
	n := len(s) - 1
	s[0] = s[n]
	s[n] = event{}
	s = s[:n]
	*h = s
	for i := 0; ; {
		least := i
		for _, c := range [2]int{2*i + 1, 2*i + 2} {
			if c < n && s.less(c, least) {
				least = c
			}
		}
		if least == i {
			return first
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}

// world is one run.
type world struct {
	Crowd
	now    moment
	seq    uint64
	queue  heap
	rng    *rand.Rand
	sched  *scheduler.Scheduler
	spec   task.Spec
	epoch  time.Time
	nodes  []*node // the first is the seed
	index  map[host.ID]int
	zones  []struct{ up, down wire }
	layout piece.Layout
	left   int
	out    Outcome
}

func (w *world) at(t moment, do func()) {
	w.seq++
	w.queue.push(event{t, w.seq, do})
}

func (w *world) clock() time.Time { return w.epoch.Add(w.now) }

// say sends a message from one node to another, which then runs look.
func (w *world) say(from, to *node, do func()) {
	w.utter(from, to, func() {
		if !to.dead && to.links[from.i] != nil {
			do()
			w.look(to)
		}
	})
}

// utter sends a message over a connection. Connections share a link packet by packet, so the message waits only shortly
// for other connections; on its own connection it waits for the pieces before it.
func (w *world) utter(from, to *node, do func()) {
	l := from.links[to.i]
	switch {
	case l == nil: // the connection has ended
	case l.sending > 0:
		l.held = append(l.held, do)
	default:
		w.at(max(w.soon(), l.arrives), do)
	}
}

// soon returns when a message that is sent now arrives.
func (w *world) soon() moment { return w.now + w.Latency + w.PieceTime/segments }

// release sends the messages that waited for a piece. They arrive before the next piece: a seed names a piece before it
// sends it.
func (w *world) release(l *link, arrives moment) {
	l.sending--
	l.arrives = max(arrives, l.arrives)
	for _, do := range l.held {
		w.at(l.arrives, do)
	}
	l.held = nil
}

// Run simulates the crowd to its end.
func (c Crowd) Run() Outcome {
	c.defaults()
	w := &world{
		Crowd: c, rng: rand.New(rand.NewPCG(c.Seed, 2)), epoch: time.Unix(1e9, 0), index: make(map[host.ID]int),
		zones:  make([]struct{ up, down wire }, c.Zones),
		layout: piece.Layout{Length: int64(c.K) * 1024, PieceSize: 1024},
		spec: task.Spec{ID: task.ID("sha256:" + fmt.Sprintf("%064x", c.Seed)), Kind: task.Blob,
			Upstream:   "registry.test",
			Repository: "a"},
		left: c.N,
	}
	for z := range w.zones {
		w.zones[z].up.piece, w.zones[z].down.piece = c.ZonePieceTime, c.ZonePieceTime
	}
	odd := rand.New(rand.NewPCG(c.Seed, 1)).Perm(c.N)
	dead, slow := int(c.Dead*float64(c.N)), int(c.Slow*float64(c.N))
	for i := range c.N + 1 {
		n := w.node(i)
		if i == 0 {
			continue
		}
		switch at := odd[i-1]; {
		case at < dead:
			w.at(c.DeadAfter, func() { w.die(n) })
		case at >= c.N-slow:
			n.up.piece = moment(float64(n.up.piece) * c.SlowBy)
		}
		n.started = moment(float64(c.Stagger) * float64(i-1) / float64(c.N))
		w.at(n.started, func() { w.announce(n, scheduler.Started) })
	}
	w.sched = scheduler.New(scheduler.Config{Self: w.nodes[0].host, Seed: c.Seed, Neighbours: c.Neighbours,
		Gateways: c.Gateways})
	w.origin(w.nodes[0])
	w.at(time.Second, w.tick)
	limit := 20*w.Bound().Makespan() + time.Minute
	for len(w.queue) > 0 && w.left > 0 {
		e := w.queue.pop()
		if w.now = e.at; w.now > limit {
			break
		}
		w.out.Events++
		e.do()
	}
	w.out.Unfinished = w.left
	w.out.SeedCopies = w.nodes[0].up.sent / float64(c.K)
	for z := range w.zones {
		w.out.CrossZone = append(w.out.CrossZone, w.zones[z].down.sent/float64(c.K))
		w.out.ZoneSent = append(w.out.ZoneSent, w.zones[z].up.sent/float64(c.K))
	}
	slices.Sort(w.out.Took)
	slices.Sort(w.out.FirstPiece)
	slices.Sort(w.out.Half)
	return w.out
}

func (w *world) node(i int) *node {
	n := &node{
		i: i, seed: i == 0, links: make(map[int]*link), dialing: make(map[int]bool),
		spread: picker.NewSpread(w.K, w.Copies), near: newLane(w.Slots, w.Lines),
		afar:      newLane(afarShare(w.Slots), w.Lines),
		pieceTime: 20 * time.Millisecond, starveDelay: 100 * time.Millisecond,
	}
	zone := 0
	n.up.piece, n.down.piece = w.PieceTime, w.PieceTime
	have := piece.NewBitmap(w.K)
	if n.seed {
		n.up.piece, n.down.piece = moment(float64(w.PieceTime)/w.SeedMultiple), 0
		n.near.slots, n.afar.slots = upload.NewSlots(w.SeedSlots), upload.NewSlots(afarShare(w.SeedSlots))
		if w.OriginPieceTime == 0 {
			have.SetAll()
		}
	} else {
		zone = (i - 1) % w.Zones
	}
	n.host = host.Host{ID: host.ID(fmt.Sprintf("%032x", i+1)), Name: fmt.Sprint(i), Addr: fmt.Sprintf("n%d:65002", i),
		Zone: fmt.Sprint(zone)}
	cfg := w.Picker
	cfg.Seed = w.Seed + uint64(i)
	n.pick = picker.New(cfg, w.layout, have)
	all := piece.NewBitmap(w.K)
	all.SetAll()
	n.pick.Want(all)
	n.pick.Role(n.host.ID, true)
	w.nodes = append(w.nodes, n)
	w.index[n.host.ID] = i
	return n
}

// origin sends the pieces to the seed, in order.
func (w *world) origin(seed *node) {
	report := scheduler.Report{Host: seed.host,
		Entries: []scheduler.Entry{{Task: w.spec.ID, Event: scheduler.Started, Spec: &w.spec}}}
	if _, err := w.sched.Announce(w.clock(), report); err != nil {
		panic(err) // it knows no other host yet, so it cannot be full
	}
	if w.OriginPieceTime == 0 {
		w.sched.Done(w.spec.ID, w.K)
		seed.done = true
		return
	}
	for i := range piece.Index(w.K) {
		w.at(4*w.Latency+moment(i+1)*w.OriginPieceTime, func() {
			seed.pick.Stored(i)
			w.publish(seed, i)
		})
	}
}

func (w *world) tick() {
	w.sched.Tick(w.clock())
	if w.left > 0 {
		w.at(w.now+time.Second, w.tick)
	}
}

// announce sends a node's event to the scheduler and applies the answer.
func (w *world) announce(n *node, event scheduler.Event) {
	if n.dead {
		return
	}
	entry := scheduler.Entry{Task: w.spec.ID, Event: event, Have: n.pick.Have().Count(), Spec: &w.spec}
	if event != scheduler.Completed {
		entry.Need = max(0, w.Neighbours-len(n.links)-len(n.dialing))
		if event == scheduler.Started {
			entry.Need = (w.Neighbours + 4) / 2
		}
		n.nextTold = w.now + time.Second
		w.at(n.nextTold, func() {
			if !n.done && w.now >= n.nextTold {
				w.announce(n, scheduler.Progress)
				w.look(n)
			}
		})
	}
	answer, err := w.sched.Announce(w.clock(),
		scheduler.Report{Host: n.host, Generation: 1, Entries: []scheduler.Entry{entry}})
	if err != nil {
		return
	}
	if local := answer.Assignments[0].Local; event != scheduler.Completed && local != n.local {
		n.local = local
		n.pick.Role(n.host.ID, !local)
		for _, l := range n.order {
			o := l.to
			w.say(n, o, func() { o.pick.Put(picker.Neighbour(n.i), place(o, n)) })
		}
	}
	for _, other := range answer.Assignments[0].Neighbours {
		o := w.nodes[w.index[other.ID]]
		if n.links[o.i] != nil || n.dialing[o.i] {
			continue
		}
		n.dialing[o.i] = true
		// The answer, a connection and its handshake take a round trip each.
		w.at(w.now+6*w.Latency, func() { w.connect(n, o) })
	}
}

func (w *world) connect(a, b *node) {
	delete(a.dialing, b.i)
	if a.dead || b.dead || a.links[b.i] != nil || a.done && b.done {
		return
	}
	pairs := [2][2]*node{{a, b}, {b, a}}
	for _, pair := range pairs {
		n, o := pair[0], pair[1]
		n.links[o.i] = &link{to: o}
		n.order = append(n.order, n.links[o.i])
	}
	for _, pair := range pairs {
		n, o := pair[0], pair[1]
		l := n.links[o.i]
		have := o.pick.Have().Clone() // as its bitfield lists them
		n.pick.Join(picker.Neighbour(o.i), o.seed)
		n.pick.Put(picker.Neighbour(o.i), place(n, o))
		w.say(o, n, func() {
			for i := range piece.Index(w.K) {
				if have.Has(i) {
					l.announced++
					n.pick.Has(picker.Neighbour(o.i), i)
				}
			}
		})
	}
}

// place returns the place of o for n.
func place(n, o *node) picker.Place {
	return picker.Place{Afar: n.host.Zone != o.host.Zone, Gateway: !o.local && !o.seed, ID: o.host.ID}
}

// die removes a node; the connections of its neighbours break.
func (w *world) die(n *node) {
	if n.done {
		return // it has finished; its end as a source is not simulated
	}
	n.dead = true
	w.left--
	for _, l := range n.order {
		o := l.to
		w.at(w.now+w.Latency, func() { w.part(o, n) })
	}
}

// part removes one side of a connection.
func (w *world) part(n, gone *node) {
	l := n.links[gone.i]
	if l == nil {
		return
	}
	delete(n.links, gone.i)
	n.order = slices.DeleteFunc(n.order, func(o *link) bool { return o == l })
	n.pick.Leave(picker.Neighbour(gone.i))
	for _, j := range slices.Clone(n.jobs) {
		if j.to == gone && !j.begun {
			w.end(j)
		}
	}
	w.look(n)
}

// readOn advances an in-order reader.
func (w *world) readOn(n *node) {
	if i := n.pick.Have().NextMissing(n.prefix); i != n.prefix {
		if n.prefix == 0 {
			w.out.FirstPiece = append(w.out.FirstPiece, w.now-n.started)
		}
		if half := piece.Index(w.K / 2); n.prefix < half && i >= half {
			w.out.Half = append(w.out.Half, w.now-n.started)
		}
		n.prefix, n.since = i, w.now
	}
}

// look sends all requests that are useful now, as an engine's loop does after every event.
func (w *world) look(n *node) {
	if n.dead || n.done || n.seed {
		return
	}
	now := w.clock()
	w.readOn(n)
	if w.now-n.since > time.Second {
		n.pick.Urgent([]piece.Index{n.prefix})
	} else {
		n.pick.Urgent(nil)
	}
	for {
		r, ok := n.pick.Next(now)
		if !ok {
			break
		}
		o := w.nodes[r.From]
		l := n.links[o.i]
		in := &asked{piece: r.Piece, any: r.Any}
		l.pending = append(l.pending, in)
		if r.Any {
			in.piece = -1
			r.Exclude = slices.Clone(r.Exclude)
			w.say(n, o, func() { w.serveAny(o, n, r) })
		} else {
			w.say(n, o, func() { w.serve(o, n, r.Piece) })
		}
		n.pick.Requested(r)
	}
	if t := n.pick.NextFree(now); !t.IsZero() {
		wake := max(t.Sub(w.epoch), w.now+time.Millisecond)
		if n.wake <= w.now || wake < n.wake {
			n.wake = wake
			w.at(wake, func() { w.look(n) })
		}
	}
	if n.pick.Starving() && w.now >= n.since+n.starveDelay {
		n.starveDelay = min(2*n.starveDelay, time.Second)
		seeds := false
		for _, l := range n.order {
			seeds = seeds || l.to.seed
		}
		if !seeds {
			w.announce(n, scheduler.Starving)
		}
	}
}

// settle ends the oldest request of n to o that matches.
func settle(l *link, match func(*asked) bool) *asked {
	at := slices.IndexFunc(l.pending, match)
	if at < 0 {
		return nil
	}
	in := l.pending[at]
	l.pending = slices.Delete(l.pending, at, at+1)
	return in
}

// busy refuses a request.
func (w *world) busy(o, n *node, i piece.Index, delay moment) {
	w.say(o, n, func() {
		in := settle(n.links[o.i], func(in *asked) bool { return in.piece == i })
		if in == nil || in.drop {
			return
		}
		w.out.Busy++
		if in.any {
			n.pick.Refused(picker.Neighbour(o.i))
		} else {
			n.pick.Ended(picker.Neighbour(o.i), i)
		}
		back := moment((w.BackOff + 2*w.BackOff*w.rng.Float64()) * float64(n.pieceTime))
		back = max(time.Millisecond, min(back, 250*time.Millisecond))
		n.pick.Busy(picker.Neighbour(o.i), w.clock().Add(max(back, delay)))
	})
}

func (w *world) serve(o, n *node, i piece.Index) {
	if !o.lane(n).slots.TryAcquire("", n) && !w.displace(o, n) {
		w.busy(o, n, i, 0)
		return
	}
	w.begin(&job{from: o, to: n, piece: i})
}

// displace removes a waiting request in favour of n, as the engine does.
func (w *world) displace(o, n *node) bool {
	if o.seed || w.Turns != LeastFirst || w.HeadStart < 0 {
		return false
	}
	worst, _ := o.lane(n).line.Displace("", o.links[n.i].announced+w.HeadStart).(*job)
	if worst == nil {
		return false
	}
	w.end(worst)
	w.busy(o, worst.to, worst.piece, 0)
	return o.lane(n).slots.TryAcquire("", n)
}

func (w *world) serveAny(o, n *node, r picker.Request) {
	if !o.lane(n).slots.TryAcquire("", n) {
		w.busy(o, n, -1, 0)
		return
	}
	i, ok := o.spread.Pick(o.pick.Have(), n.pick.Have(), r.Exclude, r.SeedsOnly)
	if !ok {
		o.lane(n).slots.Release("", n)
		w.busy(o, n, -1, max(time.Millisecond, min(o.pieceTime, 250*time.Millisecond)))
		return
	}
	w.say(o, n, func() {
		in := n.links[o.i].pending
		at := slices.IndexFunc(in, func(in *asked) bool { return in.piece < 0 })
		if at < 0 {
			return
		}
		in[at].piece, in[at].any = i, false
		known := n.pick.Have().Has(i) || n.pick.InFlight(i)
		n.pick.Chosen(picker.Neighbour(o.i), i)
		if known {
			w.drop(n, n.links[o.i], i)
		}
	})
	w.begin(&job{from: o, to: n, piece: i})
}

func (w *world) begin(j *job) {
	j.left = chunks
	if j.from.host.Zone == j.to.host.Zone {
		j.from.spread.Sent(j.piece)
	}
	j.from.jobs = append(j.from.jobs, j)
	if j.from.lane(j.to).line.Take("", w.rank(j), j, func() { w.send(j) }) {
		w.send(j)
	}
}

// rank returns the rank of a job in the send queue.
func (w *world) rank(j *job) int {
	switch w.Turns {
	case FirstCome:
		return 0
	case Rarest:
		copies := 0
		for _, l := range j.from.order {
			if l.to.pick.Have().Has(j.piece) {
				copies++
			}
		}
		return copies
	}
	return j.from.links[j.to.i].announced
}

// send sends the next chunk of a job that has its turn.
func (w *world) send(j *job) {
	if !j.begun {
		if j.dropped { // cancelled while it waited for its turn
			j.from.lane(j.to).line.Give()
			return
		}
		j.begun, j.since = true, w.now
		j.link = j.from.links[j.to.i]
		j.link.sending++
	}
	o, n := j.from, j.to
	at := o.up.pass(1.0/chunks, w.now)
	if o.host.Zone != n.host.Zone {
		a, b := &w.zones[zoneOf(o)], &w.zones[zoneOf(n)]
		at = max(at, a.up.pass(1.0/chunks, w.now), b.down.pass(1.0/chunks, w.now))
	}
	w.at(at, func() {
		arrives := n.down.pass(1.0/chunks, w.now+w.Latency)
		if j.left--; j.left > 0 {
			w.send(j)
			return
		}
		if o.dead {
			return
		}
		w.at(arrives, func() { w.arrived(n, o, j.piece, j.since+w.Latency) })
		w.release(j.link, arrives)
		w.finish(j)
	})
}

func afarShare(slots int) int { return max(1, slots/3) }

func zoneOf(n *node) (z int) {
	fmt.Sscan(n.host.Zone, &z)
	return z
}

// finish releases a job's turn and slot.
func (w *world) finish(j *job) {
	j.from.jobs = slices.DeleteFunc(j.from.jobs, func(o *job) bool { return o == j })
	j.from.lane(j.to).slots.Release("", j.to)
	j.from.lane(j.to).line.Give()
}

// end cancels a waiting job; its turn passes when it comes.
func (w *world) end(j *job) {
	j.dropped = true
	j.from.jobs = slices.DeleteFunc(j.from.jobs, func(o *job) bool { return o == j })
	j.from.lane(j.to).slots.Release("", j.to)
	if j.from.host.Zone == j.to.host.Zone {
		j.from.spread.Unsent(j.piece)
	}
}

// drop cancels the request for a piece that another neighbour sends or has sent.
func (w *world) drop(n *node, l *link, i piece.Index) {
	at := slices.IndexFunc(l.pending, func(in *asked) bool { return in.piece == i && !in.drop })
	if at < 0 {
		return
	}
	in := l.pending[at]
	in.drop = true
	o := l.to
	n.pick.Ended(picker.Neighbour(o.i), i)
	w.say(n, o, func() {
		for _, j := range o.jobs {
			if j.to == n && j.piece == i && !j.begun && !j.dropped {
				w.end(j)
				w.say(o, n, func() { settle(n.links[o.i], func(other *asked) bool { return other == in }) })
				return
			}
		}
	})
}

// arrived records a received piece.
func (w *world) arrived(n, from *node, i piece.Index, begun moment) {
	l := n.links[from.i]
	if n.dead || l == nil {
		return
	}
	in := settle(l, func(in *asked) bool { return in.piece == i })
	if in == nil || in.drop {
		w.out.Wasted++
		w.look(n)
		return
	}
	if !n.pick.Have().Has(i) {
		n.pick.Received(picker.Neighbour(from.i), i, w.epoch.Add(begun), w.clock())
	}
	n.pick.Ended(picker.Neighbour(from.i), i)
	if n.pick.Have().Has(i) {
		w.out.Wasted++
		w.look(n)
		return
	}
	n.pick.Stored(i)
	w.readOn(n)
	at := int(w.now / (32 * w.PieceTime))
	for len(w.out.Rate) <= at {
		w.out.Rate = append(w.out.Rate, 0)
	}
	w.out.Rate[at] += 1.0 / 32 / float64(w.N)
	n.starveDelay = 100 * time.Millisecond
	if n.lastGot > 0 {
		n.pieceTime += (min(w.now-n.lastGot, 250*time.Millisecond) - n.pieceTime) / 8
	}
	n.lastGot = w.now
	for _, other := range n.order {
		w.drop(n, other, i)
	}
	w.publish(n, i)
	if n.pick.Have().Full() {
		n.done = true
		w.left--
		w.out.Took = append(w.out.Took, w.now-n.started)
		w.out.Makespan = max(w.out.Makespan, w.now)
		w.announce(n, scheduler.Completed)
		return
	}
	w.look(n)
}

// publish announces a piece to every neighbour. One event serves all idle connections, so that ten thousand nodes can
// be simulated in a reasonable time.
func (w *world) publish(n *node, i piece.Index) {
	soon := w.soon()
	var idle []*node
	// In random order: otherwise the oldest neighbour would always get the slot.
	first := w.rng.IntN(len(n.order) + 1)
	for k := range n.order {
		l := n.order[(first+k)%len(n.order)]
		switch o := l.to; {
		case o.links[n.i] == nil || o.dead:
		case l.sending == 0 && l.arrives <= soon:
			idle = append(idle, o)
		default:
			w.utter(n, o, func() { w.learn(o, n, i) })
		}
	}
	w.at(soon, func() {
		for _, o := range idle {
			w.learn(o, n, i)
		}
	})
}

// learn records that a neighbour has a piece.
func (w *world) learn(o, n *node, i piece.Index) {
	back := o.links[n.i]
	if back == nil || o.dead {
		return
	}
	back.announced++
	if !o.pick.Have().Has(i) {
		o.pick.Has(picker.Neighbour(n.i), i)
		if o.pick.Outstanding() < w.requestsMax() {
			w.look(o)
		}
	}
}

// requestsMax is the picker's own bound; a node with so many requests in flight need not run look.
func (w *world) requestsMax() int {
	if w.Picker.RequestsMax > 0 {
		return w.Picker.RequestsMax
	}
	return picker.RequestsMaxDefault
}
