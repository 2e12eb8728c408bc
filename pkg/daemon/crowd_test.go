//go:build !race

package daemon_test

// crowd is how many nodes pull at once in a test that counts each request to the registry.
const crowd = 12

// matrixStep selects the origins of the files' matrix: all of them.
const matrixStep = 1
