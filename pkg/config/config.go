// Package config loads the settings of a program from flags, the environment, a YAML file and defaults, in this order
// of precedence, into one typed struct.
//
// It never ignores a name or value that it does not know: the error names the nearest right one. A secret is printed as
// "[redacted]" and has no flag, because every user of a machine can read the arguments of a process. Start at [Form]
// and at the structs in settings.go, whose comments are the text of --help and of docs/configuration.md (go generate
// ./pkg/config).
package config

//go:generate go test -run "^TestReferencePage$" . -update

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// EnvPrefix begins the name of every environment variable.
const EnvPrefix = "DARTER_"

// EnvFile is the variable with the path of the configuration file; --config overrides it.
const EnvFile = EnvPrefix + "CONFIG"

// Form loads the settings of one program: call [NewForm], [Form.Bind], parse the flags, then [Form.Load]. Not safe for
// concurrent use.
type Form struct {
	program  string
	settings []*setting
	target   any
	flags    *pflag.FlagSet
	path     string
	// fallback is the file that is read if it exists and no other one is named, empty for none.
	fallback string
}

// validator is a program's struct that checks its fields against each other.
type validator interface{ Validate() error }

// NewForm returns the form of a program. target points to the struct that [Form.Load] fills in, one of this package.
func NewForm(program string, target any) *Form {
	return &Form{program: program, target: target, settings: settingsOf(target)}
}

// ReadDefaultFile lets [Form.Load] read /etc/darter/PROGRAM.yaml if it exists and neither --config nor DARTER_CONFIG
// names another file. Call it before Bind.
func (f *Form) ReadDefaultFile() { f.fallback = "/etc/darter/" + f.program + ".yaml" }

// Bind adds --config and one flag per setting to flags. [Form.Load] reads the flags.
func (f *Form) Bind(flags *pflag.FlagSet) {
	f.flags = flags
	preset := "none"
	if f.fallback != "" {
		preset = f.fallback + ", if it exists"
	}
	flags.StringVar(&f.path, "config", "", "YAML `FILE` with settings; also "+EnvFile+". Default: "+preset)
	for _, s := range f.settings {
		s.bind(flags)
	}
}

// Flags returns the names of the settings' flags.
func (f *Form) Flags() []string {
	names := []string{}
	for _, s := range f.settings {
		if !s.noFlag {
			names = append(names, s.flag())
		}
	}
	return names
}

