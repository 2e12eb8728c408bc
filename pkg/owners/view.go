package owners

import (
	"maps"
	"slices"
	"time"

	"github.com/darter-io/darter/pkg/rendezvous"
)

const (
	// DeadAfter is how long an owner fails before the owners behind it in each task's order
	// need this host's inventory.
	DeadAfter = 10 * time.Second
	// DoubtedFor is how long an owner that fell silent may still get lookups, if no other one answers.
	DoubtedFor = time.Second
	// joinedAfter is how long after its first reply from an owner a host counts as a member of the cluster: owners that
	// start together have answered all hosts by then.
	joinedAfter = 5 * time.Second
	// RetryMin and RetryMax bound the time between two heartbeats to an owner that fails.
	RetryMin, RetryMax = 500 * time.Millisecond, 4 * time.Second
)

// State is what this host knows about an owner. Only [View.Apply] and time change it.
type State uint8

const (
	// Untried owners have answered nothing yet and failed nothing yet. Requests go to them as
	// to live ones.
	Untried State = iota
	// Alive owners answered the last announce.
	Alive
	// Suspected owners failed the last announce. Requests try the others first; heartbeats find
	// out whether the owner is back.
	Suspected
	// Lost owners refuse connections, have a wrong clock, or have failed for Patience. Requests pass over them where
	// the host has a last resort.
	Lost
	// Dead owners are lost and have failed for [DeadAfter]: the owners behind them have been
	// sent what this host holds.
	Dead
)

// String is the state in words, for logs and tests.
func (s State) String() string {
	return [...]string{"untried", "alive", "suspected", "lost", "dead"}[min(s, Dead)]
}

// answers reports whether requests go to an owner in this state first.
func (s State) answers() bool { return s <= Alive }

// Lead is which hosts lead tasks. Only [View.Apply] changes it.
type Lead uint8

const (
	// OwnersLead is the normal case: at least one owner may still answer.
	OwnersLead Lead = iota
	// StandbysLead holds from when all owners were lost until one of them answers an announce.
	StandbysLead
)

// Cause is why an owner fails.
type Cause uint8

const (
	// Silence is no reply in time, a broken connection or a wrong reply.
	Silence Cause = iota
	// Refusal is a host or network that reports that nothing listens there.
	Refusal
	// Clock is an owner whose clock is too far from this host's: TLS between them fails.
	Clock
)

// Config is what a View begins with.
type Config struct {
	// Self is the address at which this host itself takes announces; empty where it takes none.
	Self string
	// LastResort means that the host has a coordinator of its own for tasks that no other host leads.
	LastResort bool
	// Owners are the configured addresses (host:port). They are never forgotten.
	Owners []string
	// Standbys are the addresses that owners named before the host's last restart.
	Standbys []string
	// Patience is how long silent owners are tried before standbys, or the last resort, lead.
	// Where standbys can be called, three quarters of it do: a wrong guess then costs one more
	// copy from the origin instead of one for each host.
	Patience time.Duration
	// Budget is how long one owner may take to answer while another can be asked instead.
	Budget time.Duration
}

// View is what one host knows about the owners of all tasks. It is a value without clock or
// lock: the caller passes the time and serialises the calls.
type View struct {
	cfg Config
	// listed are the owners that an owner's last reply listed, sorted.
	listed []string
	// standbys are the hosts that owners named last, sorted. This host may be one. named are the last ones of an owner
	// that had heard of all hosts; settled means that it was in this life of the host.
	standbys, named []string
	settled         bool
	// metAt is when an owner answered this host for the first time.
	metAt time.Time
	lead  Lead
	// members are the owners and, while they lead, the standbys, without this host.
	members map[string]*member
}

// member is one owner or standby.
type member struct {
	addr    string
	standby bool
	// met means that it has answered an announce.
	met bool
	// listsItself means that its last list of live owners held its own address. A configured address can also be an
	// alias, such as a name with the addresses of all owners.
	listsItself bool
	// outage is nil while it answers.
	outage *outage
}

