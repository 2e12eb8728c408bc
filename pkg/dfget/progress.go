package dfget

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// tick is the interval between updates of the progress, plainEvery the interval between its lines.
	tick       = 200 * time.Millisecond
	plainEvery = 5 * time.Second
	// waitNoticeAfter is the wait for the first answer after which the progress reports it.
	waitNoticeAfter = time.Second
	// stallAfter is the time without a byte that is a stall.
	stallAfter = 2 * time.Second
)

// shares are a download's bytes by source.
type shares struct{ api.Sources }

// peers returns the share that came from other nodes, supernodes included, between 0 and 1; ok is false while
// it is unknown.
func (s shares) peers() (share float64, ok bool) {
	all := s.Peers + s.Seeds + s.Origin
	if all == 0 {
		return 0, false
	}
	return float64(s.Peers+s.Seeds) / float64(all), true
}

// String names each source with its part of the bytes, empty while they are unknown.
func (s shares) String() string {
	all := s.Peers + s.Seeds + s.Origin
	var parts []string
	for _, from := range []struct {
		bytes int64
		name  string
	}{{s.Peers, "peers"}, {s.Seeds, "seeds"}, {s.Origin, "the origin"}} {
		if from.bytes > 0 {
			parts = append(parts, share(from.bytes, all)+" from "+from.name)
		}
	}
	return strings.Join(parts, ", ")
}

// share returns a part of all bytes in percent. It is 100% only for all of them and 0% only for none.
func share(part, all int64) string {
	percent := math.Round(100 * float64(part) / float64(all))
	switch {
	case percent < 1 && part > 0:
		return "<1%"
	case percent > 99 && part < all:
		return ">99%"
	}
	return fmt.Sprintf("%.0f%%", percent)
}

// meter counts the progress of one download.
type meter struct {
	url, name string

	// mu guards the fields below and is never held during a write.
	mu       sync.Mutex
	started  time.Time // zero until the download starts
	identity string
	cached   bool
	length   int64 // −1 while unknown
	done     int64 // bytes in the target
	kept     int64 // bytes in the target from an earlier run
	shares   shares
	told     bool          // the answer told the final shares
	rate     float64       // bytes per second while bytes move, smoothed
	last     int64         // done at the last tick
	quiet    time.Duration // since a tick saw a byte
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
	return &meter{url: secret.PrintableURL(u), name: name, length: -1}
}

// start records the start of the download.
func (m *meter) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = time.Now()
}

func (m *meter) begin(a *answer, offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.begun {
		m.quiet = 0 // the wait for the first answer is no stall
	}
	if !m.begun || offset < m.done {
		m.kept, m.last = offset, offset
	}
	if m.told = a.sources != nil; m.told {
		m.shares = *a.sources
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
	told               bool
	rate               float64       // 0 during a stall
	stalled            time.Duration // how long no byte has come, 0 if that is no stall
	begun, ended       bool
	took               time.Duration
	err                error
	waits              time.Duration // the wait for the first answer, so far
}

func (m *meter) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := state{
		identity: m.identity, cached: m.cached, length: m.length, done: m.done, kept: m.kept, shares: m.shares,
		told: m.told, rate: m.rate, begun: m.begun, ended: m.ended, took: m.took, err: m.err,
	}
	if m.begun && !m.ended && m.quiet >= stallAfter {
		s.rate, s.stalled = 0, m.quiet
	}
	switch {
	case m.begun || m.started.IsZero():
	case m.ended:
		s.waits = m.took
	default:
		s.waits = time.Since(m.started)
	}
	return s
}

// sample updates the speed with the bytes since the last tick. A stall does not lower it: when bytes move again, the
// time left follows from the speed at which they move.
func (m *meter) sample(elapsed time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	moved := m.done - m.last
	if moved <= 0 {
		m.quiet += elapsed
		return
	}
	if m.quiet < stallAfter { // bytes that come in bursts
		elapsed += m.quiet
	}
	m.last, m.quiet = m.done, 0
	now := float64(moved) / elapsed.Seconds()
	if m.rate == 0 {
		m.rate = now
		return
	}
	old := math.Pow(0.8, float64(elapsed)/float64(tick))
	m.rate = old*m.rate + (1-old)*now
}

