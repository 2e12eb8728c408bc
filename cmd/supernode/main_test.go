package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/darter-io/darter/test/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"supernode": main})
}

// TestScripts runs the scripts in testdata.
func TestScripts(t *testing.T) { cli.Run(t) }
