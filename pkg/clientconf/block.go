package clientconf

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// What we write into a file that has comments stands between two of them. Lines of the file
// that it replaces are kept inside, so that taking the block out restores them.
const (
	blockBegin = "# >>> darter: written by \"dfdaemon configure\", taken out by \"dfdaemon configure --remove\""
	blockEnd   = "# <<< darter"
	wasPrefix  = "# was: "

	beginPrefix = "# >>> darter:"
	attrNew     = "; new file, directories made: " // and a number
	attrCut     = "; no newline before"
)

// splice is one place of a text where a block goes in, in place of the lines
// text[at:end].
type splice struct {
	at, end int
	lines   []string
}

// insert puts blocks into a text. fresh is the number of directories that a new file brings,
// or -1 for a file that was there. What it returns is restored by strip.
func insert(text []byte, fresh int, splices ...splice) []byte {
	eol := "\n"
	if i := bytes.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		eol = "\r\n"
	}
	sort.Slice(splices, func(i, j int) bool { return splices[i].at < splices[j].at })
	var out []byte
	from := 0
	for _, s := range splices {
		out = append(out, text[from:s.at]...)
		begin := blockBegin
		if fresh >= 0 {
			begin += attrNew + strconv.Itoa(fresh)
		}
		var was []byte
		for _, l := range splitLines(text[s.at:s.end]) {
			was = append(append(was, wasPrefix...), l...)
		}
		switch {
		case len(was) > 0 && was[len(was)-1] != '\n':
			begin, was = begin+attrCut, append(was, eol...)
		case len(was) == 0 && len(out) > 0 && out[len(out)-1] != '\n':
			begin, out = begin+attrCut, append(out, eol...)
		}
		out = append(append(out, begin+eol...), was...)
		for _, l := range append(s.lines, blockEnd) {
			out = append(out, l+eol...)
		}
		from = s.end
	}
	return append(out, text[from:]...)
}

// strip takes our blocks out of a text. It returns nil for a file that was made for them
// alone.
func strip(text []byte) ([]byte, error) {
	if text == nil {
		return nil, nil
	}
	out, fresh, cutAt := []byte{}, false, -1
	lines := splitLines(text)
	for i := 0; i < len(lines); i++ {
		if !bytes.HasPrefix(lines[i], []byte(beginPrefix)) {
			out = append(out, lines[i]...)
			continue
		}
		begin := i
		for i++; i < len(lines) && !bytes.HasPrefix(lines[i], []byte(blockEnd)); i++ {
			if was, ok := bytes.CutPrefix(lines[i], []byte(wasPrefix)); ok {
				out = append(out, was...)
			}
		}
		if i == len(lines) {
			return nil, fmt.Errorf("the block that begins in line %d (%s …) has no end (%s): put the end back, or take the block out by hand", begin+1, beginPrefix, blockEnd)
		}
		head := string(lines[begin])
		fresh = fresh || strings.Contains(head, attrNew)
		if strings.Contains(head, attrCut) {
			cutAt = len(out)
		}
	}
	if cutAt == len(out) { // unless others wrote behind it since
		out = bytes.TrimSuffix(bytes.TrimSuffix(out, []byte("\n")), []byte("\r"))
	}
	if fresh && len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// dirsOf tells how many directories were made for a file of ours.
func dirsOf(text []byte) (n int) {
	_, after, ok := strings.Cut(string(text), attrNew)
	if !ok {
		return 0
	}
	end := strings.IndexFunc(after, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(after)
	}
	n, _ = strconv.Atoi(after[:end])
	return min(n, 8)
}

// fresh is what insert wants to know of a file: the directories that were or are to be made
// for it, or -1 when the file was there before us.
func (p *planner) fresh(path string) int {
	now, _ := p.files.read(path)
	switch {
	case now == nil:
		return p.files.missingDirs(path)
	case strings.Contains(string(now), attrNew):
		return dirsOf(now)
	}
	return -1
}

// hasBlock reports whether a text has something of ours in it.
func hasBlock(text []byte) bool {
	return bytes.HasPrefix(text, []byte(beginPrefix)) || bytes.Contains(text, []byte("\n"+beginPrefix))
}

// splitLines cuts a text after each newline.
func splitLines(text []byte) [][]byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	return lines
}
