//go:build race

package daemon_test

// crowd is smaller under the race detector: twenty nodes with TLS in one slow process starve
// each other, and then the standbys ask the registry too, as designed.
const crowd = 5

// matrixStep leaves out origins of the files' matrix, because each request is some ten times slower
// here.
const matrixStep = 20
