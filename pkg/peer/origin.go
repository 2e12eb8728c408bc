package peer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// originTries is how often in a row an origin may fail without giving one byte.
	originTries = 4
	// originPause is the wait before the second try; it doubles.
	originPause = 100 * time.Millisecond
	// skipMax is how many pieces that are here already are read past rather than asked
	// around with a new request.
	skipMax = 8
)

// errUnwanted tells that nobody wants more pieces of the origin.
var errUnwanted = errors.New("nothing more is wanted")

// errWrongContent tells that the origin's content is not what its name promises.
type errWrongContent struct{ want, got string }

func (e *errWrongContent) Error() string {
	return fmt.Sprintf("the origin sent content with digest %s, want %s", e.got, e.want)
}

func checkSum(digest string, h hash.Hash) error {
	algorithm, _, _ := strings.Cut(digest, ":")
	if got := algorithm + ":" + hex.EncodeToString(h.Sum(nil)); got != digest {
		return &errWrongContent{want: digest, got: got}
	}
	return nil
}

// checkWhole compares a whole content with the digest that the task promises, if any.
func checkWhole(spec task.Spec, content []byte) error {
	digest, ok := spec.WholeDigest()
	if !ok {
		return nil
	}
	h, err := oci.NewHash(digest)
	if err != nil {
		return err
	}
	h.Write(content)
	return checkSum(digest, h)
}

// startOrigin makes the origin a parent of this download.
func (d *Download) startOrigin(now time.Time) {
	ctx, cancel := context.WithCancelCause(d.ctx)
	d.seeding, d.stopOrigin = true, cancel
	d.updateWanted(now) // what only the origin can bring has changed since the last look
	d.helloAgain()
	o := &originParent{d: d, spec: d.spec, epoch: d.e.newEpoch()}
	if first := d.firstAsked.Load(); first == nil {
		d.firstAsked.Store(&o.spec)
	} else if !first.SameAsker(o.spec) {
		d.mixed.Store(true)
	}
	d.wg.Go(func() {
		defer cancel(nil)
		d.notify(originEnded{o, o.safely(ctx)})
	})
}

// steerOrigin leaves the origin when nobody has wanted anything for a while, be it in the
// middle of a body that hangs, and makes it a parent when the owner said so and nobody else
// can bring what is wanted: not while a neighbour has more, so that an owner that takes
// over, or a host that lost its owners, asks only for what nobody alive has.
func (d *Download) steerOrigin(now time.Time) {
	switch {
	case d.seeding:
		if !d.background && len(d.wants) == 0 && now.Sub(d.lastUse) > d.e.cfg.Linger && !d.e.held(d) {
			d.stopOrigin(errUnwanted)
		}
	case d.complete:
		// A seed holds everything, but nobody has vouched for it: it came inside an
		// owner's answer, or the last word on it got lost in a crash.
		if d.background && !d.attested && !d.ledger.proven() && d.e.cfg.Origin != nil {
			d.attested = true
			d.startOrigin(now)
		}
	case d.maySeed && d.onlyOrigin(now):
		d.startOrigin(now)
	}
}

// onlyOrigin reports whether nobody but the origin can bring what is wanted now. Where
// nothing is known of the content yet, its origin is asked at once.
func (d *Download) onlyOrigin(now time.Time) bool {
	if d.pick != nil && (len(d.dialing) > 0 || !d.pick.Starving()) || now.Before(d.originRests) {
		return false
	}
	for _, l := range d.links {
		if l.seed && !d.isSeed() {
			return false // it is about to bring it
		}
	}
	switch {
	case d.disputed:
		// Whom the owner has in mind may bring it yet, or wait in turn for this host.
		since := d.seedSince
		if d.lastNews.After(since) {
			since = d.lastNews
		}
		return len(d.dialing) == 0 && !now.Before(since.Add(time.Duration(1+d.rank())*rankPause))
	case d.background, d.leads:
		return true
	}
	return !now.Before(d.seedSince.Add(time.Duration(d.rank()) * rankPause))
}

