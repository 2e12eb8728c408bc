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
// beginning, one range at random, and of a file that is here completely its end. A strong ETag
// should be proof enough; an origin that counts versions for each user gives the same one to all. draw
// returns a number in [0, n).
func Windows(length int64, complete bool, draw func(n int64) int64) []Window {
	if length <= 3*windowSize {
		return []Window{{0, length}}
	}
	out := []Window{{0, windowSize}}
	end := length
	if complete {
		end -= windowSize
		out = append(out, Window{end, windowSize})
	} else {
		end = min(end, early)
	}
	if room := end - 2*windowSize; room > 0 {
		out = append(out, Window{windowSize + draw(room+1), windowSize})
	}
	return out
}
