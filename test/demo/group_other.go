//go:build !linux

package main

import "syscall"

// ownGroup keeps Ctrl-C at the terminal from the children, which the demo ends itself.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
