package wire

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

func cork(raw net.Conn, on bool) {
	tcp, ok := raw.(syscall.Conn)
	if !ok {
		return
	}
	sc, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	value := 0
	if on {
		value = 1
	}
	// Without the option packets are smaller, nothing else: an error changes nothing.
	_ = sc.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, value) })
}
