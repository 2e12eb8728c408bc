package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/test/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"supernode": main})
}

func TestTheCommandLineDoesWhatItSays(t *testing.T) { cli.Run(t) }
