package policy

import (
	"fmt"
	"strings"
	"time"
)

func name(names []string, i int) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprint(i)
	}
	return names[i]
}

func (i Interest) String() string { return name([]string{"nothing", "ranges", "everything"}, int(i)) }
func (p Phase) String() string    { return name([]string{"unknown", "partial", "complete"}, int(p)) }
func (p Permission) String() string {
	return name([]string{"denied", "disputed", "stand-in", "allowed", "leading"}, int(p))
}
func (r Reading) String() string { return name([]string{"idle", "running", "gave-up"}, int(r)) }
func (e Event) String() string {
	return name([]string{"started", "progress", "starving", "completed"}, int(e))
}
func (s OriginStep) String() string { return name([]string{"leave", "ask", "stop"}, int(s)) }

func (a Announcement) String() string {
	text := fmt.Sprintf("announce %s need=%d", a.Event, a.Need)
	if a.Spec {
		text += " spec"
	}
	return text
}

// Text writes a view as the scenarios in testdata read it, so that a line of a debug log becomes a line
// of a scenario. Times are ages before now. Held and Rank are left out.
func (v View) Text(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "interest=%s phase=%s", v.Interest, v.Phase)
	for _, flag := range []struct {
		name string
		set  bool
	}{
		{"signed", v.Signed}, {"cached", v.Cached}, {"wants", v.Wants}, {"hungry", v.Hungry},
		{"yielding", v.Yielding}, {"ownerfailed", v.OwnerFailed}, {"waits", v.Waits},
	} {
		if flag.set {
			fmt.Fprintf(&b, " %s=true", flag.name)
		}
	}
	for _, count := range []struct {
		name string
		n    int
	}{
		{"ranges", v.Ranges}, {"conns", v.Conns}, {"hellos", v.Hellos}, {"seeds", v.Seeds},
		{"dialing", v.Dialing}, {"checking", v.Checking},
	} {
		if count.n > 0 {
			fmt.Fprintf(&b, " %s=%d", count.name, count.n)
		}
	}
	if !v.LastHave.IsZero() {
		fmt.Fprintf(&b, " lasthave=%s", now.Sub(v.LastHave))
	}
	if !v.LastPiece.IsZero() {
		fmt.Fprintf(&b, " lastpiece=%s", now.Sub(v.LastPiece))
	}
	fmt.Fprintf(&b, " lastuse=%s", now.Sub(v.LastUse))
	return b.String()
}
