package piece_test

import (
	"fmt"

	"github.com/darter-io/darter/pkg/piece"
)

// A layer of 300 MiB has pieces of 1 MiB on every host, because the layout depends on the length alone.
func ExampleMetadataFor() {
	m := piece.MetadataFor(300<<20, "application/vnd.oci.image.layer.v1.tar+gzip")
	layout := m.Layout()
	fmt.Println(m.PieceSize, layout.Count(), m.Check())

	first, end := layout.Span(1<<20-1, 2) // two bytes across the border of two pieces
	fmt.Println(first, end)
	// Output:
	// 1048576 300 <nil>
	// 0 2
}

// A bitmap is the set of pieces that a host has, and converts to the bitfield of BEP 3.
func ExampleBitmap() {
	have := piece.NewBitmap(10)
	have.Set(0)
	have.Set(1)
	have.Set(9)
	fmt.Println(have.Count(), have.NextMissing(0), have.Full())
	fmt.Printf("%08b\n", have.Bytes())
	// Output:
	// 3 2 false
	// [11000000 01000000]
}

// A run with the digest of the last piece must be final: a coordinator signs it only after it checked the whole task.
func ExampleDigestRun_Check() {
	run := piece.DigestRun{
		Metadata: piece.Metadata{Length: 250, PieceSize: 100}, // three pieces
		First:    1,
		Digests:  []piece.Digest{piece.Sum([]byte("piece 1")), piece.Sum([]byte("piece 2"))},
	}
	fmt.Println(run.End(), run.Check())
	run.Final = true
	fmt.Println(run.Check())
	// Output:
	// 3 invalid metadata: the last of 3 pieces in a run that is not final
	// <nil>
}
