package source

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// PanicError is what a panic became: a fault of this program, met while it did something for
// somebody, and nobody else's trouble. The log has the stack.
type PanicError struct {
	// Doing says what was being done.
	Doing string
	// Value is what the panic was called with. It may quote what was being read, and is for the
	// log alone.
	Value any
}

func (e *PanicError) Error() string {
	return e.Doing + ": a fault of this program ended it; its log has the stack, please report it"
}

// Rescue is deferred by what reads bytes of an origin or a client: a panic ends a goroutine that
// nobody watches, and with it the process and everybody's pulls. It logs the panic with its stack
// and makes it the error.
func Rescue(err *error, doing string) {
	p := recover()
	if p == nil {
		return
	}
	*err = &PanicError{Doing: doing, Value: p}
	slog.Error("a panic was caught", "doing", doing, "panic", fmt.Sprintf("%.1000v", p), "stack", string(debug.Stack()))
}
