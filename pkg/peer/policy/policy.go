// Package policy decides for one download when to announce and what, when to ask the origin, when it
// starves, when it gives up and when it is no longer needed.
//
// A Policy is pure: it has no clock, goroutine, socket or lock. Time and the state of the download are
// arguments, and the same calls lead to the same decisions; testdata holds them as text. One download's
// loop owns it. Start at [Policy.Announce] and [Policy.Origin]; a [View] is their argument.
package policy

import "time"

const (
	// starveFirst and starveMax bound the pause before a download without a source asks its owner again.
	starveFirst = 100 * time.Millisecond
	starveMax   = time.Second
	// windowFirst is the pause before a window that a reader waits for is announced again.
	windowFirst = 100 * time.Millisecond
	// quiet is how long no neighbour must have announced a piece before the download expects none from
	// neighbours.
	quiet = time.Second
	// lonelyMax is how long a download waits for a host with useful pieces before it gives up.
	lonelyMax = 8 * time.Second
	// restFor is the pause before the download asks an unwanted origin again, unless a reader wants more
	// pieces. It prevents endless requests to an origin that cannot help.
	restFor = 250 * time.Millisecond
	// rankPause is how long each host in the order of hosts has to ask the origin for all of them, before the
	// next one may. The host that asks announces itself as a seed, and the others wait for it.
	rankPause = 1500 * time.Millisecond
	// usefulFor is how long the reader of the origin for which this host stopped may bring no piece, before the next
	// host in the order reads as well.
	usefulFor = 3 * time.Second
	// ranksFirst is how many hosts in the order may read in addition to one that brings nothing; the others do after
	// further ranksPause. Each of the first ones may have no reader, or no way to the origin.
	ranksFirst = 3
	ranksPause = 10 * time.Second
	// stopsMax bounds how often a download stops for another host: a member may say that it reads the origin, and bring
	// nothing.
	stopsMax = 4
)

// RefusalsMax bounds how many refusals in a row for other credentials a caller ignores.
const RefusalsMax = 4

// Interest is what callers on this host want of a download.
type Interest int

const (
	// Nothing is wanted: the download was begun for a peer, serves what is stored and announces nothing.
	Nothing Interest = iota
	// Ranges are wanted: those that readers read.
	Ranges
	// Everything is wanted, with a reader or without: an owner or a preheat asked for it.
	Everything
)

// Phase is how much of the blob is here.
type Phase int

const (
	// Unknown is the phase before the metadata is known: neither length nor piece size.
	Unknown Phase = iota
	// Partial is the phase in which pieces are missing.
	Partial
	// Complete is the phase in which every piece is stored. A piece that the disk loses ends it.
	Complete
)

// Permission is whether this host may ask the origin. Owners' replies and callers change it: see
// [Policy.Assigned] and [Policy.Wanted].
type Permission int

const (
	// Denied: no owner has named this host as a seed.
	Denied Permission = iota
	// Disputed: hosts disagree about who owns the task: the owner thinks that another host does, and the
	// other may think the same of a third. This host does not ask yet.
	Disputed
	// StandIn: as Disputed, and a caller wants everything. This host asks if it is its turn in the order
	// of hosts and no neighbour announced a piece for a while.
	StandIn
	// Allowed: an owner named this host as a seed. It asks if it is its turn in the order of hosts.
	Allowed
	// Leading: an owner named this host as a seed, and other hosts ask it whom to talk to. It asks at once.
	Leading
)

// Reading is what this host does at the origin.
type Reading int

const (
	// Idle: the origin was not asked, or its last request has ended.
	Idle Reading = iota
	// Running: the origin's body is read. This host is a seed meanwhile.
	Running
	// GaveUp: the origin failed for good, and the download ends because of it. This host counts as a seed
	// until then, so that its neighbours and the observer hear the reason.
	GaveUp
)

// announced is the last announced event that changes what the owner believes of this host.
type announced int

const (
	announcedNothing announced = iota
	announcedStarted
	announcedCompleted
)

