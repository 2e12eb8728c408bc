// Command pause does nothing until a signal ends it. It is the sandbox of the pods of a node that was built here, and
// the program in the images that the test rolls out.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
}