// outage is an unbroken series of failures.
type outage struct {
	since time.Time
	cause Cause // of the last failure
	err   error // the last failure
	retry time.Duration
	// dead means that the owner was declared dead: the owners behind it were sent the host's inventory.
	dead bool
}

// New returns a View in which no owner has been tried.
func New(cfg Config) *View {
	v := &View{
		cfg:      cfg,
		listed:   slices.Compact(slices.Sorted(slices.Values(cfg.Owners))),
		standbys: slices.Clone(cfg.Standbys), named: slices.Clone(cfg.Standbys),
		members: make(map[string]*member),
	}
	for _, addr := range cfg.Owners {
		if !v.isSelf(addr) {
			v.members[addr] = &member{addr: addr}
		}
	}
	return v
}

// An Event is something that a host learns about owners: [Replied], [Failed], [Refused] or
// [NoneAnswered].
type Event interface{ isEvent() }

type (
	// Replied is an owner's reply to an announce.
	Replied struct {
		From string
		// Owners are all live owners, sorted; empty: the owner did not say.
		Owners []string
		// Standbys are the hosts that lead while no owner answers, sorted; empty: the owner did
		// not say.
		Standbys []string
		// Early are the same of an owner that has just started; they count while no other owner named any.
		Early []string
	}
	// Failed is an announce that an owner did not answer, or answered wrongly.
	Failed struct {
		From  string
		Cause Cause
		Err   error
	}
	// Refused is a refused connection of another request than an announce.
	Refused struct {
		From  string
		Cause Cause // Refusal or Clock
		Err   error
	}
	// NoneAnswered is a request that no owner answered for as long as it may wait.
	NoneAnswered struct{}
)

func (Replied) isEvent()      {}
func (Failed) isEvent()       {}
func (Refused) isEvent()      {}
func (NoneAnswered) isEvent() {}

// Changes is what an event changed. The caller acts on it and logs it.
type Changes struct {
	// Joined are owners to announce to from now on, Left those to announce to no more. Left
	// comes first: an address in both is a standby that became an owner.
	Joined, Left []string
	// Called means that standbys lead from now on.
	Called bool
	// Standbys are those that owners name now, where they changed and are not early; otherwise nil.
	Standbys []string
	// Suspected means that the owner began to fail, or that the cause is its clock now.
	Suspected bool
	// Died means that the owner has failed for [DeadAfter]: the others need the host's inventory.
	Died bool
	// Retry is when to try the owner that failed again.
	Retry time.Duration
	// Outage is for how long the owner that answers again had failed; otherwise 0.
	Outage time.Duration
}

// Apply applies an event; it is the only way in which a View changes. An event of an owner that
// left changes nothing.
func (v *View) Apply(now time.Time, e Event) (c Changes) {
	switch e := e.(type) {
	case Replied:
		m := v.members[e.From]
		if m == nil {
			break
		}
		if m.outage != nil {
			c.Outage = max(now.Sub(m.outage.since), 1)
		}
		m.met, m.outage = true, nil
		if v.metAt.IsZero() {
			v.metAt = now
		}
		if len(e.Owners) > 0 {
			m.listsItself = slices.Contains(e.Owners, m.addr)
		}
		// A standby knows the few hosts that announced to it so far, so its lists are no news.
		if !m.standby {
			v.dismissStandbys(&c)
			v.list(e.Owners, &c)
			switch {
			case len(e.Standbys) > 0:
				if !slices.Equal(e.Standbys, v.named) {
					c.Standbys = e.Standbys
				}
				v.standbys, v.named, v.settled = e.Standbys, e.Standbys, true
			case len(e.Early) > 0 && !v.settled:
				v.standbys = e.Early
			}
		}
	case Failed:
		m := v.members[e.From]
		if m == nil {
			c.Retry = RetryMin
			break
		}
		o := m.outage
		c.Suspected = o == nil || e.Cause == Clock && o.cause != Clock
		if o == nil {
			o = &outage{since: now}
			m.outage = o
		}
		o.cause, o.err = e.Cause, e.Err
		o.retry = min(max(RetryMin, 2*o.retry), RetryMax)
		c.Retry = o.retry
		if !o.dead && now.Sub(o.since) >= DeadAfter {
			o.dead, c.Died = true, true
		}
		// Standbys then know the tasks of hosts before the first host asks them.
		v.callIfLost(now, &c)
	case Refused:
		m := v.members[e.From]
		switch {
		case m == nil || m.outage != nil && m.outage.cause != Silence:
			return c
		case m.outage == nil:
			m.outage = &outage{since: now}
			c.Suspected = true
		}
		m.outage.cause, m.outage.err = e.Cause, e.Err
		v.callIfLost(now, &c)
	case NoneAnswered:
		v.call(&c)
	}
	slices.Sort(c.Joined)
	slices.Sort(c.Left)
	return c
}

