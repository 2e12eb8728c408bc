package peer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/peer/policy"
	"github.com/darter-io/darter/pkg/peer/wire"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/rendezvous"
	"github.com/darter-io/darter/pkg/source"
	"github.com/darter-io/darter/pkg/task"
)

const (
	// originTries is how often in a row an origin may fail without sending one byte.
	originTries = 4
	// originPause is the wait before the second try; it doubles.
	originPause = 100 * time.Millisecond
	// tryBytes is how many bytes a request must bring to reset the count of failed tries.
	tryBytes = 64 << 10
	// slowOpen bounds the timeouts that are repeated: if an origin has not answered for slowOpen or longer, this host does
	// not ask again, because it has waited as long as the operator allows.
	slowOpen = 20 * time.Second
	// skipMin and skipMax bound how many bytes of stored pieces this host reads past before it makes a new request behind
	// them instead: the bytes of skipTime are on their way anyway. A host that is late cannot measure how fast they
	// come, and a socket holds a few MiB that came while the host did not run: it reads past skipMax.
	skipMin  = 256 << 10
	skipMax  = 4 << 20
	skipTime = 50 * time.Millisecond
)

// errUnwanted ends the reading of an origin of which no more pieces are wanted.
var errUnwanted = errors.New("nothing more is wanted")

// errWrongContent means that the origin's bytes do not match their digest.
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

// checkWhole compares a whole object with its digest, if the task has one.
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

// origin is what a download's loop and the goroutine that reads its origin share. Safe for concurrent
// use, but for stop, which the loop owns.
type origin struct {
	// needed are the pieces that only the origin can bring.
	needed atomic.Pointer[piece.Bitmap]
	// awaited says that a reader here or a neighbour waits for the origin's bytes.
	awaited atomic.Bool
	// read grows while bytes of a body of unknown length come.
	read atomic.Int64
	// firstSpec is the first spec with which this host asked the origin, nil where it did not; mixed says that
	// it asked for another client later, or that some of the object was stored before.
	firstSpec atomic.Pointer[task.Spec]
	mixed     atomic.Bool
	stop      context.CancelCauseFunc
}

// startOrigin makes the origin a parent of this download.
func (d *Download) startOrigin(now time.Time) {
	if d.refuseToPass() {
		return
	}
	ctx, cancel := context.WithCancelCause(d.ctx)
	d.policy.OriginBegun()
	d.notePassing()
	d.origin.stop = cancel
	for _, c := range d.conns.open {
		c.remote.vain = c.remote.origin != wire.NoOrigin // otherwise this host would still leave the origin to it
	}
	d.updateWanted(now) // what only the origin can bring has changed since the last look
	d.helloAgain()
	o := &originParent{d: d, ctx: ctx, spec: d.wants.spec, epoch: d.e.newEpoch()}
	if d.e.wasWrong(d.id) {
		o.ahead.failed = aheadFailures // perhaps only its ranges were wrong
	}
	d.parent = o
	if first := d.origin.firstSpec.Load(); first == nil {
		d.origin.firstSpec.Store(&o.spec)
	} else if !first.SameAsker(o.spec) {
		d.origin.mixed.Store(true)
	}
	d.wg.Go(func() {
		defer cancel(nil)
		err := o.safely(ctx)
		cancel(nil)
		o.ahead.close()
		d.notify(originEnded{o, err})
	})
}

// steerOrigin does what the policy decides about the origin.
func (d *Download) steerOrigin(now time.Time, v policy.View) {
	step := d.policy.Origin(now, v)
	switch step {
	case policy.Leave:
		return
	case policy.Ask:
		d.startOrigin(now)
	case policy.Stop:
		d.origin.stop(errUnwanted)
	}
	d.decided(now, step, v)
}

