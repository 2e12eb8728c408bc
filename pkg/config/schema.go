package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/darter-io/darter/pkg/secret"
)

// delim separates the parts of a key.
const delim = "."

// serviceLink matches the variables with which Kubernetes announces the Services of a namespace to every container.
var serviceLink = regexp.MustCompile(
	`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// fieldDocs maps "Type.Field" to the field's comment; docs_gen.go fills it.
var fieldDocs map[string]string

// setting is a field of a program's struct with its names and its value.
type setting struct {
	key    string // "cache.quota"
	doc    string
	preset string // the default as a text; a list is comma-separated
	short  string // one-letter flag
	reload bool
	noFlag bool
	value  reflect.Value
	owner  string // "Cache.Quota", the Go name of the field

	// node is the value that wins, nil for none; origin says where it comes from.
	node   *yaml.Node
	origin string
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	secretType      = reflect.TypeFor[secret.String]()
	durationType    = reflect.TypeFor[time.Duration]()
	wholeType       = reflect.TypeFor[interface{ Whole() }]()
)

// settingsOf returns the settings of the struct that target points to. A struct field without a yaml tag adds its
// fields to its parent. settings.go describes the tags.
func settingsOf(target any) []*setting {
	var out []*setting
	_, once := target.(*Dfget) // a command reads its settings once
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			key := strings.Trim(prefix+delim+fieldKey(f), delim)
			if f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(textUnmarshaler) {
				walk(key, v.Field(i))
				continue
			}
			owner := v.Type().Name() + "." + f.Name
			out = append(out, &setting{
				key: key, doc: fieldDocs[owner], owner: owner, preset: f.Tag.Get("default"), short: f.Tag.Get("short"),
				reload: f.Tag.Get("reload") == "yes" && !once, value: v.Field(i),
				noFlag: f.Tag.Get("flag") == "-" || f.Type == secretType,
			})
		}
	}
	walk("", reflect.ValueOf(target).Elem())
	return out
}

func (s *setting) isList() bool { return s.value.Kind() == reflect.Slice }

// words splits a camelCase key into lower-case words.
func (s *setting) words() []string {
	var words []string
	for _, part := range strings.Split(s.key, delim) {
		word := ""
		for _, r := range part {
			if unicode.IsUpper(r) && word != "" {
				words = append(words, strings.ToLower(word))
				word = ""
			}
			word += string(r)
		}
		words = append(words, strings.ToLower(word))
	}
	return words
}

func (s *setting) flag() string { return strings.Join(s.words(), "-") }

func (s *setting) env() string { return EnvPrefix + strings.ToUpper(strings.Join(s.words(), "_")) }

// unit is the name of the value in --help.
func (s *setting) unit() string {
	t, suffix := s.value.Type(), ""
	if s.isList() {
		if t = t.Elem(); !t.Implements(wholeType) {
			suffix = ",..."
		}
	}
	if n, ok := reflect.New(t).Interface().(interface{ Unit() string }); ok {
		return n.Unit() + suffix
	}
	switch {
	case t == secretType:
		return "secret"
	case t == durationType:
		return "duration" + suffix
	case t.Kind() == reflect.Bool:
		return ""
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		return "number" + suffix
	case t.Kind() == reflect.Float64:
		return "number" + suffix
	}
	return "text" + suffix
}

// flagValue collects and checks the values of a flag.
type flagValue struct {
	setting *setting
	values  []string
}

func (v *flagValue) String() string { return strings.Join(v.values, ",") }

func (v *flagValue) Type() string {
	if v.setting.value.Kind() == reflect.Bool {
		return "bool" // pflag shows no value for it
	}
	return v.setting.unit()
}

func (v *flagValue) Set(text string) error {
	texts := []string{text}
	if v.setting.isList() {
		texts = splitList(v.setting.value.Type(), text)
	}
	for _, one := range texts {
		probe := reflect.New(v.setting.value.Type()).Elem()
		if v.setting.isList() {
			probe = reflect.New(probe.Type().Elem()).Elem()
		}
		if err := decodeText(probe, one); err != nil {
			return err
		}
	}
	v.values = append(v.values, texts...)
	return nil
}

// bind adds the setting's flag to fs.
func (s *setting) bind(fs *pflag.FlagSet) {
	if s.noFlag {
		return
	}
	f := fs.VarPF(&flagValue{setting: s}, s.flag(), s.short, s.usage())
	f.DefValue = s.preset
	if s.value.Kind() == reflect.Bool {
		f.NoOptDefVal = "true"
	}
}

// usage is the first paragraph of a setting's comment on one line. [Form.Explain] shows its beginning.
func (s *setting) usage() string {
	text, _, _ := strings.Cut(s.doc, "\n\n")
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "`", "")
}

// splitList splits the text of a list of type t at its commas, unless its elements may contain commas.
func splitList(t reflect.Type, text string) []string {
	if t.Elem().Implements(wholeType) {
		return []string{text}
	}
	var out []string
	for _, part := range strings.Split(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// fieldKey is the key of a struct field: its yaml tag without the options.
func fieldKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

// parse returns the value that a text of the environment or a default has in YAML.
func (s *setting) parse(text string) *yaml.Node {
	if s.isList() {
		return s.join(splitList(s.value.Type(), text))
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: text}
}

// join returns the value of a setting whose flag was given with these texts.
func (s *setting) join(texts []string) *yaml.Node {
	if !s.isList() {
		return s.parse(texts[len(texts)-1])
	}
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, text := range texts {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: text})
	}
	return list
}

// give sets the value of a setting in place of one that counts for less.
func (s *setting) give(value *yaml.Node, origin string) { s.node, s.origin = value, origin }

// place is where a value stands: its origin, in a file with its line.
func (s *setting) place() string {
	if s.node.Line > 0 {
		return fmt.Sprintf("%s:%d", s.origin, s.node.Line)
	}
	return s.origin
}

// print adds the setting to a tree of YAML mappings.
func (s *setting) print(root *yaml.Node) {
	parts := strings.Split(s.key, delim)
	for _, part := range parts[:len(parts)-1] {
		i := slices.IndexFunc(root.Content, func(n *yaml.Node) bool { return n.Value == part })
		if i < 0 {
			root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: part},
				&yaml.Node{Kind: yaml.MappingNode})
			i = len(root.Content) - 2
		}
		root = root.Content[i+1]
	}
	value, name := encode(s.value), &yaml.Node{Kind: yaml.ScalarNode, Value: parts[len(parts)-1]}
	if s.origin != "" && s.origin != "default" {
		if value.Kind == yaml.ScalarNode {
			value.LineComment = "from " + s.origin
		} else {
			name.HeadComment = "from " + s.origin
		}
	}
	root.Content = append(root.Content, name, value)
}

// text is the value on one line as a file has it, a secret redacted.
func (s *setting) text() string {
	n := encode(s.value)
	n.Style = yaml.FlowStyle
	b, err := yaml.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