// callIfLost has standbys lead when no owner is left.
func (v *View) callIfLost(now time.Time, c *Changes) {
	if v.AllLost(now) {
		v.call(c)
	}
}

// call has standbys lead where there are any, unless this host is an owner itself: then it leads.
func (v *View) call(c *Changes) {
	if v.lead == StandbysLead || !v.cfg.LastResort || len(v.standbys) == 0 || slices.ContainsFunc(v.listed, v.isSelf) {
		return
	}
	v.lead, c.Called = StandbysLead, true
	for _, addr := range v.standbys {
		if v.members[addr] == nil && !v.isSelf(addr) {
			v.members[addr] = &member{addr: addr, standby: true}
			c.Joined = append(c.Joined, addr)
		}
	}
}

// dismissStandbys has owners lead again.
func (v *View) dismissStandbys(c *Changes) {
	v.lead = OwnersLead
	for addr, m := range v.members {
		if m.standby {
			delete(v.members, addr)
			c.Left = append(c.Left, addr)
		}
	}
}

// list takes a new list of live owners.
func (v *View) list(addrs []string, c *Changes) {
	if len(addrs) == 0 || slices.Equal(addrs, v.listed) {
		return
	}
	v.listed = addrs
	for _, addr := range addrs {
		if !v.isSelf(addr) && v.members[addr] == nil {
			v.members[addr] = &member{addr: addr}
			c.Joined = append(c.Joined, addr)
		}
	}
	for addr := range v.members {
		if !slices.Contains(addrs, addr) && !slices.Contains(v.cfg.Owners, addr) {
			delete(v.members, addr)
			c.Left = append(c.Left, addr)
		}
	}
}

// KnewOwners reports whether an owner answered this host some time ago, or before its last restart. An owner that
// answers it for the first time then has just started in a cluster that is older.
func (v *View) KnewOwners(now time.Time) bool {
	return len(v.cfg.Standbys) > 0 || !v.metAt.IsZero() && now.Sub(v.metAt) >= joinedAfter
}

// Order lists the owners of a key (a task or a lookup) from the first to the last, this host
// among them where it is one: those of the live list, and configured ones that answer this host and list
// themselves, for owners whose gossip is cut list nobody else. Then follow other configured owners, and standbys
// while they lead.
func (v *View) Order(key string) (order []string) {
	add := func(addrs []string) {
		for _, addr := range rendezvous.Order(key, addrs) {
			if v.isSelf(addr) || v.members[addr] != nil {
				order = append(order, addr)
			}
		}
	}
	first := slices.Clone(v.listed)
	var rest, standbys []string
	for addr, m := range v.members {
		switch {
		case m.standby || slices.Contains(v.listed, addr):
		case m.listsItself && m.outage == nil:
			first = append(first, addr)
		default:
			rest = append(rest, addr)
		}
	}
	add(first)
	add(rest)
	if v.lead == StandbysLead {
		for _, addr := range v.standbys {
			if m := v.members[addr]; m == nil || m.standby { // otherwise it stands above, as an owner
				standbys = append(standbys, addr)
			}
		}
		add(standbys)
	}
	return order
}

// Answering lists those of [View.Order] that did not fail their last announce.
func (v *View) Answering(key string) []string {
	return slices.DeleteFunc(v.Order(key), func(addr string) bool {
		m := v.members[addr]
		return m != nil && m.outage != nil
	})
}

