// Package kind installs the Helm chart in a kind cluster of several nodes and counts what leaves a registry outside it.
//
// It never counts at a client: the front of the registry counts the bytes of bodies, and the kernel those of packets.
// It leaves nothing behind: without a Docker daemon of the machine, everything runs in namespaces that end with the
// test. Start at TestKind.
package kind
