package arch

import "testing"

func TestGoroutinesAreWaitedFor(t *testing.T) {
	none(t, tree(t).Goroutines(Waited))
}

func TestGoroutinesFinds(t *testing.T) {
	for _, row := range []struct{ name, body, want string }{
		{"a function", "func f() { go g() }\nfunc g() {}", "pkg/a.f starts a goroutine"},
		{"a closure of a variable", "var f = func() { go g() }\nfunc g() {}", "pkg/a starts a goroutine"},
		{"a method of a type without an end", "type T struct{}\nfunc (t *T) f() { go t.g() }\nfunc (t *T) g() {}",
			"pkg/a.T.f starts a goroutine"},
		{"a type with Run", "type T struct{}\nfunc (t *T) f() { go t.Run() }\nfunc (t *T) Run() {}", ""},
		{"a generic type with Close",
			"type T[V any] struct{}\nfunc (t *T[V]) f() { go t.g() }\nfunc (T[V]) g() {}\nfunc (t T[V]) Close() {}",
			""},
		{"a group without Wait", "type T struct{ wg G }\nfunc (t *T) f() { t.wg.Go(g) }\nfunc (t *T) Run() {}",
			"pkg/a.T.f starts a goroutine in the group wg"},
		{"a group that is awaited", "type T struct{ wg G }\nfunc (t *T) f() { t.wg.Go(g) }\nfunc (t *T) end() { t.wg.Wait() }",
			""},
		{"another group is awaited", "func f() { var a, b G; a.Go(g); b.Wait() }", "in the group a"},
		{"a dropped timer", "func f() { time.AfterFunc(1, g) }", "pkg/a.f starts a timer"},
		{"a timer that stops", "func f() { defer time.AfterFunc(1, g).Stop() }", ""},
		{"an exception", "func waits() { go g() }\nfunc g() {}", ""},
		{"an exception of no use", "func waits() {}", "starts no goroutine: take it out"},
	} {
		t.Run(row.name, func(t *testing.T) {
			waited := map[string]string{}
			if row.name == "an exception" || row.name == "an exception of no use" {
				waited["pkg/a.waits"] = "a reason"
			}
			expect(t, row.want, fixture(t, "pkg/a/a.go", "package a\n\n"+row.body+"\n").Goroutines(waited))
		})
	}
}

func TestGoroutinesOfTestsAreFree(t *testing.T) {
	none(t, fixture(t, "pkg/a/a.go", "package a\n", "pkg/a/a_test.go", "package a\n\nfunc f() { go f() }\n",
		"test/b/b.go", "package b\n\nfunc f() { go f() }\n").Goroutines(nil))
}
