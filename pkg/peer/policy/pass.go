package policy

import "github.com/darter-io/darter/pkg/piece"

const (
	// passBytes is how many bytes ahead of its readers an object comes that no store keeps, and at least
	// passPieces: fewer let the line fall idle between two pieces, more take memory.
	passBytes  = 4 << 20
	passPieces = 4
	// passReaders is how many readers share them; others get a piece at a time, if all are no more than passMost
	// bytes, and else wait for their turn.
	passReaders = 4
	passMost    = 48 << 20
)

// Position is where a reader is: its next byte, and the one behind its last.
type Position struct{ At, End int64 }

// Pass returns the pieces to have of an object that passes by the store: those that its readers, the oldest
// first, need next.
func Pass(layout piece.Layout, readers []Position) piece.Bitmap {
	wanted := piece.NewBitmap(layout.Count())
	window := max(passBytes, passPieces*layout.PieceSize) / int64(max(1, min(len(readers), passReaders)))
	for n, r := range readers {
		if n == passReaders {
			window = 1
		}
		first, end := layout.Span(r.At, max(0, min(window, r.End-r.At)))
		if n >= passReaders && int64(wanted.Count())*layout.PieceSize >= passMost {
			end = first
		}
		for i := first; i < end; i++ {
			wanted.Set(i)
		}
	}
	return wanted
}
