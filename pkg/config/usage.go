package config

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// Widths of --help in columns: the default without a terminal, and the bounds for a terminal's width.
const (
	widthDefault = 100
	widthMin     = 60
	widthMax     = 120
)

// Explain sets the --help text of a command: the flags in the sections of the settings, a line or two each, as wide as
// the terminal, and then the other places for settings. Subcommands without a form of their own inherit it.
func (f *Form) Explain(cmd *cobra.Command) {
	cmd.SetUsageFunc(func(cmd *cobra.Command) error { return f.usage(cmd) })
}

// usage writes --help without its first paragraph.
func (f *Form) usage(cmd *cobra.Command) error {
	width := helpWidth()
	var b strings.Builder
	b.WriteString("Usage:\n")
	if cmd.Runnable() {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n", cmd.CommandPath())
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\nCommands:\n")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() || c.Name() == "help" {
				fmt.Fprintf(&b, "  %-*s %s\n", c.NamePadding(), c.Name(), wrap(c.Short, 3+c.NamePadding(), width))
			}
		}
	}
	for _, s := range f.sections(cmd) {
		if len(s.entries) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n", s.title)
		for _, e := range s.entries {
			e.write(&b, width)
		}
	}
	if !cmd.HasParent() {
		s := f.find(func(s *setting) bool { return s.Type() == "size" || s.Type() == "rate" }) // every program has one
		text := fmt.Sprintf("Every setting has three names: --%s is also %s in the environment and %s in the file "+
			"of --config. Flags override variables, variables override the file. Sizes are written 64MiB or "+
			"500MB, rates 100MiB/s or 800Mbit/s, durations 500ms, 30s or 2h.", s.flag(), s.env(), s.key)
		if f.find(func(s *setting) bool { return s.reload }) != nil {
			text += " SIGHUP reloads the file and logs which changes need a restart. --print-config shows the " +
				"settings in force."
		}
		b.WriteString("\n" + wrap(text+" docs/configuration.md describes every setting in full.", 0, width) + "\n")
		if cmd.HasAvailableSubCommands() {
			fmt.Fprintf(&b, "\nRun %s COMMAND --help for more about a command.\n", cmd.CommandPath())
		}
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}

// section is a part of --help.
type section struct {
	title   string
	entries []entry
}

// entry is one flag, or a variable where a setting has no flag.
type entry struct{ name, text string }

// nameWidth is the column of an entry's text. A longer name has a line of its own.
const nameWidth = 34

func (e entry) write(b *strings.Builder, width int) {
	text := wrap(e.text, nameWidth, width)
	if len(e.name)+2 > nameWidth {
		fmt.Fprintf(b, "%s\n%*s%s\n", e.name, nameWidth, "", text)
		return
	}
	fmt.Fprintf(b, "%-*s%s\n", nameWidth, e.name, text)
}

// wrap breaks a text into lines. Each line but the first begins with the indent; the caller has written the first one.
func wrap(text string, indent, width int) string {
	var b strings.Builder
	at := indent
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// sections returns the entries of a command's --help: first those outside the sections, then the sections in the order
// of the settings.
func (f *Form) sections(cmd *cobra.Command) []*section {
	list := []*section{{title: "Flags"}}
	add := func(key string, e entry) {
		title := "Flags"
		if name, _, deep := strings.Cut(key, delim); name == "api" {
			title = "API"
		} else if deep {
			title = strings.ToUpper(name[:1]) + name[1:]
		}
		i := slices.IndexFunc(list, func(s *section) bool { return s.title == title })
		if i < 0 {
			i, list = len(list), append(list, &section{title: title})
		}
		list[i].entries = append(list[i].entries, e)
	}
	flags := cmd.LocalFlags()
	settings := map[string]bool{}
	for _, s := range f.settings {
		settings[s.flag()] = true
		fl := flags.Lookup(s.flag())
		switch {
		case s.noFlag && !cmd.HasParent():
			add(s.key, entry{"      " + s.env(), f.brief(s)})
		case fl != nil && !fl.Hidden:
			text := fl.Usage
			if text == s.doc { // a command may have its own text
				text = f.brief(s)
			}
			add(s.key, entryOf(fl, text))
		}
	}
	flags.VisitAll(func(fl *pflag.Flag) {
		if !settings[fl.Name] && !fl.Hidden {
			_, text := pflag.UnquoteUsage(fl)
			add("", entryOf(fl, strings.ToUpper(text[:1])+text[1:]))
		}
	})
	slices.SortStableFunc(list[0].entries, func(a, b entry) int { return strings.Compare(a.name[6:], b.name[6:]) })
	return list
}

// defaultMax is the longest default that --help shows, in bytes.
const defaultMax = 40

func entryOf(fl *pflag.Flag, text string) entry {
	kind, _ := pflag.UnquoteUsage(fl)
	name := "      --" + fl.Name
	if fl.Shorthand != "" {
		name = "  -" + fl.Shorthand + ", --" + fl.Name
	}
	if kind != "" {
		name += " " + kind
	}
	switch preset := fl.DefValue; {
	case preset == "" || preset == "0" || preset == "false" || preset == "[]":
	case len(preset) <= defaultMax:
		text += " (default " + preset + ")"
	case !strings.Contains(text, "Default"):
		text += " (default: --print-config shows it)"
	}
	return entry{name, text}
}

// sentence matches one sentence and the white space after it.
var sentence = regexp.MustCompile(`[^.]+(?:\.\S[^.]*)*(?:\.\s+|\.?$)`)

// brief is the text of a setting in --help: its first sentence and its default, with the names of other settings
// replaced by their flags.
func (f *Form) brief(s *setting) string {
	var kept []string
	for i, one := range sentence.FindAllString(s.doc, -1) {
		if i == 0 || strings.HasPrefix(one, "Default") || strings.HasPrefix(one, "Usual") {
			kept = append(kept, strings.TrimSpace(one))
		}
	}
	names := map[string]string{}
	section, _, _ := strings.Cut(s.key, delim)
	for _, other := range f.settings {
		name, last := "--"+other.flag(), other.key[strings.LastIndex(other.key, delim)+1:]
		if other.noFlag {
			name = other.env()
		}
		if strings.Contains(other.key, delim) {
			names[other.key] = name
		}
		there, _, _ := strings.Cut(other.key, delim)
		if (there == section || !strings.Contains(s.key, delim)) && strings.ToLower(last) != last {
			names[last] = cmp.Or(names[last], name)
		}
	}
	words := strings.Fields(strings.Join(kept, " "))
	for i, word := range words {
		bare := strings.TrimRight(strings.TrimLeft(word, `("`), `,;:.)"`)
		words[i] = strings.Replace(word, bare, cmp.Or(names[bare], bare), 1)
	}
	return strings.Join(words, " ")
}

// helpWidth returns the width of --help in columns.
func helpWidth() int {
	width := widthDefault
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		width = n
	} else if n, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && n > 0 {
		width = n
	}
	return min(max(width, widthMin), widthMax)
}
