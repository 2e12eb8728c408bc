package node

import "github.com/darter-io/darter/pkg/source/registry"

// OpenRegistries returns the registries that a node of these settings would ask, for who
// looks at them without being a node. It asks nobody.
func OpenRegistries(cfg Config) (*registry.Client, error) { return newRegistries(cfg) }
