package picker_test

import (
	"fmt"
	"time"

	"github.com/darter-io/darter/pkg/peer/picker"
	"github.com/darter-io/darter/pkg/piece"
)

// A download of four pieces has two neighbours. One piece of each is requested at a time, until
// everything is on its way or stored.
func Example() {
	layout := piece.Layout{Length: 4 * piece.SizeMin, PieceSize: piece.SizeMin}
	p := picker.New(picker.Config{Seed: 1}, layout, piece.NewBitmap(layout.Count()))
	all := piece.NewBitmap(layout.Count())
	all.SetAll()
	p.Want(all)

	const a, b picker.Neighbour = 1, 2
	p.Join(a, false)
	p.Join(b, false)
	for i := range piece.Index(2) {
		p.Has(a, i)
		p.Has(b, i+2)
	}

	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for {
		r, ok := p.Next(now)
		if !ok {
			break
		}
		fmt.Printf("request piece %d from neighbour %d\n", r.Piece, r.From)
		p.Requested(r)
	}
	fmt.Println("outstanding:", p.Outstanding())

	p.Ended(b, 2)
	p.Stored(2)
	r, _ := p.Next(now)
	fmt.Printf("request piece %d from neighbour %d\n", r.Piece, r.From)
	// Output:
	// request piece 1 from neighbour 1
	// request piece 2 from neighbour 2
	// outstanding: 2
	// request piece 3 from neighbour 2
}

// A seed chooses itself what it sends: the piece that it has sent least often.
func ExampleSpread() {
	all := piece.NewBitmap(3)
	all.SetAll()
	nothing := piece.NewBitmap(3)

	s := picker.NewSpread(3, 1) // each piece once
	for range 4 {
		i, ok := s.Pick(all, nothing, nil, false)
		if !ok {
			fmt.Println("every piece was sent once: other hosts have them")
			break
		}
		fmt.Println("send piece", i)
		s.Sent(i)
	}
	i, _ := s.Pick(all, nothing, []piece.Index{0}, true) // piece 0 is on its way
	fmt.Println("a host without other sources gets piece", i)
	// Output:
	// send piece 0
	// send piece 1
	// send piece 2
	// every piece was sent once: other hosts have them
	// a host without other sources gets piece 1
}
