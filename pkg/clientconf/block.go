package clientconf

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Our part of a file with comments is a block between two of them. The block keeps the lines that it replaces, so that
// removing it restores them. These texts are in users' files: changing them would change those files.
const (
	blockBegin = "# >>> darter: written by \"dfdaemon configure\", taken out by \"dfdaemon configure --remove\""
	blockEnd   = "# <<< darter"
	wasPrefix  = "# was: "

	beginPrefix = "# >>> darter:"
	attrNew     = "; new file, directories made: " // followed by a number
	attrCut     = "; no newline before"
)

// splice is a block that replaces the lines text[at:end].
type splice struct {
	at, end int
	lines   []string
}

// insert inserts blocks into a text; strip is the reverse. fresh is the number of directories that are created for a
// new file, or -1 for an existing file.
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

// strip removes our blocks from a text. It returns nil for a file that was created for them.
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
			return nil, fmt.Errorf("the block that begins in line %d (%s …) has no end (%s): restore the end, or remove the "+
				"block by hand", begin+1, beginPrefix, blockEnd)
		}
		head := string(lines[begin])
		fresh = fresh || strings.Contains(head, attrNew)
		if strings.Contains(head, attrCut) {
			cutAt = len(out)
		}
	}
	if cutAt == len(out) { // unless others have appended since
		out = bytes.TrimSuffix(bytes.TrimSuffix(out, []byte("\n")), []byte("\r"))
	}
	if fresh && len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// dirsOf returns how many directories were created for a file of ours.
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

// fresh is the argument of insert: how many directories were or must be created for a file, or -1 if the file existed
// before.
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

// hasBlock reports whether a text contains a block of ours.
func hasBlock(text []byte) bool {
	return bytes.HasPrefix(text, []byte(beginPrefix)) || bytes.Contains(text, []byte("\n"+beginPrefix))
}

// splitLines splits a text after each newline.
func splitLines(text []byte) [][]byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	return lines
}
