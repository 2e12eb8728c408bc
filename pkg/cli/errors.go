package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Arguments wraps a check of arguments, nil for a command without any, so that its errors say what the command takes.
// They are [Usage] errors.
func Arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if check == nil {
			if len(given) == 0 {
				return nil
			}
			return Usage(fmt.Errorf("%s takes no arguments, not %q", cmd.CommandPath(), given[0]))
		}
		err := check(cmd, given)
		if err == nil {
			return nil
		}
		if len(given) == 0 {
			err = errors.New("an argument is missing")
		}
		return Usage(fmt.Errorf("%w; write: %s", err, cmd.UseLine()))
	}
}

// unknownCommand is the error for a command that does not exist, with one that was perhaps meant.
func unknownCommand(cmd *cobra.Command, wrong string) error {
	hint := "see " + cmd.CommandPath() + " --help"
	cmd.SuggestionsMinimumDistance = 2 // cobra's own default, which it sets only for its own errors
	if near := cmd.SuggestionsFor(wrong); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q?", near[0])
	}
	return Usage(fmt.Errorf("unknown command %q; %s", wrong, hint))
}

// Joined lists the errors of which err consists, one for one as a program prints them: those that [errors.Join] joined,
// also inside wrappers that add no words; else err alone.
func Joined(err error) []error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		list, ok := inner.(interface{ Unwrap() []error })
		if !ok {
			continue
		}
		var out []error
		var text []string
		for _, one := range list.Unwrap() {
			out = append(out, Joined(one)...)
			text = append(text, one.Error())
		}
		if strings.Join(text, "\n") == err.Error() {
			return out
		}
		break
	}
	return []error{err}
}
