package peer

import (
	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/peer/upload"
)

// lane is what a host serves some of its neighbours with: those of its own zone, or those
// of others. They have one each because what goes afar waits for the link between zones:
// in one line with it the zone's own pieces would wait, too.
type lane struct {
	slots *upload.Slots
	line  *upload.Line
}

func newLane(slots, lines int) lane {
	return lane{upload.NewSlots(slots), upload.NewLine(lines)}
}

// afarSlots is how many requests from other zones a host with so many slots accepts
// beside those of its own: few, because every zone fetches a piece once.
func afarSlots(slots int) int { return max(1, slots/3) }

// lane is what serves l.
func (d *Download) lane(l *link) *lane {
	if d.afar(l) {
		return &d.e.afar
	}
	return &d.e.near
}

// afar reports whether a neighbour is in another zone. One that has not said where it is,
// or cannot, is taken for near.
func (d *Download) afar(l *link) bool { return l.helloed && l.zone != d.e.cfg.Host.Zone }

// put tells the picker where a neighbour is.
func (d *Download) put(l *link) {
	d.pick.Put(l.n, picker.Place{Afar: d.afar(l), Gateway: l.gateway, ID: l.host})
}

// isGateway reports whether this host brings pieces into its zone from others.
func (d *Download) isGateway() bool { return !d.local && !d.seeding }

// setLocal follows the owner's word on whether this host is a gateway of its zone.
func (d *Download) setLocal(local bool) {
	if d.local == local {
		return
	}
	d.local = local
	if d.pick != nil {
		d.pick.Role(d.e.cfg.Host.ID, !local)
	}
	d.helloAgain()
}