// percent returns the finished part, or −1 while the length is unknown.
func (s state) percent() int {
	switch {
	case s.length < 0:
		return -1
	case s.length == 0:
		return 100
	}
	return int(100 * s.done / s.length)
}

// etaMax bounds the time left that is shown.
const etaMax = 24 * time.Hour

// eta returns the time left, negative while unknown.
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

// left returns the time left as a short text, empty while unknown.
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

// from returns the source of the bytes as a short text, empty while unknown.
func (s state) from() string {
	if s.cached {
		return "from the node's cache"
	}
	return s.shares.String()
}

func human(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

// line returns the state as one line of text.
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
	if s.stalled > 0 {
		b.WriteString(", no byte for " + s.stalled.Round(time.Second).String())
	} else {
		fmt.Fprintf(&b, ", %s/s", human(int64(s.rate)))
	}
	if left := s.left(); left != "" {
		b.WriteString(", " + left)
	}
	if from := s.from(); from != "" {
		b.WriteString(", " + from)
	}
	return b.String()
}

// columnWidths are constant so that the columns do not jump.
var columnWidths = [...]int{4, 8, 10, 8, 12}

// columns returns the state next to a bar: percent, bytes, speed, time left, share from the cluster.
func (s state) columns() (c [len(columnWidths)]string) {
	if !s.begun {
		c[1], c[2] = "no answer", "after "+s.waits.Round(time.Second).String()
		return c
	}
	if p := s.percent(); p >= 0 {
		c[0] = fmt.Sprintf("%d%%", p)
	}
	c[1], c[2], c[3] = human(s.done), human(int64(s.rate))+"/s", s.left()
	if s.stalled > 0 {
		c[2], c[3] = "no byte", "for "+s.stalled.Round(time.Second).String()
	}
	if all := s.shares.Peers + s.shares.Seeds + s.shares.Origin; all > 0 {
		c[4] = share(all-s.shares.Origin, all) + " cluster"
	}
	return c
}

