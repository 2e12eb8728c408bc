package source

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// PanicError is a panic that [Rescue] recovered: a fault of this program that ends one request and not the process. The
// log has the stack.
type PanicError struct {
	// Doing names the attempt.
	Doing string
	// Value is the argument of panic. It may quote bytes of an origin, so only the log shows it.
	Value any
}

func (e *PanicError) Error() string {
	return e.Doing + ": a fault of this program ended it; its log has the stack, please report it"
}

// Rescue recovers a panic, stores it in err as a *[PanicError] and logs it with its stack. Each goroutine that reads
// bytes of an origin or a client defers it: otherwise a panic would end the process and all other pulls.
func Rescue(err *error, doing string) {
	p := recover()
	if p == nil {
		return
	}
	*err = &PanicError{Doing: doing, Value: p}
	slog.Error("recovered from a panic", "doing", doing, "panic", fmt.Sprintf("%.1000v", p),
		"stack", string(debug.Stack()))
}
