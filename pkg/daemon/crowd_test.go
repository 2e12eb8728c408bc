//go:build !race

package daemon_test

// crowd is how many nodes pull at once where each question to the registry is counted.
const crowd = 12

// matrixStep is which origins of the files' matrix are asked: every one.
const matrixStep = 1
