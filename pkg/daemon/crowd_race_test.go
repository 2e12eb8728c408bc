//go:build race

package daemon_test

// crowd is smaller under the race detector: twenty nodes with TLS in one slow process starve
// each other, and then the stand-ins ask the registry too, as they should.
const crowd = 5

// matrixStep leaves out origins of the files' matrix, whose every request is some ten times slower
// here.
const matrixStep = 20
