package sharing

const (
	// windowSize is how many bytes one comparison takes.
	windowSize = 64 << 10
	// early is how far into a file that still comes a comparison may have to wait for it.
	early = 16 << 20
)

// Window is a range of bytes.
type Window struct{ Offset, Length int64 }

// Windows are the ranges of a file that the origin has to give to this asker alike, before the asker
// is given bytes that were brought with the credentials of another: the whole of a small file, else its
// beginning, one range at random, and its end where that is here or comes soon (else see [Tail]). A
// strong ETag should be proof enough; an origin that counts versions for each user gives the same one to
// all. draw returns a number in [0, n).
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
	if room := end - 2*windowSize; room > 0 {
		out = append(out, Window{windowSize + draw(room+1), windowSize})
	}
	return out
}

// Tail is the end of a large file that still comes, where [Windows] leaves it out: it is compared
// before its own bytes are given to the asker.
func Tail(length int64, complete bool) (w Window, later bool) {
	return Window{length - windowSize, windowSize}, !complete && length > early
}
