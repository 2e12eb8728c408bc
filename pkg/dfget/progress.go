package dfget

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// tick is how often progress is looked at, plainEvery how often a line tells of it.
	tick       = 200 * time.Millisecond
	plainEvery = 5 * time.Second
	// patience is how long a first answer may take before it is told that there is none yet.
	patience = time.Second
)

// shares are a download's bytes by source.
type shares struct{ api.Sources }

// peers is the share that came from other nodes, supernodes among them, between 0 and 1; ok
// is false while nothing is known.
func (s shares) peers() (share float64, ok bool) {
	all := s.Peers + s.Seeds + s.Origin
	if all == 0 {
		return 0, false
	}
	return float64(s.Peers+s.Seeds) / float64(all), true
}

// meter is how far one download is.
type meter struct {
	url, name string

	// mu is held to read or note a few numbers, never while anything is written.
	mu       sync.Mutex
	started  time.Time // zero while others have their turn
	identity string
	cached   bool
	length   int64 // −1 while not known
	done     int64 // bytes of the target that are there
	kept     int64 // those that an earlier run left
	shares   shares
	rate     float64 // bytes per second, smoothed
	last     int64   // done at the last tick
	notes    []string
	begun    bool
	ended    bool
	took     time.Duration
	err      error
}

func newMeter(u *url.URL, output string) *meter {
	name := filepath.Base(output)
	if output == "-" {
		name = filepath.Base(u.Path)
	}
	return &meter{url: withoutQuery(u), name: name, length: -1}
}

// start notes that the download has its turn.
func (m *meter) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = time.Now()
}

// withoutQuery is how a URL is printed: what signs it stays private.
func withoutQuery(u *url.URL) string {
	c := *u
	c.User = nil
	if c.RawQuery != "" {
		c.RawQuery = "…"
	}
	return c.String()
}

func (m *meter) begin(a *answer, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.begun || offset < m.done {
		m.kept, m.last = offset, offset
	}
	m.identity, m.cached, m.length, m.done, m.begun = a.identity, m.cached || a.cached, a.length, offset, true
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(n)
}

func (m *meter) note(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notes = append(m.notes, text)
}

func (m *meter) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended, m.err, m.took = true, err, time.Since(m.started)
}

// state is a copy of a meter's numbers.
type state struct {
	identity           string
	cached             bool
	length, done, kept int64
	shares             shares
	rate               float64
	begun, ended       bool
	took               time.Duration
	err                error
	waits              time.Duration // for its first answer
}

func (m *meter) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := state{m.identity, m.cached, m.length, m.done, m.kept, m.shares, m.rate, m.begun, m.ended, m.took, m.err, 0}
	switch {
	case m.begun || m.started.IsZero():
	case m.ended:
		s.waits = m.took
	default:
		s.waits = time.Since(m.started)
	}
	return s
}

// sample works out the speed since the last tick.
func (m *meter) sample(elapsed time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := float64(m.done-m.last) / elapsed.Seconds()
	if m.rate == 0 {
		m.rate = now
	} else {
		m.rate = 0.8*m.rate + 0.2*now
	}
	m.last = m.done
}

// percent is how much is there, or −1 while the length is not known.
func (s state) percent() int {
	switch {
	case s.length < 0:
		return -1
	case s.length == 0:
		return 100
	}
	return int(100 * s.done / s.length)
}

// etaMax is the longest time left that is told: a download that stands still has none.
const etaMax = 24 * time.Hour

// eta is the time that is left, or a negative one while nobody knows.
func (s state) eta() time.Duration {
	if s.length < 0 || s.rate < 1 {
		return -1
	}
	seconds := float64(s.length-s.done) / s.rate
	if seconds > etaMax.Seconds() {
		return -1
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Second)
}

// left is the eta in a few letters, empty while nobody knows.
func (s state) left() string {
	eta := s.eta()
	switch {
	case eta < 0:
		return ""
	case eta >= time.Hour:
		return strings.TrimSuffix(eta.Truncate(time.Minute).String(), "0s") + " left"
	}
	return eta.String() + " left"
}

// origin of the bytes in a few words, empty while nothing is known.
func (s state) from() string {
	if s.cached {
		return "from the node's cache"
	}
	if share, ok := s.shares.peers(); ok {
		return fmt.Sprintf("%.0f%% from peers", 100*share)
	}
	return ""
}