// Event is the kind of an announce.
type Event int

// The events of an [Announcement].
const (
	Started Event = iota
	Progress
	Starving
	Completed
)

// Announcement is what to announce now.
type Announcement struct {
	Event Event
	// Need is how many more neighbours the download wants named.
	Need int
	// Spec means that the owner needs to know how to ask the origin.
	Spec bool
}

// OriginStep is what to do about the origin.
type OriginStep int

const (
	// Leave leaves the origin as it is.
	Leave OriginStep = iota
	// Ask makes the origin a parent of the download.
	Ask
	// Stop ends the reading of the origin, because no client and no peer has wanted a piece for a while.
	Stop
)

// Config are the settings of a [Policy].
type Config struct {
	// Neighbours is how many connections a download tries to keep.
	Neighbours int
	// ProgressInterval is how often a download that waits for pieces announces.
	ProgressInterval time.Duration
	// Linger is how long a download stays without a reader.
	Linger time.Duration
	// Origin means that this host can ask origins.
	Origin bool
	// Seed means that this host is there to serve, as a supernode is.
	Seed bool
}

// View is what the loop sees of its download at one turn.
type View struct {
	Interest Interest
	Phase    Phase
	// Signed means that coordinators' signatures cover every piece. Cached means that everything was here
	// when the download began.
	Signed, Cached bool
	// Wants means that a wanted piece is missing. Hungry means that in addition no request is on its way
	// and no neighbour has a piece to ask for. Both are false in the phase Unknown.
	Wants, Hungry bool
	// Waits says that a reader waits for a window that no neighbour has, and that the owner may hear of.
	Waits bool
	// Ranges is how many ranges are wanted, those of readers that left a moment ago included.
	Ranges int
	// Conns is how many connections are open, Hellos how many of them sent a Hello, Seeds how many of
	// those are seeds. Dialing is how many connections are on their way.
	Conns, Hellos, Seeds, Dialing int
	// Checking is how many stored pieces are read to compare them with their digests.
	Checking int
	// Yielding means that the download gives up its space for another one.
	Yielding bool
	// OwnerFailed means that the last announce failed.
	OwnerFailed bool
	// LastHave is when a neighbour last announced a piece, LastPiece when this host last got one, LastUse when the
	// download was last of use.
	LastHave, LastPiece, LastUse time.Time
	// Held reports whether a caller has the download open. Rank is how many neighbours come before this
	// host in the order in which hosts stand in for a lost owner. Both are called only where the
	// decision depends on them.
	Held func() bool
	Rank func() int
	// Outranked reports whether a live neighbour reads the origin that comes before this host in the same order, or
	// does it for all hosts; nil: none does.
	Outranked func() bool
}

// active reports whether the download waits for pieces.
func (v View) active() bool { return v.Phase != Complete && (v.Phase == Unknown || v.Wants) }

// Policy decides for one download, and holds what it decided before.
type Policy struct {
	cfg Config

	announced    announced
	announcing   bool // an announce is on its way
	nextProgress time.Time
	nextStarving time.Time
	starveDelay  time.Duration
	nextWindow   time.Time
	windowDelay  time.Duration

	permission Permission
	since      time.Time // of the permission to ask the origin
	reading    Reading
	attested   bool      // the origin was asked to vouch for a blob that is complete
	rests      time.Time // until then the origin is not asked
	seeded     time.Time // when a neighbour was last a seed
	stopped    time.Time // when this host stopped reading because another one goes on; zero: never
	stops      int       // how often it did
	sent       bool      // an owner sent this host to the origin in its place

	lonelySince time.Time
	refusals    int // of seeds, meant for other credentials
}

// New returns the policy of a download that begins.
func New(cfg Config) *Policy { return &Policy{cfg: cfg, starveDelay: starveFirst} }

// Permission returns whether this host may ask the origin.
func (p *Policy) Permission() Permission { return p.permission }

// Reading returns what this host does at the origin.
func (p *Policy) Reading() Reading { return p.reading }

