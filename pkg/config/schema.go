package config

import (
	"encoding"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/darter-io/darter/pkg/secret"
)

// delim stands between the parts of a key.
const delim = "."

// serviceLink matches the variables by which Kubernetes tells every container of the
// services in its namespace.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// fieldDocs maps "Type.Field" to the comment above it; docs_gen.go fills it.
var fieldDocs map[string]string

// setting is one field of a program's struct, bound to its names.
type setting struct {
	key    string // "cache.quota"
	doc    string
	preset string // as it would be written in a file; a list is comma-separated
	short  string // one-letter flag
	reload bool
	noFlag bool
	origin string
	value  reflect.Value
	owner  string // "Cache.Quota", the Go name of the field
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	secretType      = reflect.TypeFor[secret.String]()
	durationType    = reflect.TypeFor[time.Duration]()
	wholeType       = reflect.TypeFor[interface{ Whole() }]()
)

// settingsOf walks the struct that target points to. The tags are key (a name, or nothing
// for a struct whose fields belong to its parent), default, short, reload and flag:"-".
func settingsOf(target any) []*setting {
	var out []*setting
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			key := strings.Trim(prefix+delim+f.Tag.Get("key"), delim)
			if f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(textUnmarshaler) {
				walk(key, v.Field(i))
				continue
			}
			owner := v.Type().Name() + "." + f.Name
			out = append(out, &setting{
				key: key, doc: fieldDocs[owner], owner: owner, preset: f.Tag.Get("default"), short: f.Tag.Get("short"),
				reload: f.Tag.Get("reload") == "yes", value: v.Field(i),
				noFlag: f.Tag.Get("flag") == "-" || f.Type == secretType,
			})
		}
	}
	walk("", reflect.ValueOf(target).Elem())
	return out
}

func (s *setting) isList() bool { return s.value.Kind() == reflect.Slice }

// words cuts a camelCase key into its words, in lower case.
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

// unit is the kind of value in one word, for --help.
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

// flagValue remembers what was given on the command line, and checks it at once.
type flagValue struct {
	setting *setting
	values  []string
}

func (v *flagValue) String() string { return strings.Join(v.values, ",") }

func (v *flagValue) Type() string {
	if v.setting.value.Kind() == reflect.Bool {
		return "bool" // pflag shows no value then
	}
	return v.setting.unit()
}

func (v *flagValue) Set(text string) error {
	probe := reflect.New(v.setting.value.Type()).Elem()
	if !v.setting.isList() {
		if err := decode(probe, text); err != nil {
			return err
		}
		v.values = append(v.values, text)
		return nil
	}
	parts := splitList(probe.Type(), text)
	if len(parts) == 1 { // its error needs no number
		if err := decode(reflect.New(probe.Type().Elem()).Elem(), parts[0]); err != nil {
			return err
		}
	}
	if err := decode(probe, parts); err != nil {
		return err
	}
	v.values = append(v.values, parts...)
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

// usage is the first paragraph of a setting's comment in one line: [Form.Explain] shows the
// beginning of it, the reference page has the rest.
func (s *setting) usage() string {
	text, _, _ := strings.Cut(s.doc, "\n\n")
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "`", "")
}

// splitList cuts the text of a list of type t at its commas, unless they belong to its
// elements.
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

func (s *setting) set(raw any) error {
	s.clear()
	return decode(s.value, raw)
}

func (s *setting) clear() { s.value.SetZero() }