func human(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

// line tells the state in plain words.
func (s state) line() string {
	if !s.begun {
		return "no answer yet, after " + s.waits.Round(time.Second).String()
	}
	var b strings.Builder
	if p := s.percent(); p >= 0 {
		fmt.Fprintf(&b, "%d%%, %s of %s", p, human(s.done), human(s.length))
	} else {
		b.WriteString(human(s.done))
	}
	fmt.Fprintf(&b, ", %s/s", human(int64(s.rate)))
	if left := s.left(); left != "" {
		b.WriteString(", " + left)
	}
	if from := s.from(); from != "" {
		b.WriteString(", " + from)
	}
	return b.String()
}

// columnWidths keep what stands beside a bar from jumping.
var columnWidths = [...]int{4, 8, 10, 8, 10}

// columns tell the state beside a bar: percent, bytes, speed, time left, share from peers.
func (s state) columns() (c [len(columnWidths)]string) {
	if !s.begun {
		c[1], c[2] = "no answer", "after "+s.waits.Round(time.Second).String()
		return c
	}
	if p := s.percent(); p >= 0 {
		c[0] = fmt.Sprintf("%d%%", p)
	}
	c[1], c[2], c[3] = human(s.done), human(int64(s.rate))+"/s", s.left()
	if share, ok := s.shares.peers(); ok {
		c[4] = fmt.Sprintf("%.0f%% peers", 100*share)
	}
	return c
}

// outcome tells how a download ended, failures apart: the program prints those.
func (m *meter) outcome(s state) string {
	took := s.took.Round(10 * time.Millisecond)
	text := fmt.Sprintf("%s: %s in %s", m.name, human(s.done), took)
	if seconds := s.took.Seconds(); seconds > 0 {
		text += fmt.Sprintf(", %s/s", human(int64(float64(s.done-s.kept)/seconds)))
	}
	if s.kept > 0 {
		text += fmt.Sprintf(", %s of it kept from before", human(s.kept))
	}
	if from := s.from(); from != "" {
		text += ", " + from
	}
	return text
}

// Event is one line of --progress=json. Sizes are bytes, times seconds.
type Event struct {
	Event  string  `json:"event"` // wait, start, progress, note, done or failed
	URL    string  `json:"url"`   // without user and query
	File   string  `json:"file"`
	Task   task.ID `json:"task,omitempty"`
	Length *int64  `json:"length,omitempty"` // absent while not known
	Done   int64   `json:"done"`
	// Rate is in bytes per second, smoothed; ETA is absent while not known.
	Rate int64 `json:"rate"`
	ETA  *int  `json:"eta,omitempty"`
	// FromPeers is the share of other nodes and supernodes, between 0 and 1.
	FromPeers *float64     `json:"fromPeers,omitempty"`
	Sources   *api.Sources `json:"sources,omitempty"`
	Cached    bool         `json:"cached,omitempty"`
	Seconds   float64      `json:"seconds,omitempty"`
	Message   string       `json:"message,omitempty"`
	Code      Code         `json:"code,omitempty"` // the exit code of a failure
}

func (m *meter) event(kind string, s state) Event {
	e := Event{Event: kind, URL: m.url, File: m.name, Task: task.ID(strings.Trim(s.identity, `"`)), Done: s.done, Rate: int64(s.rate), Cached: s.cached}
	if s.length >= 0 {
		e.Length = &s.length
	}
	if eta := s.eta(); eta >= 0 {
		seconds := int(eta.Seconds())
		e.ETA = &seconds
	}
	if share, ok := s.shares.peers(); ok {
		e.FromPeers, e.Sources = &share, &s.shares.Sources
	}
	e.Seconds = s.waits.Seconds()
	if s.ended {
		e.Seconds = s.took.Seconds()
		if s.err != nil {
			e.Message, e.Code = s.err.Error(), ExitCode(s.err)
		}
	}
	return e
}

// view shows what the meters say. Its methods are called by one goroutine.
type view interface {
	// waits is called now and then while there is no answer yet.
	waits(m *meter, s state)
	started(m *meter, s state)
	moved(m *meter, s state)
	note(m *meter, text string)
	ended(m *meter, s state)
	close()
}

// reporter looks at the meters now and then, and shows them.
type reporter struct {
	meters map[*meter]*seen
	order  []*job
	source fetcher
	view   view
}

type seen struct {
	started, ended bool
}

func newReporter(cfg Config, jobs []*job, source fetcher) *reporter {
	r := &reporter{meters: map[*meter]*seen{}, order: jobs, source: source}
	for _, j := range jobs {
		r.meters[j.meter] = &seen{}
	}
	kind := cfg.Settings.Progress
	if kind == "auto" || kind == "" {
		kind = "plain"
		if cfg.Terminal {
			kind = "bar"
		}
	}
	switch kind {
	case "bar":
		r.view = newBars(cfg.Stderr)
	case "json":
		r.view = &lines{enc: json.NewEncoder(cfg.Stderr), told: map[*meter]time.Time{}}
	case "plain":
		r.view = &plain{w: cfg.Stderr, told: map[*meter]time.Time{}}
	}
	return r
}

// run shows progress until done is closed.
func (r *reporter) run(ctx context.Context, done <-chan struct{}) {
	if r.view == nil {
		return
	}
	defer r.view.close()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case now := <-ticker.C:
			r.look(ctx, now.Sub(last))
			last = now
		case <-done:
			r.look(context.WithoutCancel(ctx), max(time.Since(last), time.Millisecond))
			return
		}
	}
}