// letSeed lets this host ask the origin: an owner has said so, or this host's own coordinator, on
// which others count. Where hosts disagree about who leads, after a supernode was restarted, say,
// each may be sent on to the next, and without the second kind all of them would wait.
func (d *Download) letSeed(now time.Time) {
	if !d.maySeed && d.e.cfg.Origin != nil {
		d.maySeed, d.seedSince = true, now
	}
}

// rankPause is how long a host whose owners are gone leaves it to the next in order to go
// to the origin for all of them. The one that goes says that it is a seed, and the others
// wait for it.
const rankPause = 1500 * time.Millisecond

// rank is how many of the neighbours in this download come before this host in the order
// in which hosts stand in for a lost owner: every neighbour that knows the same hosts
// computes the same order, so that one of them asks the origin and not all.
func (d *Download) rank() int {
	self := string(d.e.cfg.Host.ID)
	hosts := []string{self}
	for _, l := range d.links {
		if l.host != "" {
			hosts = append(hosts, string(l.host))
		}
	}
	return slices.Index(rendezvous.Order(string(d.id), hosts), self)
}

func (d *Download) originEnded(now time.Time, o *originParent, err error) {
	d.seeding = false
	var wrong *errWrongContent
	var length *source.LengthError
	switch {
	case err == nil:
	case errors.Is(err, errUnwanted):
		// Whoever wants something now says so; asked again at once, an origin that cannot
		// help would be asked for ever.
		d.originRests = now.Add(watchEvery)
	case errors.As(err, &wrong):
		d.originWrong(now, o, wrong)
	case errors.Is(err, errContradiction), errors.As(err, &length) && d.ledger.hasMetadata():
		d.originWrong(now, o, err)
	case d.ctx.Err() != nil:
		// This host ends, which is no word of the origin's: neighbours would fail for it.
		d.fail(ErrStopped)
	case errors.Is(err, errDamaged):
		// No word about the origin: who waits for this seed is fed as soon as all came anew.
		d.forgetDamaged(err)
		d.fail(errDamaged)
		if d.background {
			d.seedAgain()
		}
	case errors.Is(err, errSpace):
		d.seeding = true // so that observer and neighbours are told
		d.failHere(err)
	case d.othersHaveMore():
		d.log.Info("origin failed, going on with what peers have", "error", err)
		d.maySeed = false
	default:
		d.seeding = true
		d.failFor(o.spec, o.words(err))
	}
}

// words are why the origin gave no content, with whose words they are.
func (o *originParent) words(err error) *api.Failure {
	f := source.Failure(err)
	f.Upstream, f.Repository = o.spec.Upstream, o.spec.Repository
	var length *source.LengthError
	f.Promise = errors.As(err, &length) && o.spec.Length == 0 && length.Want == o.spec.Promised
	// A file that is not as long as its HEAD said changed since, or the HEAD is wrong.
	f.Changed = f.Changed || length != nil && o.spec.Kind == task.Plain
	return f
}

// othersHaveMore reports whether any neighbour has a piece that is missing here.
func (d *Download) othersHaveMore() bool {
	for n := range d.links {
		if d.pick != nil && d.pick.HasMore(n) {
			return true
		}
	}
	return false
}

// originWrong drops everything that came with the wrong content, everywhere. The origin is
// asked anew once; then the error is told.
func (d *Download) originWrong(now time.Time, o *originParent, wrong error) {
	// Whichever attempt brought the wrong bytes, what is here is a mix of all of them.
	var list []piece.Revocation
	epochs := d.ledger.epochs()
	if !slices.Contains(epochs, o.epoch) {
		epochs = append(epochs, o.epoch)
	}
	for _, epoch := range epochs {
		r := piece.Revocation{Epoch: epoch}
		d.e.cfg.Signer.SignRevocation(d.id, &r)
		list = append(list, r)
	}
	again := d.e.wrong(now, d.id)
	d.revoke(now, list, d.e.cfg.Signer.Certificate())
	switch {
	case !again:
		d.seeding = true
		f := o.words(wrong)
		var length *source.LengthError
		f.Wrong = !errors.As(wrong, &length)
		d.err, d.answered = f, &o.spec
	case d.background:
		d.again = true
		d.seedAgain()
	}
}

