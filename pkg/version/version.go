// Package version states which build of Darter a program is.
//
// It never guesses: a part that neither the linker nor the Go toolchain recorded stays empty, and
// the version is then [Unknown]. Start at [Read].
package version

import (
	"cmp"
	"runtime"
	"runtime/debug"
)

// Unknown is the version of a program that was built without the Makefile and outside a git clone.
const Unknown = "devel"

// goDevel is the toolchain's version of a module that it knows no version of. A user agent must not hold
// parentheses there (RFC 9110, section 10.1.5).
const goDevel = "(devel)"

// revisionLen is how many digits of a commit are shown.
const revisionLen = 12

// The Makefile sets both by -ldflags -X, from git describe and git rev-parse.
var version, commit string

// Build describes a program.
type Build struct {
	// Version is a tag such as v1.2.3, git describe's name of a commit after a tag, or the pseudo-version of
	// the module. It ends in -dirty or +dirty if the source tree had uncommitted changes. If nothing recorded
	// one, it is the commit, or else Unknown.
	Version string
	// Commit is the first twelve digits of the commit, empty if nothing recorded it.
	Commit string
	// Go is the version of the toolchain.
	Go string
}

// Read returns what the linker recorded in this program, or else what the toolchain recorded.
func Read() Build {
	info, _ := debug.ReadBuildInfo()
	return read(version, commit, info)
}

// Current is the version alone, for user agents and for comparing programs.
func Current() string { return Read().Version }

func read(version, commit string, info *debug.BuildInfo) Build {
	b := Build{Version: version, Commit: commit, Go: runtime.Version()}
	if info != nil {
		if b.Version == "" && info.Main.Version != goDevel {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && b.Commit == "" {
				b.Commit = s.Value
			}
		}
	}
	b.Commit = b.Commit[:min(revisionLen, len(b.Commit))]
	if b.Version == "" {
		b.Version = cmp.Or(b.Commit, Unknown)
	}
	return b
}

// String is one line for people: "v1.2.3, commit 0123456789ab, go1.26.0".
func (b Build) String() string {
	s := b.Version
	if b.Commit != "" {
		s += ", commit " + b.Commit
	}
	return s + ", " + b.Go
}
