package main

import "syscall"

// ownGroup keeps Ctrl-C at the terminal from the children, which the demo ends itself; the
// kernel ends them should the demo be killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
