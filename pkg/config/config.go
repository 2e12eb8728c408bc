// Package config reads what people set: flags, the environment, a YAML file, defaults, in
// this order of precedence, into one typed struct per program.
//
// Nothing that it does not know is passed over in silence: an unknown key, variable or value
// ends in an error that names the nearest right one. A secret is printed as "[redacted]"
// whatever prints it, and has no flag, because every user of a machine can read the
// arguments of a process. Start at [Form] and at the structs in settings.go, whose comments
// are also the text of --help and of docs/configuration.md (go generate ./pkg/config).
package config

//go:generate go test -run "^TestTheReferencePageSaysWhatTheSettingsSay$" . -update

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// EnvPrefix begins the name of every environment variable that sets something.
const EnvPrefix = "DARTER_"

// EnvFile names the configuration file where --config does not.
const EnvFile = EnvPrefix + "CONFIG"

// Form is one program's settings, to be filled in from all sides: [NewForm], then
// [Form.Bind], then, once the flags are parsed, [Form.Load]. Not safe for concurrent use.
type Form struct {
	program  string
	settings []*setting
	target   any
	flags    *pflag.FlagSet
	path     string
}

// validator is what a program's struct may bring to check what no single field can.
type validator interface{ Validate() error }

// NewForm prepares the settings of a program; target points to the struct that [Form.Load]
// fills in, one of those in this package.
func NewForm(program string, target any) *Form {
	return &Form{program: program, target: target, settings: settingsOf(target)}
}

// Bind adds --config and one flag per setting to fs. The flags hold no values of their own:
// [Form.Load] reads them.
func (f *Form) Bind(fs *pflag.FlagSet) {
	f.flags = fs
	fs.StringVar(&f.path, "config", "", "`FILE` in YAML to read settings from; also "+EnvFile+". Default none")
	for _, s := range f.settings {
		s.bind(fs)
	}
}

// Flags lists the names of the settings' flags.
func (f *Form) Flags() []string {
	names := []string{}
	for _, s := range f.settings {
		if !s.noFlag {
			names = append(names, s.flag())
		}
	}
	return names
}