// rank is how many of the neighbours in this download come before this host in the order
// in which hosts stand in for a lost owner: every neighbour that knows the same hosts
// computes the same order, so that one of them asks the origin and not all. A host that is late comes last.
func (d *Download) rank() int {
	self := string(d.e.cfg.Host.ID)
	hosts := []string{self}
	for _, c := range d.conns.open {
		if c.remote.host != "" {
			hosts = append(hosts, string(c.remote.host))
		}
	}
	if d.e.cfg.Lag.Late() {
		return len(hosts) - 1
	}
	return slices.Index(rendezvous.Order(string(d.id), hosts), self)
}

// readerUseful is for how long after its last piece a reader of the origin counts as one that gets bytes from it.
const readerUseful = 3 * time.Second

// outranked reports whether a neighbour reads the origin with success for all hosts, or for itself and comes before
// this host in the order of hosts.
func (d *Download) outranked() bool {
	if !d.sameForAll() {
		return false
	}
	now, self := time.Now(), string(d.e.cfg.Host.ID)
	for _, c := range d.conns.open {
		if c.readsOrigin(now) && !c.remote.vain && now.Sub(c.seen.haveAt) < readerUseful && (c.remote.origin == wire.ForAll ||
			rendezvous.Order(string(d.id), []string{self, string(c.remote.host)})[0] != self) {
			return true
		}
	}
	return false
}

func (d *Download) originEnded(now time.Time, o *originParent, err error) {
	d.parent = nil
	end := func(how policy.OriginEnd) { d.policy.OriginEnded(now, how) }
	var wrong *errWrongContent
	var length *source.LengthError
	switch {
	case err == nil:
		end(policy.Ended)
	case errors.Is(err, errUnwanted):
		end(policy.Unwanted)
	case errors.As(err, &wrong):
		end(policy.Ended)
		d.originWrong(now, o, wrong)
	case errors.Is(err, errContradiction), errors.As(err, &length) && d.proof.hasMetadata():
		end(policy.Ended)
		d.originWrong(now, o, err)
	case d.ctx.Err() != nil:
		// This host stops. As a failure of the origin, that would fail the neighbours' downloads.
		end(policy.Ended)
		d.fail(ErrStopped)
	case errors.Is(err, errDamaged):
		// This is no failure of the origin: neighbours get the pieces once this host has them again.
		end(policy.Ended)
		d.forgetDamaged(err)
		d.fail(errDamaged)
		if d.wants.everything() {
			d.seedAgain()
		}
	case errors.Is(err, errSpace):
		end(policy.Failed)
		d.end.failHere(err)
	case d.othersHaveMore():
		d.log.Info("origin failed, going on with what peers have", "error", err)
		end(policy.PeersGoOn)
	default:
		end(policy.Failed)
		d.end.failFor(o.spec, o.words(err))
	}
}

// words converts an origin's error to the failure that clients get, and names the registry that sent it.
func (o *originParent) words(err error) *api.Failure {
	f := source.Failure(err)
	f.Upstream, f.Repository, f.Asker = o.spec.Upstream, o.spec.Repository, o.spec.Asker(o.d.e.namesKey())
	var length *source.LengthError
	f.Promise = errors.As(err, &length) && o.spec.Length == 0 && length.Want == o.spec.Promised
	// A file that is not as long as its HEAD said has changed since, or the HEAD is wrong.
	f.Changed = f.Changed || length != nil && o.spec.Kind == task.Plain
	return f
}

// othersHaveMore reports whether any neighbour has a piece that is missing here.
func (d *Download) othersHaveMore() bool {
	for n := range d.conns.open {
		if d.pick != nil && d.pick.HasMore(n) {
			return true
		}
	}
	return false
}

// originWrong drops everything that came with the wrong bytes, here and at every neighbour. This host asks
// the origin once more; then the download fails.
func (d *Download) originWrong(now time.Time, o *originParent, wrong error) {
	// What is stored mixes the bytes of all attempts: any of them may be the wrong one.
	var list []piece.Revocation
	epochs := d.proof.epochs()
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
		d.policy.OriginEnded(now, policy.Failed)
		f := o.words(wrong)
		var length *source.LengthError
		f.Wrong = !errors.As(wrong, &length)
		d.end = outcome{f, causeOrigin, &o.spec}
	case d.wants.everything():
		if errors.Is(d.end.err, ErrRevoked) {
			d.end.cause = causeRetry
		}
		d.seedAgain()
	}
}

