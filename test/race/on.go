//go:build race

package race

// Enabled reports whether the race detector is compiled in.
const Enabled = true

// Divisor is by how much sizes in bytes are divided.
const Divisor = 4
