package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/config"
)

func TestCommandErrors(t *testing.T) {
	root := &cobra.Command{Use: "program [flags]"}
	for _, name := range []string{"status", "purge"} {
		root.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	assert.EqualError(t, unknownCommand(root, "statsu"), `unknown command "statsu"; did you mean "status"?`)
	assert.EqualError(t, unknownCommand(root, "zebra"), `unknown command "zebra"; see program --help`)

	check := func(use string, args cobra.PositionalArgs, given ...string) error {
		cmd := &cobra.Command{Use: use}
		root.AddCommand(cmd)
		return Arguments(args)(cmd, given)
	}
	assert.NoError(t, check("doctor", nil))
	assert.EqualError(t, check("doctor", nil, "x"), `program doctor takes no arguments, not "x"`)
	assert.NoError(t, check("configure a|b", cobra.ExactArgs(1), "a"))
	assert.EqualError(t, check("configure a|b", cobra.ExactArgs(1)),
		"an argument is missing; write: program configure a|b")
	assert.ErrorContains(t, check("configure a|b", cobra.ExactArgs(1), "a", "b"), "; write: program configure a|b")
}

func TestJoined(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c\nadvice")
	for want, err := range map[string]error{
		"[a]":             a,
		"[a b]":           errors.Join(a, b),
		"[a b c\nadvice]": errors.Join(a, errors.Join(b, c)),
		"[a]+":            &config.InvalidError{Err: errors.Join(a)},
		"[a b]+":          &config.InvalidError{Err: errors.Join(a, b)},
		"[of a: b]":       fmt.Errorf("of %w: %w", a, b),
		"[of a\nb]":       fmt.Errorf("of %w", errors.Join(a, b)),
		"[c\nadvice]":     c,
	} {
		assert.Equal(t, strings.TrimSuffix(want, "+"), fmt.Sprint(Joined(err)))
	}
}
