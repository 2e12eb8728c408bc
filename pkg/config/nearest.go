package config

import (
	"fmt"
	"strings"
)

// suggest names the candidate nearest to a wrong name, when one is near enough to be meant.
func suggest(wrong string, candidates []string) string {
	best, distance := "", max(2, len(wrong)/3)+1
	for _, c := range candidates {
		d := editDistance(strings.ToLower(wrong), strings.ToLower(c))
		// "quota" at the top level means cache.quota.
		if last := c[strings.LastIndex(c, delim)+1:]; strings.EqualFold(last, wrong[strings.LastIndex(wrong, delim)+1:]) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance counts the letters to insert, delete, replace or swap with their neighbour
// that turn a into b (optimal string alignment).
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
