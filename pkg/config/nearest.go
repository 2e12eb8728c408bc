package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// suggest returns the question whether the candidate nearest to a wrong name was meant, or nothing.
func suggest(wrong string, candidates []string) string {
	if near := nearest(wrong, candidates); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

// nearest returns the candidate nearest to a wrong name, or nothing if none is near.
func nearest(wrong string, candidates []string) string {
	best, distance := "", max(2, len(wrong)/3)+1
	for _, c := range candidates {
		d := editDistance(strings.ToLower(wrong), strings.ToLower(c))
		// "quota" at the top level means cache.quota, and --quota means --cache-quota.
		last, wrongLast := c[strings.LastIndex(c, delim)+1:], wrong[strings.LastIndex(wrong, delim)+1:]
		if strings.EqualFold(last, wrongLast) || endsIn(c, wrong) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = c, d
		}
	}
	return best
}

// endsIn reports whether a flag or variable ends in the words of another.
func endsIn(c, wrong string) bool {
	c, wrong = strings.ToLower(c), strings.ToLower(strings.TrimPrefix(wrong, EnvPrefix))
	return strings.HasSuffix(c, "-"+wrong) || strings.HasSuffix(c, "_"+wrong)
}

// FlagError adds the nearest flag to the error of an unknown one.
func FlagError(flags *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return err
	}
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := nearest(unknown.GetSpecifiedName(), names); near != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, near)
	}
	return err
}

// editDistance is how many bytes must be inserted, deleted or replaced to turn a into b (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1) // the distances from the first i bytes of a
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
