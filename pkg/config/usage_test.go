package config

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// help is what --help of a program says.
func help(t *testing.T, p program, width string) string {
	t.Setenv("COLUMNS", width)
	form := NewForm(p.Name, p.New())
	cmd := &cobra.Command{Use: p.Name + " [flags]", Long: "What it is.", Version: "v1",
		Example: "  " + p.Name + " --help",
		Run:     func(*cobra.Command, []string) {}}
	form.Bind(cmd.Flags())
	cmd.Flags().Bool("once", false, "end after one round")
	form.Explain(cmd)
	cmd.AddCommand(&cobra.Command{Use: "status", Short: "Tell how it is", Run: func(*cobra.Command, []string) {}})
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--help"})
	require.NoError(t, cmd.Execute())
	return out.String()
}

func TestHelpWidth(t *testing.T) {
	for _, p := range programs {
		for width, most := range map[string]int{"80": 80, "100": 100, "": widthDefault, "10": widthMin,
			"1000": widthMax} {
			text := help(t, p, width)
			assert.Contains(t, text, "\nCommands:\n")
			assert.Contains(t, text, "  status ")
			assert.Contains(t, text, "  "+p.Name+" --help\n")
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				// A name that is longer than its column has the line alone.
				if utf8.RuneCountInString(line) > most {
					assert.Contains(t, strings.TrimSpace(line), "--", "%q is wider than %d", line, most)
					assert.NotContains(t, strings.TrimSpace(line), "  ", "%q is wider than %d", line, most)
				}
				assert.Equal(t, strings.TrimRight(line, " "), line)
			}
			for _, s := range settingsOf(p.New()) {
				name := "--" + s.flag() + " "
				if s.Type() != "bool" && !s.noFlag {
					name += s.Type()
				}
				if s.noFlag {
					name = " " + s.env() + " "
				}
				lines := 0
				for line := range strings.Lines(text) {
					if strings.HasPrefix(line, "  ") && strings.Contains(strings.TrimRight(line, "\n")+" ", name) &&
						!strings.HasPrefix(line, strings.Repeat(" ", nameWidth)) {
						lines++
					}
				}
				assert.Equal(t, 1, lines, "%s: %q in\n%s", p.Name, name, text)
			}
		}
	}
}

func TestHelpText(t *testing.T) {
	text := help(t, programs[0], "100")
	for _, want := range []string{
		"      --mirror-listen host:port   The address of the registry mirror, which hosts.toml names.\n" +
			strings.Repeat(" ", nameWidth) + "(default 127.0.0.1:65001)\n",
		"      --log-level debug|info|warn|error\n" + strings.Repeat(" ", nameWidth) + "The least severe",
		"listed (those in --proxy-tunnel-hosts)", "if --proxy-tunnel is",
		"\nMirror:\n", "\nAPI:\n", "      --once                      End after one round\n",
		"is also DARTER_LIMITS_UPLOAD in the environment and\nlimits.upload in the file", "SIGHUP",
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "X-Goog", "a long default is left to --print-config")
	text = help(t, programs[2], "100")
	assert.Contains(t, text, "comes from\n"+strings.Repeat(" ", nameWidth)+"--password-file.")
	assert.Contains(t, text, "  -o, --output text               The file to write")
	assert.NotContains(t, text, "SIGHUP", "dfget does not reload")
}

func TestHelpLongNames(t *testing.T) {
	var b strings.Builder
	entry{"      --" + strings.Repeat("x", 40), "some text"}.write(&b, 80)
	entry{"      --short", "one two three"}.write(&b, nameWidth+8)
	indent := strings.Repeat(" ", nameWidth)
	assert.Equal(t, "      --"+strings.Repeat("x", 40)+"\n"+indent+"some text\n"+
		"      --short"+strings.Repeat(" ", nameWidth-13)+"one two\n"+indent+"three\n", b.String())
}