// AtOrigin reports whether this host reads the origin, or has just given up on it.
func (p *Policy) AtOrigin() bool { return p.reading != Idle }

// Announcing reports whether an announce is on its way.
func (p *Policy) Announcing() bool { return p.announcing }

// Announce decides what to announce now, if anything; the announce is then on its way until
// [Policy.Replied].
func (p *Policy) Announce(now time.Time, v View) (a Announcement, ok bool) {
	if !v.Waits {
		p.windowDelay, p.nextWindow = 0, time.Time{}
	}
	if p.announcing || v.Interest == Nothing {
		return a, false
	}
	switch {
	case v.Phase == Complete:
		if p.announced == announcedCompleted || !v.Signed || v.Cached {
			return a, false
		}
		p.announced = announcedCompleted
		a.Event = Completed
	case p.announced == announcedNothing:
		p.announced = announcedStarted
		a.Event = Started
	case p.starves(now, v) && !now.Before(p.nextStarving):
		a.Event = Starving
		p.nextStarving = now.Add(p.starveDelay)
		p.starveDelay = min(2*p.starveDelay, starveMax)
	case v.active() && !now.Before(p.nextProgress), v.Waits && !now.Before(p.nextWindow):
		a.Event = Progress
	default:
		return a, false
	}
	a.Spec = a.Event == Started || a.Event == Starving
	switch {
	case a.Event == Completed:
	case a.Event == Started:
		// Every host is also named to others: asking for half the mesh makes all of it.
		a.Need = (p.cfg.Neighbours + 4) / 2
	default:
		a.Need = max(0, p.cfg.Neighbours-v.Conns-v.Dialing)
	}
	if v.Waits {
		p.windowDelay = min(max(windowFirst, 2*p.windowDelay), p.cfg.ProgressInterval)
		p.nextWindow = now.Add(p.windowDelay)
	}
	p.nextProgress = now.Add(p.cfg.ProgressInterval)
	p.announcing = true
	return a, true
}

// Replied ends the announce that is on its way.
func (p *Policy) Replied() { p.announcing = false }

// starves reports whether pieces are wanted and no neighbour can bring them.
func (p *Policy) starves(now time.Time, v View) bool {
	if p.reading != Idle || !v.active() || v.Dialing > 0 || v.Seeds > 0 || v.Hellos < v.Conns {
		return false
	}
	// A seed that has nothing new waits for its origin, and whose neighbours still get pieces will have
	// some of them: asking the owner brings nothing. Where no neighbour is left, there is nothing to wait for.
	return v.Phase == Unknown || v.Hungry && (v.Conns == 0 || now.Sub(v.LastHave) > quiet)
}

// GotPiece records that a piece arrived: the next time that the download starves, it asks its owner soon.
func (p *Policy) GotPiece() { p.starveDelay = starveFirst }

// LostPiece records that the disk lost a piece: the download announces its completion again later.
func (p *Policy) LostPiece() {
	if p.announced == announcedCompleted {
		p.announced = announcedStarted
	}
}

// Assigned records an owner's reply: seed means that this host may ask the origin, leading that other
// hosts ask this host whom to talk to, elsewhere that the owner thinks another host owns the task.
func (p *Policy) Assigned(now time.Time, v View, seed, leading, elsewhere bool) {
	switch {
	case !p.cfg.Origin:
	case seed && leading:
		p.permit(now, Leading)
	case seed:
		p.permit(now, Allowed)
		p.sent = elsewhere
	case elsewhere && p.permission == Leading:
		// Owners answer again, so no other host asks this one: what it reads, it reads for itself.
		p.permit(now, Allowed)
		p.sent = false
	case elsewhere && p.permission < StandIn && v.Interest == Everything:
		p.permit(now, StandIn)
	case elsewhere && p.permission < StandIn:
		p.permit(now, Disputed)
	}
}

// Listen has the download hear first what others have, before it asks the origin for what they may have.
func (p *Policy) Listen(now time.Time) { p.rests = now.Add(restFor) }