// seedAgain begins the download once more when this one is over.
func (d *Download) seedAgain() {
	spec := d.wants.spec
	d.e.wg.Go(func() {
		<-d.done
		d.e.Seed(spec)
	})
}

// originParent reads the origin's body, cuts it into pieces, stores them and signs their digests: it is to
// the origin what a conn is to a peer.
type originParent struct {
	d     *Download
	ctx   context.Context // of its requests
	spec  task.Spec
	epoch uint64
	ahead fetches
	// whole hashes the object as long as the body comes from its first byte without a gap; hashed is how
	// far it got.
	whole  hash.Hash
	hashed int64
	// validator is that of the version to which the first bytes belong.
	validator string
	buf       []byte
	// part is the piece of which buf holds the first bytes, after a body that ended inside it.
	part struct {
		index piece.Index
		bytes int64
	}
	read int64 // bytes of all bodies
}

// slowError says that an origin did not begin to answer in the time that it has.
type slowError struct{ error }

func (e slowError) Unwrap() error { return e.error }

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
		before, read := o.d.stats.origin.Load(), o.read
		changed := o.ahead.changed.wait()
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
		if errors.Is(err, errWait) {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		if !o.temporary(err) {
			return err
		}
		if o.d.stats.origin.Load() > before || o.read-read >= tryBytes {
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
	if errors.Is(err, errUnwanted) || errors.Is(err, errSpace) || errors.Is(err, errMetadata) ||
		errors.Is(err, errContradiction) {
		return false
	}
	var wrong *errWrongContent
	var changed *source.ChangedError
	var length *source.LengthError
	var long *tooLongError
	var unshared *source.UnsharedError
	var slow slowError
	if errors.As(err, &slow) || errors.As(err, &wrong) || errors.As(err, &changed) || errors.As(err, &length) ||
		errors.As(err, &long) || errors.As(err, &unshared) {
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
// origin can bring and no further GET does; the last piece of all only when nothing else is missing. It
// returns false when there is none now. waiting says that further GETs run.
func (o *originParent) next(i piece.Index) (at piece.Index, more, waiting bool) {
	claimed := o.ahead.claimed() // before have: a further GET that ends in between has stored its pieces
	replica := o.d.proof.replica
	n := piece.Index(replica.Metadata().Layout().Count())
	have, needed := replica.Have(), o.d.origin.needed.Load()
	wanted := func(i piece.Index) bool { return (needed == nil || needed.Has(i)) && !claims(claimed, i) }
	for _, from := range []piece.Index{i, 0} {
		for ; from < n-1; from++ {
			if from = have.NextMissing(from); from < n-1 && wanted(from) {
				return from, true, false
			}
		}
	}
	return n - 1, n > 0 && have.NextMissing(0) == n-1 && wanted(n-1), len(claimed) > 0
}

// stream makes one request and reads its body as far as it is useful.
func (o *originParent) stream(ctx context.Context) error {
	var at piece.Index
	var offset int64
	if o.d.proof.hasMetadata() {
		var more, waiting bool
		layout := o.d.proof.replica.Metadata().Layout()
		switch at, more, waiting = o.next(0); {
		case !more && waiting:
			return errWait
		case !more:
			return o.unwanted()
		case int(at) == layout.Count()-1:
			if data := o.ahead.lastPiece(); data != nil {
				return o.finish(at, data)
			}
		}
		o.ahead.stream(at)
		offset = layout.Offset(at)
		// A file without a validator cannot be continued: the next answer may be another version.
		if at == o.part.index && (o.spec.Kind != task.Plain || o.spec.Validator != "" || o.validator != "") {
			offset += o.part.bytes
		} else {
			o.part.bytes = 0
		}
	}
	spec := o.spec
	if spec.Validator == "" {
		spec.Validator = o.validator
	}
	if o.d.proof.hasMetadata() {
		spec.Length = o.d.proof.replica.Metadata().Length
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := time.Now()
	stop := o.stop(at)
	var resp *source.Response
	var err error
	if stop > 0 {
		layout := o.d.proof.replica.Metadata().Layout()
		resp, err = source.OpenPart(ctx, o.d.e.cfg.Origin, spec, offset, layout.Offset(stop))
	} else {
		resp, err = o.d.e.cfg.Origin.Open(ctx, spec, offset)
	}
	if err != nil {
		late := errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.ETIMEDOUT)
		if late && time.Since(begun) >= slowOpen {
			err = slowError{err}
		}
		return err
	}
	defer resp.Body.Close()
	if resp.Skips {
		o.ahead.noteWhole()
	}
	if o.validator == "" {
		o.validator = resp.Validator
	}
	body := o.d.fromOrigin(ctx, resp.Body)
	if resp.Length < 0 && (spec.Known() > 0 || o.d.proof.hasMetadata()) {
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
	return o.pieces(ctx, at, stop, o.paced(body))
}

// skip is how many bytes of stored pieces this host reads past.
func (o *originParent) skip() int64 {
	switch {
	case o.ahead.sendsWhole():
		return math.MaxInt64
	case o.d.e.cfg.Lag.Late():
		return skipMax
	}
	return max(skipMin, min(int64(o.ahead.pace.rate(time.Now())*skipTime.Seconds()), skipMax))
}

// stop returns the piece before which a request from at ends: behind it come so many pieces that are stored, or that
// further GETs bring, that a new request is better than reading past them. It is 0 for a request that goes to the end.
func (o *originParent) stop(at piece.Index) piece.Index {
	if at == 0 || !o.d.proof.hasMetadata() || o.ahead.sendsWhole() {
		return 0
	}
	claimed := o.ahead.claimed()
	have := o.d.proof.replica.Have()
	size := o.d.proof.replica.Metadata().PieceSize
	first, skip := at, o.skip()
	for i := at + 1; int(i) < have.Len(); i++ {
		switch {
		case !have.Has(i) && !claims(claimed, i):
			first = i
		case int64(i-first)*size > skip:
			return first + 1
		}
	}
	return 0
}

// unwanted ends the reading where everything that is wanted is stored. Where the whole is stored and no
// coordinator has signed all of it, this seed does, after it has compared the whole with its digest.
func (o *originParent) unwanted() error {
	switch {
	case !o.d.proof.replica.Have().Full():
		return errUnwanted
	case o.d.proof.coversAll():
		return nil
	}
	if err := o.check(nil); err != nil {
		return err
	}
	return o.summarize()
}

// facts takes the length and the media type of the origin's response.
func (o *originParent) facts(resp *source.Response) error {
	if resp.Length == 0 {
		// First, because an empty object is complete at once.
		if err := checkWhole(o.spec, nil); err != nil {
			return err
		}
	}
	known := o.d.proof.hasMetadata()
	want := o.spec.Length
	if !known {
		want = o.spec.Known()
	} // otherwise a promised length concerns only its own client, and the mirror compares it
	if want > 0 && want != resp.Length {
		return &source.LengthError{Want: want, Got: resp.Length}
	}
	if o.spec.Kind == task.Manifest && resp.Length > oci.ManifestMax {
		return manifestTooLong
	}
	f := piece.Metadata{Length: resp.Length, PieceSize: o.d.e.cfg.PieceSize(resp.Length), MediaType: resp.MediaType}
	if err := o.d.proof.setMetadata(f); err != nil {
		if known && errors.Is(err, errMetadata) {
			return &source.LengthError{Want: o.d.proof.replica.Metadata().Length, Got: resp.Length}
		}
		return err
	}
	if known {
		return nil
	}
	// Peers get length and piece size at once, before the first piece is stored.
	if f.Length > 0 {
		if err := o.vouch(0, nil, false); err != nil {
			return err
		}
	}
	o.d.nudge()
	return nil
}

// pieces reads pieces from body, which begins at piece at and ends before piece stop, if that is not 0, until
// nothing more is wanted.
func (o *originParent) pieces(ctx context.Context, at, stop piece.Index, body io.Reader) error {
	replica := o.d.proof.replica
	layout := replica.Metadata().Layout()
	count := piece.Index(layout.Count())
	if count == 0 {
		return o.finish(0, nil)
	}
	if o.buf == nil {
		o.buf = make([]byte, min(layout.PieceSize, layout.Length))
	}
	if stop == 0 {
		stop = count
	}
	for i := at; i < stop; i++ {
		data := o.buf[:layout.Size(i)]
		begun := time.Now()
		have := o.part.bytes
		n, err := io.ReadFull(body, data[have:])
		o.read += int64(n)
		if err != nil {
			o.part.index, o.part.bytes = i, have+int64(n)
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reading piece %d of task %s from its origin: %w", i, o.d.id, err)
		}
		o.part.bytes = 0
		_ = o.hashStored(layout.Offset(i)) // the check of the whole tries again, and returns the error
		if o.whole != nil && o.hashed == layout.Offset(i) {
			o.whole.Write(data)
			o.hashed += int64(len(data))
		}
		if i == count-1 {
			if err := o.ended(body, layout.Length); err != nil {
				return err
			}
			switch first, more, waiting := o.next(0); {
			case more && first < i:
				o.keepLast(data)
				return fmt.Errorf("%w: piece %d is still missing", errGap, first)
			case !more && waiting:
				o.keepLast(data)
				return errWait
			case !more:
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
		o.ahead.stream(i + 1)
		o.d.origin.giveWay(ctx, &o.d.e.waited, time.Since(begun))
		after, more, waiting := o.next(i + 1)
		switch {
		case !more && waiting:
			return errWait
		case !more:
			return o.unwanted()
		case after < i || int64(after-i-1)*layout.PieceSize > o.skip():
			return fmt.Errorf("%w: pieces [%d, %d) are stored already", errGap, i+1, after)
		}
	}
	return fmt.Errorf("%w: the range ends before piece %d", errGap, stop)
}

// ended makes sure that the body ends with the object: with one byte more it is another object. An end
// that does not come is an error for an object without a digest only; else the digest is the better proof.
func (o *originParent) ended(body io.Reader, length int64) error {
	var one [1]byte
	n, err := io.ReadFull(body, one[:])
	var wrong *source.LengthError
	_, hasDigest := o.spec.WholeDigest()
	switch {
	case errors.As(err, &wrong):
		return err
	case n > 0:
		return &source.LengthError{Want: length, Got: length + 1, More: true}
	case hasDigest || errors.Is(err, io.EOF):
		return nil
	}
	return fmt.Errorf("reading the end of task %s from its origin: %w", o.d.id, err)
}

// errGap asks for a new request at a later offset.
var errGap = errors.New("continuing at another offset")

// keep stores one piece and signs its digest.
func (o *originParent) keep(i piece.Index, data []byte) error {
	sum := piece.Sum(data)
	if want, ok := o.d.proof.digest(i); ok && want != sum {
		return &errWrongContent{want: want.String(), got: sum.String()}
	}
	if err := o.d.stored.keep(i, data, sum); err != nil {
		return fmt.Errorf("%w: keeping piece %d: %w", errSpace, i, err)
	}
	// A further GET or a neighbour may have brought it meanwhile, and a stored piece is not written again: the
	// whole that is checked in the end must be the whole that is stored.
	if stored, ok := o.d.proof.replica.Digest(i); ok && stored != sum {
		return &errWrongContent{want: stored.String(), got: sum.String()}
	}
	o.count(len(data))
	o.d.progress.signal()
	if err := o.vouch(i, []piece.Digest{sum}, false); err != nil {
		return err
	}
	o.d.notify(originStored{i})
	return nil
}

// count counts bytes from the origin. The loop cannot count them: it may find a piece in the store before
// the event comes.
func (o *originParent) count(n int) {
	o.d.count(func(n *counters) *atomic.Int64 { return &n.origin }, int64(n))
}

// vouch signs a run of digests and adds it to the proof.
func (o *originParent) vouch(first piece.Index, digests []piece.Digest, final bool) error {
	r := piece.DigestRun{Metadata: o.d.proof.replica.Metadata(), Epoch: o.epoch, First: first,
		Digests: digests, Final: final}
	o.d.e.cfg.Signer.SignRun(o.d.id, &r)
	numbers, err := o.d.proof.add([]piece.DigestRun{r}, [][]byte{o.d.e.cfg.Signer.Certificate()})
	if err != nil {
		return fmt.Errorf("vouching for pieces [%d, %d): %w", first, r.End(), err)
	}
	o.d.notify(originSigned{numbers})
	return nil
}

// keepLast keeps the last piece, which came before others, until they are here.
func (o *originParent) keepLast(data []byte) {
	if o.whole != nil {
		o.ahead.keepLast(data)
	}
}

// hashStored goes on with the hash over stored pieces that the stream left out, at most up to an offset.
func (o *originParent) hashStored(end int64) error {
	if o.whole == nil || o.hashed >= end {
		return nil
	}
	layout := o.d.proof.replica.Metadata().Layout()
	buf := o.d.e.buffers.get(blockSize)
	defer o.d.e.buffers.put(buf)
	for o.hashed < end && o.d.proof.replica.Has(layout.At(o.hashed)) {
		begin, block, err := o.d.stored.readBlock(buf, o.hashed)
		if err != nil {
			return err
		}
		block = block[o.hashed-begin:]
		o.whole.Write(block)
		o.hashed += int64(len(block))
	}
	return nil
}

// check compares the whole object with its digest, if it has one: what is stored, and data behind it.
func (o *originParent) check(data []byte) error {
	digest, ok := o.spec.WholeDigest()
	if !ok {
		return nil
	}
	if length := o.d.proof.replica.Metadata().Length; o.hashed != length {
		// The hash has not seen the whole body in order: hash what is stored.
		stored := length - int64(len(data))
		err := o.hashStored(stored)
		if err == nil && o.hashed != stored {
			err = piece.ErrMissing
		}
		if err != nil {
			return fmt.Errorf("%w: checking the whole object: %w", errSpace, err)
		}
		o.whole.Write(data)
		o.hashed = length
	}
	err := checkSum(digest, o.whole)
	if err != nil {
		// Damage on this host's disk says nothing of the origin, nor of other hosts' copies.
		if i, found := o.d.stored.findDamaged(); found {
			return fmt.Errorf("%w: piece %d: %w", errSpace, i, errDamaged)
		}
	}
	return err
}

// finish checks the whole object, of which all but the last piece are stored, and only then stores and
// publishes that piece.
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
	if err := o.d.stored.keep(last, data, piece.Sum(data)); err != nil {
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

// finalMax is how many digests one final run holds: 256 KiB of them, for objects up to 32 GiB.
const finalMax = 8192

// summarize signs all digests once more, as those of the checked whole. This run brings the digest of the
// last piece, so no host completes an object without comparing the run with the digests that it got before,
// maybe of another attempt.
func (o *originParent) summarize() error {
	n := o.d.proof.replica.Metadata().Layout().Count()
	digests := make([]piece.Digest, n)
	for i := range digests {
		sum, ok := o.d.proof.replica.Digest(piece.Index(i))
		if !ok {
			return fmt.Errorf("%w: piece %d of task %s is not stored any more", errSpace, i, o.d.id)
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

// safely is run, and turns a panic into an error: the process has other downloads.
func (o *originParent) safely(ctx context.Context) (err error) {
	defer source.Rescue(&err, "bringing task "+o.d.id.Short()+" from its origin")
	return o.run(ctx)
}