// outcome returns the summary of a successful download; the program prints failures itself.
func (m *meter) outcome(s state) string {
	took := s.took.Round(10 * time.Millisecond)
	text := fmt.Sprintf("%s: %s in %s", m.name, human(s.done), took)
	if seconds := s.took.Seconds(); seconds > 0 {
		text += fmt.Sprintf(", %s/s", human(int64(float64(s.done-s.kept)/seconds)))
	}
	if s.kept > 0 {
		text += fmt.Sprintf(", %s of it from an earlier run", human(s.kept))
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
	Length *int64  `json:"length,omitempty"` // absent while unknown
	Done   int64   `json:"done"`
	// Rate is in bytes per second, smoothed; ETA is absent while unknown.
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
	e := Event{
		Event: kind, URL: m.url, File: m.name, Task: task.ID(strings.Trim(s.identity, `"`)), Done: s.done,
		Rate: int64(s.rate), Cached: s.cached,
	}
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

// view shows the state of the meters. One goroutine calls its methods.
type view interface {
	// waiting is called every tick while there is no answer yet.
	waiting(m *meter, s state)
	started(m *meter, s state)
	progress(m *meter, s state)
	note(m *meter, text string)
	ended(m *meter, s state)
	close()
}

// reporter shows the meters every tick.
type reporter struct {
	shown  map[*meter]*shown
	order  []*job
	source fetcher
	view   view
}

// shown records the calls of the view for one meter.
type shown struct {
	started, ended bool
}

func newReporter(cfg Config, jobs []*job, source fetcher) *reporter {
	r := &reporter{shown: map[*meter]*shown{}, order: jobs, source: source}
	for _, j := range jobs {
		r.shown[j.meter] = &shown{}
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
		r.view = &lines{enc: json.NewEncoder(cfg.Stderr), last: map[*meter]time.Time{}}
	case "plain":
		r.view = &plain{w: cfg.Stderr, last: map[*meter]time.Time{}}
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
			r.update(ctx, now.Sub(last))
			last = now
		case <-done:
			r.update(context.WithoutCancel(ctx), max(time.Since(last), time.Millisecond))
			return
		}
	}
}

// update shows all meters. elapsed is the time since the last update.
func (r *reporter) update(ctx context.Context, elapsed time.Duration) {
	for _, j := range r.order {
		m, shown := j.meter, r.shown[j.meter]
		if shown.ended {
			continue
		}
		m.sample(elapsed)
		if s := m.state(); s.begun && !s.cached && !s.told {
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
		if s.begun && !shown.started {
			shown.started = true
			r.view.started(m, s)
		}
		for _, text := range notes {
			r.view.note(m, text)
		}
		if s.ended {
			shown.ended = true
			r.view.ended(m, s)
		} else if s.begun {
			r.view.progress(m, s)
		} else if s.waits >= waitNoticeAfter {
			r.view.waiting(m, s)
		}
	}
}

// lines writes JSON, one object per line.
type lines struct {
	enc  *json.Encoder
	last map[*meter]time.Time // of the last "wait" event
}

func (l *lines) waiting(m *meter, s state) {
	if now := time.Now(); now.Sub(l.last[m]) >= waitNoticeAfter {
		l.last[m] = now
		_ = l.enc.Encode(m.event("wait", s))
	}
}
func (l *lines) started(m *meter, s state)  { _ = l.enc.Encode(m.event("start", s)) }
func (l *lines) progress(m *meter, s state) { _ = l.enc.Encode(m.event("progress", s)) }
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

// plain writes a line every plainEvery, for logs.
type plain struct {
	w    io.Writer
	last map[*meter]time.Time // of the last line
}

func (p *plain) waiting(m *meter, s state) {
	if p.last[m].IsZero() {
		p.last[m] = time.Now().Add(-s.waits)
	}
	p.progress(m, s)
}
func (p *plain) started(m *meter, _ state) { p.last[m] = time.Now() }
func (p *plain) progress(m *meter, s state) {
	if now := time.Now(); now.Sub(p.last[m]) >= plainEvery {
		p.last[m] = now
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

// bars draws progress bars on a terminal.
type bars struct {
	w         io.Writer
	container *mpb.Progress
	bars      map[*meter]*mpb.Bar
	finals    []string // lines to write after the last bar
}

func newBars(w io.Writer) *bars {
	return &bars{
		w: w, container: mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(tick)),
		bars: map[*meter]*mpb.Bar{},
	}
}

// add returns the bar of a download and draws it at the first call. See progress for its total.
func (b *bars) add(m *meter) *mpb.Bar {
	if bar := b.bars[m]; bar != nil {
		return bar
	}
	var right []decor.Decorator
	for i, width := range columnWidths {
		column := func(decor.Statistics) string { return m.state().columns()[i] }
		right = append(right, decor.Any(column, decor.WC{W: width, C: decor.DSyncSpace}))
	}
	b.bars[m] = b.container.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarRemoveOnComplete(), mpb.BarWidth(20),
		mpb.PrependDecorators(decor.Name(shorten(m.name), decor.WC{C: decor.DSyncWidthR})),
		mpb.AppendDecorators(right...),
	)
	return b.bars[m]
}

func (b *bars) waiting(m *meter, _ state) { b.add(m) }

func (b *bars) started(m *meter, s state) { b.progress(m, s) }

// nameMax bounds the letters of a name in front of its bar, so that the numbers have space.
const nameMax = 24

// shorten removes the middle of a long name.
func shorten(name string) string {
	letters := []rune(name)
	if len(letters) <= nameMax {
		return name
	}
	half := (nameMax - 1) / 2
	return string(letters[:half]) + "…" + string(letters[len(letters)-half:])
}

func (b *bars) progress(m *meter, s state) {
	bar := b.add(m)
	if s.length >= 0 {
		// One more than the length keeps a full bar open until its file is renamed.
		bar.SetTotal(s.length+1, false)
	}
	bar.SetCurrent(s.done)
}

func (b *bars) note(m *meter, text string) { b.print(m.name + ": " + text) }

func (b *bars) ended(m *meter, s state) {
	if bar := b.bars[m]; bar != nil {
		bar.Abort(true)
	}
	if s.err == nil {
		b.print(m.outcome(s))
	}
}

// print writes a line above the bars.
func (b *bars) print(line string) {
	if _, err := io.WriteString(b.container, line+"\n"); err != nil { // the last bar has ended
		b.finals = append(b.finals, line)
	}
}

func (b *bars) close() {
	b.container.Wait()
	for _, text := range b.finals {
		fmt.Fprintln(b.w, text)
	}
}
