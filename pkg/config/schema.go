package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/darter-io/darter/pkg/secret"
)

// delim separates the parts of a key.
const delim = "."

// serviceLink matches the variables with which Kubernetes announces the Services of a namespace to every container.
var serviceLink = regexp.MustCompile(
	`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// setting is a field of a program's struct with its names and its value. It is the [pflag.Value] of its own flag.
type setting struct {
	key    string // "cache.quota"
	doc    string // the first paragraph of the field's comment, on one line
	preset string // the default as a text; a list is comma-separated
	short  string // one-letter flag
	reload bool
	noFlag bool
	value  reflect.Value
	owner  string // "Cache.Quota", the Go name of the field

	// given holds the texts of the flag.
	given []string
	// node is the value that wins, nil for none; origin says where it comes from.
	node   *yaml.Node
	origin string
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	secretType      = reflect.TypeFor[secret.String]()
	durationType    = reflect.TypeFor[time.Duration]()
	headerType      = reflect.TypeFor[Header]()
)

// unitNames are the names of values in --help, by their type.
var unitNames = map[reflect.Type]string{
	reflect.TypeFor[string](): "text", reflect.TypeFor[bool](): "bool", reflect.TypeFor[int](): "number",
	reflect.TypeFor[float64](): "number", durationType: "duration", secretType: "secret", headerType: "header",
	reflect.TypeFor[Size](): "size", reflect.TypeFor[Rate](): "rate", reflect.TypeFor[MaxAge](): "any|DURATION",
	reflect.TypeFor[Address](): "host:port", reflect.TypeFor[Network](): "network", reflect.TypeFor[Port](): "port",
	reflect.TypeFor[Upstream](): "HOST[=URL]", reflect.TypeFor[MirrorListener](): "ADDRESS=REGISTRY",
	reflect.TypeFor[DoorRule](): "GLOB[=SCOPE]",
}

// choice is a text that has one of a few values.
type choice interface{ choices() []string }

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
				noFlag: f.Type == secretType,
			})
		}
	}
	walk("", reflect.ValueOf(target).Elem())
	return out
}

func (s *setting) isList() bool { return s.value.Kind() == reflect.Slice }

var capital = regexp.MustCompile(`[A-Z]`)

func (s *setting) flag() string {
	return strings.ToLower(capital.ReplaceAllString(strings.ReplaceAll(s.key, delim, "-"), "-$0"))
}

func (s *setting) env() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(s.flag(), "-", "_"))
}

// element is the type of a value, for a list that of an entry.
func (s *setting) element() reflect.Type {
	if s.isList() {
		return s.value.Type().Elem()
	}
	return s.value.Type()
}

// Type is the name of the value in --help. Package pflag shows none for "bool".
func (s *setting) Type() string {
	t := s.element()
	name := unitNames[t]
	if c, ok := reflect.Zero(t).Interface().(choice); ok {
		name = strings.Join(c.choices(), "|")
	}
	if s.isList() && t != headerType {
		name += ",..."
	}
	return name
}

// String returns the texts of the flag.
func (s *setting) String() string { return strings.Join(s.given, ",") }

// Set checks a text of the flag and keeps it.
func (s *setting) Set(text string) error {
	texts := []string{text}
	if s.isList() {
		texts = splitList(s.element(), text)
	}
	for _, one := range texts {
		if err := decodeText(reflect.New(s.element()).Elem(), one); err != nil {
			return err
		}
	}
	s.given = append(s.given, texts...)
	return nil
}

// bind adds the setting's flag to fs.
func (s *setting) bind(fs *pflag.FlagSet) {
	if s.noFlag {
		return
	}
	f := fs.VarPF(s, s.flag(), s.short, s.doc)
	f.DefValue = s.preset
	if s.value.Kind() == reflect.Bool {
		f.NoOptDefVal = "true"
	}
}

// splitList splits the text of a list at its commas. A header may contain commas.
func splitList(element reflect.Type, text string) []string {
	if element == headerType {
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

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// parse returns the value in YAML of texts from the environment, a flag or a default. Of several texts for a single
// value the last one counts.
func (s *setting) parse(texts ...string) *yaml.Node {
	if s.isList() {
		return sequence(s.element(), texts...)
	}
	return scalar(texts[len(texts)-1])
}

func sequence(element reflect.Type, texts ...string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, text := range texts {
		for _, part := range splitList(element, text) {
			list.Content = append(list.Content, scalar(part))
		}
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
		// The settings of a section follow each other.
		if n := len(root.Content); n == 0 || root.Content[n-2].Value != part {
			root.Content = append(root.Content, scalar(part), &yaml.Node{Kind: yaml.MappingNode})
		}
		root = root.Content[len(root.Content)-1]
	}
	name, value := scalar(parts[len(parts)-1]), encode(s.value)
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
