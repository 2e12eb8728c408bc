//go:build !linux

package main

import (
	"context"
	"fmt"
)

func (b *bench) links(context.Context) error {
	return fmt.Errorf("%w: network namespaces are Linux's", errMissing)
}