// Wanted records that a caller wants all pieces from now on. Where hosts disagree about who owns the
// task, each may be sent on to the next, after a supernode was restarted, say: without this all of
// them would wait.
func (p *Policy) Wanted(now time.Time) {
	if p.permission == Disputed {
		p.permit(now, StandIn)
	}
}

// permit changes the permission to ask the origin. It counts from when this host first had one.
func (p *Policy) permit(now time.Time, to Permission) {
	if p.permission < StandIn && to >= StandIn {
		p.since = now
	}
	p.permission = to
}

// WantsChanged records that the wanted pieces changed: the download may ask the origin for them.
func (p *Policy) WantsChanged() { p.rests = time.Time{} }

// Origin decides what to do about the origin. The download stops reading it when no client and no peer has
// wanted a piece for a while, also in the middle of a body that hangs. It asks the origin if an owner
// ordered it and no other host has the wanted pieces. While a neighbour has more, it does not ask, so that
// an owner that takes over, or a host that lost its owners, asks only for pieces that no live host has. The
// caller carries out the decision, and reports it: [Policy.OriginBegun], [Policy.OriginEnded].
func (p *Policy) Origin(now time.Time, v View) OriginStep {
	if v.Seeds > 0 {
		p.seeded = now
	}
	switch {
	case p.reading != Idle:
		if v.Interest != Everything && v.Ranges == 0 && now.Sub(v.LastUse) > p.cfg.Linger && !v.Held() {
			return Stop
		}
		// No owner answered, and others that found the same read the same pieces: one of them goes on for all.
		if v.Interest != Everything && v.Phase == Partial && p.permission == Allowed && p.reading == Running &&
			p.stops < stopsMax && v.Outranked != nil && v.Outranked() {
			p.stopped = now
			p.stops++
			return Stop
		}
	case v.Phase == Complete:
		// A seed holds all pieces, but no digest run proves them: they came in an owner's reply, or a crash
		// lost the last runs.
		if v.Interest == Everything && !p.attested && !v.Signed && p.cfg.Origin {
			p.attested = true
			return Ask
		}
	case p.permission >= StandIn && p.onlyOrigin(now, v):
		return Ask
	}
	return Leave
}

// onlyOrigin reports whether only the origin has the wanted pieces. If the metadata are unknown, it is true
// at once.
func (p *Policy) onlyOrigin(now time.Time, v View) bool {
	if v.Phase != Unknown && (v.Dialing > 0 || !v.Hungry) || now.Before(p.rests) {
		return false
	}
	if v.Seeds > 0 && v.Interest != Everything && !p.cfg.Seed {
		return p.deserted(now, v) // otherwise the seed is about to send the pieces
	}
	switch {
	case p.permission == StandIn:
		// Whom the owner has in mind may bring it yet, or wait in turn for this host.
		since := p.since
		if v.LastHave.After(since) {
			since = v.LastHave
		}
		return v.Dialing == 0 && !now.Before(since.Add(time.Duration(1+v.Rank())*rankPause))
	case v.Interest == Everything || p.permission == Leading:
		return true
	}
	// After the seed is gone, all hosts that waited for it begin with this order at the same moment.
	since := p.since
	if !p.sent && p.seeded.After(since) {
		since = p.seeded
	}
	return !now.Before(since.Add(time.Duration(v.Rank()) * rankPause))
}

// deserted reports whether this host stopped reading the origin for a seed that brings nothing now, and reads again:
// the seed's own way to the origin may hang, which only the seed can find out, and only after a while.
// Announced pieces do not count: a member may announce some that it never sends.
func (p *Policy) deserted(now time.Time, v View) bool {
	since := p.stopped
	if v.LastPiece.After(since) {
		since = v.LastPiece
	}
	if p.stopped.IsZero() || p.permission != Allowed || now.Sub(since) < usefulFor {
		return false
	}
	rank := v.Rank()
	wait := usefulFor + time.Duration(rank)*rankPause
	if rank >= ranksFirst {
		wait += ranksPause
	}
	return !now.Before(since.Add(wait))
}