// decode sets v from what a layer holds: text, a list of texts, or for a list of structs a
// list of maps.
func decode(v reflect.Value, raw any) error {
	if v.Kind() == reflect.Slice {
		var items []any
		switch raw := raw.(type) {
		case []any:
			items = raw
		case []string:
			for _, item := range raw {
				items = append(items, item)
			}
		case string:
			for _, item := range splitList(v.Type(), raw) {
				items = append(items, item)
			}
		default:
			return fmt.Errorf("takes a list, not %T", raw)
		}
		if len(items) == 0 {
			v.SetZero() // as a list that nobody set
			return nil
		}
		out := reflect.MakeSlice(v.Type(), len(items), len(items))
		for i, item := range items {
			if err := decode(out.Index(i), item); err != nil {
				return fmt.Errorf("entry %d: %w", i+1, err)
			}
		}
		v.Set(out)
		return nil
	}
	if m, ok := raw.(map[string]any); ok && v.Kind() == reflect.Struct {
		return decodeMap(v, m)
	}
	text, ok := raw.(string)
	if !ok {
		return fmt.Errorf("takes one value, not %s", kindOf(raw))
	}
	text = strings.TrimSpace(text)
	if v.Type() == secretType && text == secret.String("x").String() {
		return fmt.Errorf("%q is what is printed in a secret's place, not the secret", text)
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is no duration; write for example 500ms, 30s, 5m or 2h", text)
		}
		v.SetInt(int64(d))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(b)
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no whole number", text)
		}
		v.SetInt(n)
	case v.CanFloat():
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return fmt.Errorf("%q is no number", text)
		}
		v.SetFloat(n)
	default:
		return fmt.Errorf("setting of type %s cannot be read", v.Type())
	}
	return nil
}

func kindOf(raw any) string {
	switch raw.(type) {
	case map[string]any:
		return "a section of keys"
	case []any, []string:
		return "a list"
	}
	return "nothing"
}

// decodeMap sets the fields of one entry in a list of structs.
func decodeMap(v reflect.Value, m map[string]any) error {
	var names []string
	for i := range v.NumField() {
		names = append(names, v.Type().Field(i).Tag.Get("key"))
	}
	for _, k := range sortedKeys(m) {
		i := slices.Index(names, k)
		if i < 0 {
			return fmt.Errorf("unknown key %q%s", k, suggest(k, names))
		}
		if m[k] == nil {
			continue
		}
		if err := decode(v.Field(i), m[k]); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// node is the value as YAML, secrets redacted.
func node(v reflect.Value) *yaml.Node {
	scalar := func(text, tag string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text, Tag: tag} }
	if v.Kind() == reflect.Slice {
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, node(v.Index(i)))
		}
		if v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	}
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return scalar(err.Error(), "!!str")
		}
		return scalar(string(text), "!!str")
	}
	switch {
	case v.Type() == durationType:
		return scalar(formatDuration(time.Duration(v.Int())), "!!str")
	case v.Kind() == reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				continue
			}
			n.Content = append(n.Content, scalar(v.Type().Field(i).Tag.Get("key"), "!!str"), node(v.Field(i)))
		}
		return n
	case v.Kind() == reflect.Bool:
		return scalar(strconv.FormatBool(v.Bool()), "!!bool")
	case v.CanInt():
		return scalar(strconv.FormatInt(v.Int(), 10), "!!int")
	case v.CanFloat():
		return scalar(strconv.FormatFloat(v.Float(), 'g', -1, 64), "!!float")
	}
	return scalar(v.String(), "!!str")
}

// formatDuration leaves out the zeros that time.Duration writes: 1m, not 1m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// print adds the setting to a tree of YAML mappings.
func (s *setting) print(root *yaml.Node) {
	parts := strings.Split(s.key, delim)
	for _, part := range parts[:len(parts)-1] {
		i := slices.IndexFunc(root.Content, func(n *yaml.Node) bool { return n.Value == part })
		if i < 0 {
			root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: part}, &yaml.Node{Kind: yaml.MappingNode})
			i = len(root.Content) - 2
		}
		root = root.Content[i+1]
	}
	value, name := node(s.value), &yaml.Node{Kind: yaml.ScalarNode, Value: parts[len(parts)-1]}
	if s.origin != "" && s.origin != "default" {
		if value.Kind == yaml.ScalarNode {
			value.LineComment = "from " + s.origin
		} else {
			name.HeadComment = "from " + s.origin
		}
	}
	root.Content = append(root.Content, name, value)
}

// text is the value in one line, as a person would write it in a file; a secret is redacted.
func (s *setting) text() string {
	n := node(s.value)
	n.Style = yaml.FlowStyle
	b, err := yaml.Marshal(n)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