// seedAgain has the content brought once more when this download is over.
func (d *Download) seedAgain() {
	spec := d.spec
	d.e.wg.Go(func() {
		<-d.done
		d.e.Seed(spec)
	})
}

// originParent reads the origin's body, cuts it into pieces, vouches for them and stores
// them: what a connection does for a peer, for the origin.
type originParent struct {
	d     *Download
	spec  task.Spec
	epoch uint64
	// whole hashes the content as long as the body runs from its first byte without a
	// gap; hashed is how far it got.
	whole  hash.Hash
	hashed int64
	// validator of the version that was begun.
	validator string
	buf       []byte
}

// run brings what is wanted and missing, then checks the whole.
func (o *originParent) run(ctx context.Context) error {
	digest, ok := o.spec.WholeDigest()
	if ok {
		h, err := oci.NewHash(digest)
		if err != nil {
			return err
		}
		o.whole = h
	}
	tries, pause := 0, originPause
	for {
		before := o.d.stats.origin.Load()
		err := o.stream(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errGap) {
			continue
		}
		if !o.temporary(err) {
			return err
		}
		if o.d.stats.origin.Load() > before {
			tries, pause = 0, originPause
		}
		if tries++; tries >= originTries {
			return err
		}
		o.d.log.Debug("origin failed, trying again", "error", err, "try", tries)
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// temporary reports whether asking again may help.
func (o *originParent) temporary(err error) bool {
	if errors.Is(err, errUnwanted) || errors.Is(err, errSpace) || errors.Is(err, errMetadata) || errors.Is(err, errContradiction) {
		return false
	}
	var wrong *errWrongContent
	var changed *source.ChangedError
	var length *source.LengthError
	var long *tooLongError
	var unshared *source.UnsharedError
	if errors.As(err, &wrong) || errors.As(err, &changed) || errors.As(err, &length) || errors.As(err, &long) || errors.As(err, &unshared) {
		return false
	}
	var refused *source.StatusError
	if errors.As(err, &refused) {
		switch refused.Status {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return true
}

// next returns the first piece at or after i, or else from the beginning, that only the
// origin can bring; the last piece of all only when nothing else is missing. It returns
// false when there is none now.
func (o *originParent) next(i piece.Index) (piece.Index, bool) {
	replica := o.d.ledger.replica
	n := piece.Index(replica.Metadata().Layout().Count())
	have, needed := replica.Have(), o.d.neededNow.Load()
	for _, from := range []piece.Index{i, 0} {
		for ; from < n-1; from++ {
			if from = have.NextMissing(from); from < n-1 && (needed == nil || needed.Has(from)) {
				return from, true
			}
		}
	}
	return n - 1, n > 0 && have.NextMissing(0) == n-1 && (needed == nil || needed.Has(n-1))
}

// stream makes one request and reads its body as far as it is useful.
func (o *originParent) stream(ctx context.Context) error {
	var at piece.Index
	var offset int64
	if o.d.ledger.hasMetadata() {
		var more bool
		if at, more = o.next(0); !more {
			return o.unwanted()
		}
		offset = o.d.ledger.replica.Metadata().Layout().Offset(at)
	}
	spec := o.spec
	if spec.Validator == "" {
		spec.Validator = o.validator
	}
	if o.d.ledger.hasMetadata() {
		spec.Length = o.d.ledger.replica.Metadata().Length
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := o.d.e.cfg.Origin.Open(ctx, spec, offset)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if o.validator == "" {
		o.validator = resp.Validator
	}
	body := o.d.fromOrigin(ctx, resp.Body)
	if resp.Length < 0 && (spec.Known() > 0 || o.d.ledger.hasMetadata()) {
		resp.Length = spec.Known()
	}
	if resp.Length < 0 {
		spooled, err := o.spool(ctx, body)
		if err != nil {
			return err
		}
		defer spooled.Close()
		resp.Length, body = spooled.Len(), spooled.Reader()
	}
	if err := o.facts(resp); err != nil {
		return err
	}
	return o.pieces(ctx, at, body)
}

// unwanted ends what is here completely, or as far as somebody wants it. Where nobody has
// vouched for all of it, this seed does, after it has checked the whole.
func (o *originParent) unwanted() error {
	switch {
	case !o.d.ledger.replica.Have().Full():
		return errUnwanted
	case o.d.ledger.proven():
		return nil
	}
	if err := o.check(nil); err != nil {
		return err
	}
	return o.summarize()
}

// facts notes length and media type as the origin told them.
func (o *originParent) facts(resp *source.Response) error {
	if resp.Length == 0 {
		// Before it counts as complete, which an empty content does at once.
		if err := checkWhole(o.spec, nil); err != nil {
			return err
		}
	}
	known := o.d.ledger.hasMetadata()
	want := o.spec.Length
	if !known {
		want = o.spec.Known()
	} // else a promise is weighed against what is here where its asker is served
	if want > 0 && want != resp.Length {
		return &source.LengthError{Want: want, Got: resp.Length}
	}
	if o.spec.Kind == task.Manifest && resp.Length > oci.ManifestMax {
		return o.d.e.longest(o.spec)
	}
	f := piece.Metadata{Length: resp.Length, PieceSize: o.d.e.cfg.PieceSize(resp.Length), MediaType: resp.MediaType}
	if err := o.d.ledger.setMetadata(f); err != nil {
		if known && errors.Is(err, errMetadata) {
			return &source.LengthError{Want: o.d.ledger.replica.Metadata().Length, Got: resp.Length}
		}
		return err
	}
	if known {
		return nil
	}
	// Peers learn length and layout at once, before the first piece is there.
	if f.Length > 0 {
		if err := o.vouch(0, nil, false); err != nil {
			return err
		}
	}
	o.d.nudge()
	return nil
}

// pieces reads pieces from body, which begins at piece at, until nothing more is wanted.
func (o *originParent) pieces(ctx context.Context, at piece.Index, body io.Reader) error {
	replica := o.d.ledger.replica
	layout := replica.Metadata().Layout()
	n := piece.Index(layout.Count())
	if n == 0 {
		return o.finish(0, nil)
	}
	if o.buf == nil {
		o.buf = make([]byte, min(layout.PieceSize, layout.Length))
	}
	for i := at; i < n; i++ {
		data := o.buf[:layout.Size(i)]
		begun := time.Now()
		if _, err := io.ReadFull(body, data); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reading piece %d of task %s from its origin: %w", i, o.d.id, err)
		}
		if o.whole != nil && o.hashed == layout.Offset(i) {
			o.whole.Write(data)
			o.hashed += int64(len(data))
		}
		if i == n-1 {
			if err := o.ended(body, layout.Length); err != nil {
				return err
			}
			if first, more := o.next(0); more && first < i {
				return fmt.Errorf("%w: piece %d is still missing", errGap, first)
			} else if !more {
				return o.unwanted()
			}
			return o.finish(i, data)
		}
		if stored, ok := replica.Digest(i); !ok {
			if err := o.keep(i, data); err != nil {
				return err
			}
		} else if sum := piece.Sum(data); sum != stored {
			// The whole that is checked in the end must be the whole that is stored.
			return &errWrongContent{want: stored.String(), got: sum.String()}
		}
		o.d.giveWay(ctx, time.Since(begun))
		after, more := o.next(i + 1)
		if !more {
			return o.unwanted()
		}
		if after < i || after > i+skipMax {
			return fmt.Errorf("%w: pieces [%d, %d) are here already", errGap, i+1, after)
		}
	}
	return nil
}

// ended makes sure that the body ends where the content does: one byte more is another content. An
// end that does not come counts for a content without a digest only; else the digest is the better
// proof.
func (o *originParent) ended(body io.Reader, length int64) error {
	var one [1]byte
	n, err := io.ReadFull(body, one[:])
	var wrong *source.LengthError
	_, proven := o.spec.WholeDigest()
	switch {
	case errors.As(err, &wrong):
		return err
	case n > 0:
		return &source.LengthError{Want: length, Got: length + 1, More: true}
	case proven || errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("reading the end of task %s from its origin: %w", o.d.id, err)
}

// errGap asks for a new request further on.
var errGap = errors.New("going on elsewhere in the content")

// keep stores one piece and vouches for it.
func (o *originParent) keep(i piece.Index, data []byte) error {
	sum := piece.Sum(data)
	if want, ok := o.d.ledger.digest(i); ok && want != sum {
		return &errWrongContent{want: want.String(), got: sum.String()}
	}
	if err := o.d.keep(i, data, sum); err != nil {
		return fmt.Errorf("%w: keeping piece %d: %w", errSpace, i, err)
	}
	o.count(len(data))
	o.d.progress.signal()
	if err := o.vouch(i, []piece.Digest{sum}, false); err != nil {
		return err
	}
	o.d.notify(originStored{i})
	return nil
}

// count notes bytes that came from the origin. The loop cannot: it may learn of a piece
// from the store, before it is told of it.
func (o *originParent) count(n int) {
	o.d.count(func(c *counters) *atomic.Int64 { return &c.origin }, int64(n))
}

// vouch signs a run of digests and enters it.
func (o *originParent) vouch(first piece.Index, digests []piece.Digest, final bool) error {
	r := piece.DigestRun{Metadata: o.d.ledger.replica.Metadata(), Epoch: o.epoch, First: first, Digests: digests, Final: final}
	o.d.e.cfg.Signer.SignRun(o.d.id, &r)
	numbers, err := o.d.ledger.add([]piece.DigestRun{r}, [][]byte{o.d.e.cfg.Signer.Certificate()})
	if err != nil {
		return fmt.Errorf("vouching for pieces [%d, %d): %w", first, r.End(), err)
	}
	o.d.notify(originSigned{numbers})
	return nil
}

// check compares the whole content with its digest, if it has one: what is stored, and
// data behind it.
func (o *originParent) check(data []byte) error {
	digest, ok := o.spec.WholeDigest()
	if !ok {
		return nil
	}
	if length := o.d.ledger.replica.Metadata().Length; o.hashed != length {
		// The body did not run through in one go: hash what is stored.
		o.whole.Reset()
		stored := io.NewSectionReader(o.d.ledger.replica, 0, length-int64(len(data)))
		if _, err := io.Copy(o.whole, io.MultiReader(stored, bytes.NewReader(data))); err != nil {
			return fmt.Errorf("%w: checking the whole content: %w", errSpace, err)
		}
		if err := checkSum(digest, o.whole); err != nil {
			// What the own disk spoilt is no word about the origin, nor about what others hold.
			if i, found := o.d.findDamaged(); found {
				return fmt.Errorf("%w: piece %d: %w", errSpace, i, errDamaged)
			}
			return err
		}
		return nil
	}
	return checkSum(digest, o.whole)
}

// finish checks the whole content, of which all but the last piece are stored, and only
// then stores and publishes that piece.
func (o *originParent) finish(last piece.Index, data []byte) error {
	if err := o.check(data); err != nil {
		return err
	}
	if data == nil {
		if err := o.vouch(0, nil, true); err != nil {
			return err
		}
		o.d.nudge()
		return nil
	}
	if err := o.d.keep(last, data, piece.Sum(data)); err != nil {
		return fmt.Errorf("%w: keeping piece %d: %w", errSpace, last, err)
	}
	o.count(len(data))
	o.d.progress.signal()
	if err := o.summarize(); err != nil {
		return err
	}
	o.d.notify(originStored{last})
	return nil
}

// finalMax is how many digests one final run holds: 256 KiB of them, contents up to 32 GiB.
const finalMax = 8192

// summarize signs all digests once more, as those of the checked whole. It is the word
// that tells the last piece, so nobody completes a content without having compared it with
// what he was told of the others before, maybe by another attempt.
func (o *originParent) summarize() error {
	n := o.d.ledger.replica.Metadata().Layout().Count()
	digests := make([]piece.Digest, n)
	for i := range digests {
		sum, ok := o.d.ledger.replica.Digest(piece.Index(i))
		if !ok {
			return fmt.Errorf("%w: piece %d of task %s is not here any more", errSpace, i, o.d.id)
		}
		digests[i] = sum
	}
	for first := 0; first < n; first += finalMax {
		if err := o.vouch(piece.Index(first), digests[first:min(first+finalMax, n)], true); err != nil {
			return err
		}
	}
	return nil
}
