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

// editDistance is how many letters must be inserted, deleted, replaced or swapped with their neighbour to turn a into b
// (optimal string alignment).
func editDistance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(x)][len(y)]
}