// OriginBegun records that the download reads the origin's body from now on.
func (p *Policy) OriginBegun() { p.reading = Running }

// OriginEnd is how the reading of an origin ended.
type OriginEnd int

const (
	// Ended: it brought what was wanted, or the download ends for a reason of its own.
	Ended OriginEnd = iota
	// Unwanted: nothing more was wanted.
	Unwanted
	// PeersGoOn: it failed, and neighbours have pieces that are missing here.
	PeersGoOn
	// Failed: it failed, and the download ends because of it.
	Failed
)

// OriginEnded records how the reading of the origin ended.
func (p *Policy) OriginEnded(now time.Time, how OriginEnd) {
	p.reading = Idle
	switch how {
	case Ended:
	case Unwanted:
		p.rests = now.Add(restFor)
	case PeersGoOn:
		if p.permission == StandIn {
			p.permit(now, Disputed)
		} else {
			p.permit(now, Denied)
		}
	case Failed:
		p.reading = GaveUp
	}
}

// OwnerRefused reports whether the download ends because of a refusal that its owner passed on.
// personal means that the refusal is about credentials, hopeful that a neighbour may have what is
// missing, or bring it.
func (p *Policy) OwnerRefused(v View, personal bool, hopeful func() bool) bool {
	return v.Phase != Complete && p.reading == Idle && (v.Conns == 0 || personal && !hopeful())
}

// SeedRefused records that a seed gave up because of other credentials, and reports whether the
// download gives up. Else it starves at once: the owner knows whose credentials they were.
func (p *Policy) SeedRefused(v View) (giveUp bool) {
	if p.refusals++; p.refusals >= RefusalsMax && v.Interest != Everything {
		return true
	}
	p.nextStarving = time.Time{}
	return false
}

// GiveUp reports whether for too long no host here could help, and no owner either names one that
// could. While an owner answers and neighbours are there the download waits: the origin may just be
// slow, and this host far from the seed.
func (p *Policy) GiveUp(now time.Time, v View) bool {
	helpful := p.reading != Idle || v.Phase != Unknown && !v.Hungry || v.Seeds > 0 || v.Hellos > 0 && !v.OwnerFailed
	switch {
	case helpful || !v.active() || v.Interest == Nothing:
		p.lonelySince = time.Time{}
	case p.lonelySince.IsZero():
		p.lonelySince = now
	default:
		return now.Sub(p.lonelySince) > lonelyMax
	}
	return false
}

// Excuse takes the time for which this host did not run from what it waited for others.
func (p *Policy) Excuse(now time.Time, stall time.Duration) {
	for _, since := range []*time.Time{&p.lonelySince, &p.since, &p.seeded, &p.stopped} {
		*since = Later(now, *since, stall)
	}
}

// Later is a time that is later by stall, and now at the latest; zero stays zero.
func Later(now, since time.Time, stall time.Duration) time.Time {
	switch later := since.Add(stall); {
	case since.IsZero():
		return since
	case later.Before(now):
		return later
	}
	return now
}

// Over reports whether the download is no longer needed in memory.
func (p *Policy) Over(now time.Time, v View) bool {
	switch {
	case v.Conns > 0 || v.Dialing > 0 || v.Checking > 0 || v.Ranges > 0 || p.announcing || p.reading != Idle:
		return false
	case v.Phase != Complete:
		return v.Interest != Everything && (v.Yielding || now.Sub(v.LastUse) > p.cfg.Linger)
	}
	unreported := v.Interest != Nothing && p.announced != announcedCompleted && v.Signed && !v.Cached
	return !unreported
}

// Wake returns the first of its times after now at which the policy may decide otherwise, or until
// where none is before it.
func (p *Policy) Wake(now, until time.Time, phase Phase) time.Time {
	if phase == Complete {
		return until
	}
	for _, t := range []time.Time{p.nextStarving, p.nextProgress, p.nextWindow} {
		if t.After(now) && t.Before(until) {
			until = t
		}
	}
	return until
}
