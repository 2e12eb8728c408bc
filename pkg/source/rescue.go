package source

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// PanicError is a panic that [Rescue] caught: a fault of this program, which ends one request and not
// the process. The log has the stack.
type PanicError struct {
	// Doing names the attempt.
	Doing string
	// Value is the argument of panic. It may quote what was being read: only the log may show it.
	Value any
}

func (e *PanicError) Error() string {
	return e.Doing + ": a fault of this program ended it; its log has the stack, please report it"
}

// Rescue turns a panic into an error and logs it with its stack. A goroutine that reads bytes of an
// origin or a client defers it: without it a panic would end the process, and with it all pulls.
func Rescue(err *error, doing string) {
	p := recover()
	if p == nil {
		return
	}
	*err = &PanicError{Doing: doing, Value: p}
	slog.Error("a panic was caught", "doing", doing, "panic", fmt.Sprintf("%.1000v", p), "stack", string(debug.Stack()))
}
