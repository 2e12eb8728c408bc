// Package owners decides on one host which host leads a task: in which order owners are asked, which
// of them are alive, suspected or lost, and when standbys lead in their place.
//
// It never sends, waits or reads a clock: a [View] changes in one function, by events that carry their
// time. Package announce sends what follows from it. Start at [View.Apply] and [View.Route].
package owners

// Leader is the kind of host whose coordinator answered an announce. The host finds it out itself; it is not on
// the wire, so that no owner can claim it.
type Leader uint8

const (
	// LastResort is this host's own coordinator, asked because no owner answers or none is
	// known. Other hosts may lead the same task for themselves.
	LastResort Leader = iota
	// Self is this host's own coordinator, which is the owner of the task for all hosts.
	Self
	// Other is another host's coordinator.
	Other
)

// String is the leader in words, for logs.
func (l Leader) String() string {
	switch l {
	case LastResort:
		return "last resort"
	case Self:
		return "self"
	case Other:
		return "other"
	}
	return "unknown"
}
