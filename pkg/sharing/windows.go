package sharing

const (
	// windowSize is the length of one comparison, in bytes.
	windowSize = 64 << 10
	// early bounds the offset, in bytes, up to which a comparison may wait for a file that still downloads.
	early = 16 << 20
)

// Window is a range of bytes.
type Window struct{ Offset, Length int64 }

// Windows returns the ranges to compare before a client gets bytes that were fetched with the credentials of
// another: the origin must give this client the same bytes. A small file is compared whole; a large one at
// its start, at one random range, and at its end if the end is stored or comes soon (else see [Tail]).
//
// A strong ETag alone does not suffice: an origin that counts versions per user gives the same ETag to all users.
// draw returns a random number in [0, n).
func Windows(length int64, complete bool, draw func(n int64) int64) []Window {
	if length <= 3*windowSize {
		return []Window{{0, length}}
	}
	out := []Window{{0, windowSize}}
	end := length
	if _, later := Tail(length, complete); !later {
		end -= windowSize
		out = append(out, Window{end, windowSize})
	} else {
		end = early
	}
	if span := end - 2*windowSize; span > 0 {
		out = append(out, Window{windowSize + draw(span+1), windowSize})
	}
	return out
}

// Tail returns the last window of a file. later is true if [Windows] omits it because a large file still
// downloads; then compare it before the client gets its bytes.
func Tail(length int64, complete bool) (w Window, later bool) {
	return Window{length - windowSize, windowSize}, !complete && length > early
}
