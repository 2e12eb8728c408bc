//go:build !linux

package wire

import "net"

func cork(net.Conn, bool) {}