// Load fills the target: defaults first, then the YAML file, the variables of environ (as [os.Environ] returns them)
// and the flags of the command line, each one overriding those before it. A list is overridden as a whole. The error
// says what to do, on one line or several; an [*InvalidError] leaves the target filled in.
func (f *Form) Load(environ []string) error {
	for _, s := range f.settings {
		s.node, s.origin = nil, ""
		if s.preset != "" {
			s.give(s.parse(s.preset), "default")
		}
	}
	found, problems := f.readEnv(environ)
	path := cmp.Or(f.path, found[EnvFile])
	named := path != ""
	path = cmp.Or(path, f.fallback)
	var locked error
	switch content, err := os.ReadFile(path); {
	case err == nil:
		more, err := f.readFile(path, content)
		if err != nil {
			return err
		}
		problems = append(problems, more...)
	case named || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("reading the configuration file: %w; give another one with --config or %s", err, EnvFile)
	case errors.Is(err, fs.ErrPermission):
		// A command that needs no more than an address may do without it.
		locked = fmt.Errorf("reading the default configuration file: %w; run this as its user, or name another file "+
			"with --config or %s", err, EnvFile)
	}
	for _, s := range f.settings {
		if text, ok := found[s.env()]; ok {
			s.give(s.parse(text), s.env())
		}
		if f.flags == nil {
			continue
		}
		if fl := f.flags.Lookup(s.flag()); fl != nil && fl.Changed {
			if bound, ok := fl.Value.(*setting); ok { // of the form that was bound
				s.give(s.parse(bound.given...), "--"+s.flag())
			}
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	for _, s := range f.settings {
		s.value.SetZero()
		if s.node == nil {
			continue
		}
		if err := decode(s.value, s.node); err != nil {
			problems = append(problems, fmt.Errorf("%s (from %s): %w", s.key, s.place(), err))
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	if v, ok := f.target.(validator); ok && locked == nil {
		locked = v.Validate()
	}
	if locked != nil {
		return &InvalidError{locked}
	}
	return nil
}

// readEnv returns the program's variables out of environ, and one problem for each unknown variable.
func (f *Form) readEnv(environ []string) (found map[string]string, problems []error) {
	found = map[string]string{}
	known := variables(f.settings)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		switch {
		case name == EnvFile, slices.Contains(known, name):
			found[name] = value
		case strings.HasPrefix(name, EnvPrefix) && !foreign(name):
			problems = append(problems, fmt.Errorf("unknown environment variable %s%s", name, suggest(name, known)))
		}
	}
	return found, problems
}

// foreign reports whether a variable belongs to another program, or to a Service whose name begins with "darter".
func foreign(name string) bool {
	return serviceLink.MatchString(name) || slices.ContainsFunc([]any{new(Dfdaemon), new(Supernode), new(Dfget)},
		func(target any) bool { return slices.Contains(variables(settingsOf(target)), name) })
}

func variables(settings []*setting) (names []string) {
	for _, s := range settings {
		names = append(names, s.env())
	}
	return names
}

// readFile gives the settings the values of a configuration file. The error is that the content is not one.
func (f *Form) readFile(path string, content []byte) (problems []error, err error) {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o002 != 0 {
		problems = append(problems,
			fmt.Errorf("every user of the machine may change the configuration file %s (mode %04o), "+
				"and with it what this program does: chmod o-w %s", path, info.Mode().Perm(), path))
	}
	top, err := parseFile(content)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration file %s: %w", path, err)
	}
	return append(problems, f.readSection(path, "", top)...), nil
}

// readSection gives the settings the values of one mapping. Prefix is the mapping's own key; path is its file, empty
// for an entry of a list, whose errors get the path later.
func (f *Form) readSection(path, prefix string, section *yaml.Node) (problems []error) {
	at := path + ":"
	if path == "" {
		at = "line "
	}
	seen := map[string]bool{}
	for pair := range slices.Chunk(section.Content, 2) {
		name, value := pair[0], resolved(pair[1])
		key := strings.TrimPrefix(prefix+delim+name.Value, delim)
		fail := func(format string, args ...any) {
			problems = append(problems, fmt.Errorf("%s%d: %s", at, name.Line, fmt.Sprintf(format, args...)))
		}
		s := f.find(func(s *setting) bool { return s.key == key })
		isSection := slices.Contains(f.names(), key)
		switch {
		case seen[key]:
			fail("key %q is there twice", key)
		case s != nil && value.Kind == yaml.MappingNode:
			fail("%s takes a value, not keys of its own", key)
		case s != nil && !isNull(value): // "key:" without a value leaves the default
			s.give(value, path)
		case s != nil, isSection && isNull(value):
		case isSection && value.Kind == yaml.MappingNode:
			problems = append(problems, f.readSection(path, key, value)...)
		case isSection:
			fail("%s is a section and takes keys, not a value", key)
		default:
			fail("unknown key %q%s", key, suggest(key, f.names()))
		}
		seen[key] = true
	}
	return problems
}

// find returns the first setting that is the wanted one, or nil.
func (f *Form) find(wanted func(*setting) bool) *setting {
	if i := slices.IndexFunc(f.settings, wanted); i >= 0 {
		return f.settings[i]
	}
	return nil
}

// names lists the keys of a file: those of the settings and those of the sections.
func (f *Form) names() (names []string) {
	for _, s := range f.settings {
		parts := strings.Split(s.key, delim)
		for i := range parts {
			names = append(names, strings.Join(parts[:i+1], delim))
		}
	}
	return names
}

// InvalidError reports settings that are readable but contradict each other, the machine or the user's permissions. The
// target holds them.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns the problem.
func (e *InvalidError) Unwrap() error { return e.Err }

// Again returns a form for the same program and flags that loads the file and the environment into another target.
func (f *Form) Again(target any) *Form {
	again := *f
	again.target, again.settings = target, settingsOf(target)
	return &again
}

// Print writes the loaded settings as a YAML file that can be loaded again, with the origin of each value in a comment.
// Secrets are redacted.
func (f *Form) Print(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode, HeadComment: "Settings of " + f.program + " in force."}
	for _, s := range f.settings {
		s.print(root)
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("printing the settings: %w", err)
	}
	return enc.Close()
}

// Change is a setting that differs between two forms. A secret is redacted in both values.
type Change struct{ Key, Was, Is string }

// Changed returns the settings that differ from a newer form of the same program: those that a running program can
// change, and those that need a restart.
func (f *Form) Changed(newer *Form) (now, restart []Change) {
	for i, s := range f.settings {
		other := newer.settings[i]
		if reflect.DeepEqual(s.value.Interface(), other.value.Interface()) {
			continue
		}
		c := Change{s.key, s.text(), other.text()}
		if s.reload {
			now = append(now, c)
		} else {
			restart = append(restart, c)
		}
	}
	return now, restart
}