// Load fills the target: defaults first, then the YAML file, the variables of environ
// (as [os.Environ] returns them) and the flags that were given, each one overriding those
// before it. A list is overridden as a whole. The error says what to do, in lines that may
// be several; an [*InvalidError] leaves the target filled in.
func (f *Form) Load(environ []string) error {
	defaults, fileLayer, envLayer, flagLayer := koanf.New(delim), koanf.New(delim), koanf.New(delim), koanf.New(delim)

	known := map[string]any{}
	for _, s := range f.settings {
		if s.preset != "" {
			known[s.key] = s.preset
		}
	}
	if err := defaults.Load(confmap.Provider(known, delim), nil); err != nil {
		return fmt.Errorf("reading the defaults: %w", err)
	}

	path := f.path
	var problems []error
	vars := env.Provider(delim, env.Opt{
		Prefix:      EnvPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			if name == EnvFile {
				if path == "" {
					path = value
				}
				return "", nil
			}
			for _, s := range f.settings {
				if s.env() == name {
					return s.key, value
				}
			}
			if err := f.unknownEnv(name); err != nil {
				problems = append(problems, err)
			}
			return "", nil
		},
	})
	if err := envLayer.Load(vars, nil); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}

	if path != "" {
		p := &yamlParser{}
		if err := fileLayer.Load(file.Provider(path), p); err != nil {
			var missing *os.PathError
			if errors.As(err, &missing) {
				return fmt.Errorf("reading the configuration file: %w; give another one with --config or %s", err, EnvFile)
			}
			return fmt.Errorf("reading the configuration file %s: %w", path, err)
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o002 != 0 {
			problems = append(problems, fmt.Errorf("every user of the machine may change the configuration file %s (mode %04o), and with it what this program does: chmod o-w %s",
				path, info.Mode().Perm(), path))
		}
		problems = append(problems, f.unknownKeys(path, fileLayer.Raw(), p.lines)...)
	}

	if f.flags != nil {
		given := posflag.ProviderWithFlag(f.flags, delim, nil, func(fl *pflag.Flag) (string, any) {
			v, ok := fl.Value.(*flagValue)
			if !ok || !fl.Changed {
				return "", nil
			}
			if v.setting.isList() {
				return v.setting.key, slices.Clone(v.values)
			}
			return v.setting.key, v.values[len(v.values)-1]
		})
		if err := flagLayer.Load(given, nil); err != nil {
			return fmt.Errorf("reading the flags: %w", err)
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}

	merged := koanf.New(delim)
	layers := []struct {
		of   *koanf.Koanf
		name func(s *setting) string
	}{
		{defaults, func(*setting) string { return "default" }},
		{fileLayer, func(s *setting) string { return path }},
		{envLayer, func(s *setting) string { return s.env() }},
		{flagLayer, func(s *setting) string { return "--" + s.flag() }},
	}
	for _, l := range layers {
		for _, s := range f.settings {
			if l.of.Exists(s.key) && l.of.Get(s.key) != nil {
				s.origin = l.name(s)
			}
		}
		if err := merged.Merge(l.of); err != nil {
			return fmt.Errorf("merging the settings: %w", err)
		}
	}
	for _, s := range f.settings {
		raw := merged.Get(s.key)
		if raw == nil { // "key:" and nothing behind it
			raw = s.preset
			if s.preset == "" {
				s.clear()
				continue
			}
		}
		if err := s.set(raw); err != nil {
			problems = append(problems, fmt.Errorf("%s (from %s): %w", s.key, s.origin, err))
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	if v, ok := f.target.(validator); ok {
		if err := v.Validate(); err != nil {
			return &InvalidError{err}
		}
	}
	return nil
}

// InvalidError is of settings that were all read and cannot work together, or on this machine,
// or for this user. The target has them.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *InvalidError) Unwrap() error { return e.Err }

// Again is a form for the same program and the same flags, to read the file and the
// environment anew into another target.
func (f *Form) Again(target any) *Form {
	return &Form{program: f.program, settings: settingsOf(target), target: target, flags: f.flags, path: f.path}
}

// Print writes the settings as [Form.Load] left them, as a YAML file that can be read
// again; a comment says where each value came from. Secrets are redacted.
func (f *Form) Print(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode, HeadComment: "Settings of " + f.program + " as they are in force."}
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

// Change is a setting that differs between two forms; its values are as they may be printed,
// a secret redacted.
type Change struct{ Key, Was, Is string }

// Changed reports which settings differ between this form and a newer one of the same
// program: those that can change in a running program, and those that need a restart.
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

// unknownKeys walks what the file holds beside what it may hold.
func (f *Form) unknownKeys(path string, raw map[string]any, lines map[string]int) (problems []error) {
	var names, all []string
	for _, s := range f.settings {
		all = append(all, s.key)
		parts := strings.Split(s.key, delim)
		for i := range parts {
			names = append(names, strings.Join(parts[:i+1], delim))
		}
	}
	var walk func(prefix string, m map[string]any)
	walk = func(prefix string, m map[string]any) {
		for _, k := range sortedKeys(m) {
			key := k
			if prefix != "" {
				key = prefix + delim + k
			}
			at := path
			if n := lines[key]; n > 0 {
				at = fmt.Sprintf("%s:%d", path, n)
			}
			sub, isMap := m[k].(map[string]any)
			switch {
			case slices.Contains(all, key):
				if isMap {
					problems = append(problems, fmt.Errorf("%s: %s takes a value, not keys of its own", at, key))
				}
			case slices.Contains(names, key):
				if isMap {
					walk(key, sub)
				} else if m[k] != nil {
					problems = append(problems, fmt.Errorf("%s: %s is a section and takes keys, not a value", at, key))
				}
			default:
				problems = append(problems, fmt.Errorf("%s: unknown key %q%s", at, key, suggest(key, names)))
			}
		}
	}
	walk("", raw)
	return problems
}

// unknownEnv judges a variable that sets nothing here. Those of the sister programs may be
// there, and so may those that Kubernetes makes for a Service whose name begins with
// "darter".
func (f *Form) unknownEnv(name string) error {
	if serviceLink.MatchString(name) {
		return nil
	}
	for _, p := range Programs() {
		for _, s := range NewForm(p.Name, p.New()).settings {
			if s.env() == name {
				return nil
			}
		}
	}
	var names []string
	for _, s := range f.settings {
		names = append(names, s.env())
	}
	return fmt.Errorf("unknown environment variable %s%s", name, suggest(name, names))
}