// Doubted lists those of [View.Order] that fell silent a moment ago, as one whose connection broke. It can be dead or
// not: a request finds it out. Without it, each host that lost the connection first would go to the registry by itself
// until standbys lead.
func (v *View) Doubted(now time.Time, key string) []string {
	return slices.DeleteFunc(v.Order(key), func(addr string) bool {
		m := v.members[addr]
		return m == nil || m.outage == nil || m.outage.cause != Silence || now.Sub(m.outage.since) >= DoubtedFor
	})
}

// Route lists the owners to ask about a task: first those that answer, in the task's order, then
// suspected ones. Lost ones follow only where the host has no last resort.
func (v *View) Route(now time.Time, key string) (route []string) {
	var failing []string
	for _, addr := range v.Order(key) {
		switch s := v.State(now, addr); {
		case s.answers():
			route = append(route, addr)
		case s == Suspected || !v.cfg.LastResort:
			failing = append(failing, addr)
		}
	}
	return append(route, failing...)
}

// State is what this host knows about an owner. This host itself, and an address that is no owner,
// are [Untried].
func (v *View) State(now time.Time, addr string) State {
	m := v.members[addr]
	switch {
	case m == nil || m.outage == nil && !m.met:
		return Untried
	case m.outage == nil:
		return Alive
	case m.outage.cause == Silence && now.Sub(m.outage.since) < v.Patience():
		return Suspected
	case !m.outage.dead:
		return Lost
	}
	return Dead
}

// AllLost reports whether every owner is [Lost] or [Dead], and every standby while they lead.
func (v *View) AllLost(now time.Time) bool { return v.usable(now) == 0 }

// usable counts the owners that are not lost.
func (v *View) usable(now time.Time) (n int) {
	for addr := range v.members {
		if v.State(now, addr) < Lost {
			n++
		}
	}
	return n
}

// AnyFails reports whether an owner failed its last announce.
func (v *View) AnyFails() bool {
	for _, m := range v.members {
		if m.outage != nil {
			return true
		}
	}
	return false
}

// Patience is how long silent owners are tried before other hosts lead; see [Config].
func (v *View) Patience() time.Duration {
	if len(v.standbys) > 0 && v.lead == OwnersLead {
		return v.cfg.Patience * 3 / 4
	}
	return v.cfg.Patience
}

// Budget is how long one owner may take to answer: [Config]'s where another can be asked instead,
// otherwise half of Patience. Asking the only one more often would only repeat the TLS handshake.
func (v *View) Budget(now time.Time) time.Duration {
	if v.usable(now) > 1 {
		return v.cfg.Budget
	}
	return max(v.cfg.Budget, v.Patience()/2)
}

// Lead returns which hosts lead tasks now.
func (v *View) Lead() Lead { return v.lead }

// Members lists the owners to announce to, and the standbys while they lead, sorted. This host is not
// among them.
func (v *View) Members() []string { return slices.Sorted(maps.Keys(v.members)) }

// Met lists the members that have ever answered an announce, sorted: they know this host.
func (v *View) Met() []string {
	return slices.DeleteFunc(v.Members(), func(addr string) bool { return !v.members[addr].met })
}

// Owner is one member in words for people.
type Owner struct {
	Addr  string
	State State
	// Standby means that it leads only while no owner answers.
	Standby bool
	// Err is the last failure of a member that fails; otherwise nil.
	Err error
}

// Owners lists the members in the order of their addresses.
func (v *View) Owners(now time.Time) (out []Owner) {
	for _, addr := range v.Members() {
		m := v.members[addr]
		o := Owner{Addr: addr, State: v.State(now, addr), Standby: m.standby}
		if m.outage != nil {
			o.Err = m.outage.err
		}
		out = append(out, o)
	}
	return out
}

// Standbys lists the hosts that lead while no owner answers, sorted; this host may be one.
func (v *View) Standbys() []string { return slices.Clone(v.standbys) }

func (v *View) isSelf(addr string) bool { return v.cfg.Self != "" && addr == v.cfg.Self }