func (r *reporter) look(ctx context.Context, elapsed time.Duration) {
	for _, j := range r.order {
		m, seen := j.meter, r.meters[j.meter]
		if seen.ended {
			continue
		}
		m.sample(elapsed)
		if s := m.state(); s.begun && !s.cached {
			if got, ok := r.source.progress(ctx, j, s.identity); ok {
				m.mu.Lock()
				m.shares = got
				m.mu.Unlock()
			}
		}
		m.mu.Lock()
		notes := m.notes
		m.notes = nil
		m.mu.Unlock()
		s := m.state()
		if s.begun && !seen.started {
			seen.started = true
			r.view.started(m, s)
		}
		for _, text := range notes {
			r.view.note(m, text)
		}
		if s.ended {
			seen.ended = true
			r.view.ended(m, s)
		} else if s.begun {
			r.view.moved(m, s)
		} else if s.waits >= patience {
			r.view.waits(m, s)
		}
	}
}

// lines writes JSON, one object a line.
type lines struct {
	enc  *json.Encoder
	told map[*meter]time.Time // when of its waiting
}

func (l *lines) waits(m *meter, s state) {
	if now := time.Now(); now.Sub(l.told[m]) >= patience {
		l.told[m] = now
		_ = l.enc.Encode(m.event("wait", s))
	}
}
func (l *lines) started(m *meter, s state) { _ = l.enc.Encode(m.event("start", s)) }
func (l *lines) moved(m *meter, s state)   { _ = l.enc.Encode(m.event("progress", s)) }
func (l *lines) note(m *meter, text string) {
	e := m.event("note", m.state())
	e.Message = text
	_ = l.enc.Encode(e)
}
func (l *lines) ended(m *meter, s state) {
	kind := "done"
	if s.err != nil {
		kind = "failed"
	}
	_ = l.enc.Encode(m.event(kind, s))
}
func (l *lines) close() {}

// plain writes a line now and then, for logs.
type plain struct {
	w    io.Writer
	told map[*meter]time.Time
}

func (p *plain) waits(m *meter, s state) {
	if p.told[m].IsZero() {
		p.told[m] = time.Now().Add(-s.waits)
	}
	p.moved(m, s)
}
func (p *plain) started(m *meter, _ state) { p.told[m] = time.Now() }
func (p *plain) moved(m *meter, s state) {
	if now := time.Now(); now.Sub(p.told[m]) >= plainEvery {
		p.told[m] = now
		fmt.Fprintf(p.w, "%s: %s\n", m.name, s.line())
	}
}
func (p *plain) note(m *meter, text string) { fmt.Fprintf(p.w, "%s: %s\n", m.name, text) }
func (p *plain) ended(m *meter, s state) {
	if s.err == nil {
		fmt.Fprintln(p.w, m.outcome(s))
	}
}
func (p *plain) close() {}

// bars draws on a terminal.
type bars struct {
	w      io.Writer
	on     *mpb.Progress
	of     map[*meter]*mpb.Bar
	finals []string
}

func newBars(w io.Writer) *bars {
	return &bars{w: w, on: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(tick)), of: map[*meter]*mpb.Bar{}}
}

// add draws a bar for a download. Its end is nowhere until the file has its name: see moved.
func (b *bars) add(m *meter) *mpb.Bar {
	if bar := b.of[m]; bar != nil {
		return bar
	}
	var right []decor.Decorator
	for i, width := range columnWidths {
		right = append(right, decor.Any(func(decor.Statistics) string { return m.state().columns()[i] }, decor.WC{W: width, C: decor.DSyncSpace}))
	}
	b.of[m] = b.on.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarRemoveOnComplete(), mpb.BarWidth(20),
		mpb.PrependDecorators(decor.Name(shorten(m.name), decor.WC{C: decor.DSyncWidthR})), mpb.AppendDecorators(right...),
	)
	return b.of[m]
}

func (b *bars) waits(m *meter, _ state) { b.add(m) }

func (b *bars) started(m *meter, s state) { b.moved(m, s) }

// nameMax is how many letters of a name stand before its bar: what moves is worth more room.
const nameMax = 24

// shorten leaves out the middle of a long name, whose ends tell most.
func shorten(name string) string {
	letters := []rune(name)
	if len(letters) <= nameMax {
		return name
	}
	half := (nameMax - 1) / 2
	return string(letters[:half]) + "…" + string(letters[len(letters)-half:])
}

func (b *bars) moved(m *meter, s state) {
	bar := b.add(m)
	if s.length >= 0 {
		// One more than the length keeps a bar that is full from ending before its file has its name.
		bar.SetTotal(s.length+1, false)
	}
	bar.SetCurrent(s.done)
}

func (b *bars) note(m *meter, text string) { b.tell(m.name + ": " + text) }

func (b *bars) ended(m *meter, s state) {
	if bar := b.of[m]; bar != nil {
		bar.Abort(true)
	}
	if s.err == nil {
		b.tell(m.outcome(s))
	}
}

// tell writes a line above the bars.
func (b *bars) tell(line string) {
	if _, err := io.WriteString(b.on, line+"\n"); err != nil { // there are none any more
		b.finals = append(b.finals, line)
	}
}

func (b *bars) close() {
	b.on.Wait()
	for _, text := range b.finals {
		fmt.Fprintln(b.w, text)
	}
}
