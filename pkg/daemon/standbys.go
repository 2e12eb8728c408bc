package daemon

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/atomicfile"
)

// standbysFile is the file of the data directory that lists the standbys. A daemon that starts while no supernode
// answers announces to them.
const standbysFile = "standbys.json"

// standbysSize bounds the file, in bytes: [api.StandbysMax] addresses are far less.
const standbysSize = 64 << 10

// readStandbys reads the file. It returns nil if the file is missing or unreadable: the daemon then leads its own
// tasks.
func readStandbys(dir string) []string {
	f, err := os.Open(filepath.Join(dir, standbysFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, standbysSize+1))
	if err != nil {
		return nil
	}
	return parseStandbys(b)
}

// parseStandbys parses the file: at most [api.StandbysMax] addresses, or nil if it is invalid. The announce client
// ignores entries that are not host:port.
func parseStandbys(b []byte) []string {
	if len(b) > standbysSize || !json.Valid(b) {
		return nil
	}
	list, err := api.UnmarshalList[string](b, api.StandbysMax, 512)
	if err != nil {
		return nil
	}
	return list
}

// writeStandbys replaces the file atomically.
func writeStandbys(dir string, list []string) error {
	b, err := json.Marshal(list)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, standbysFile), b)
	}
	if err != nil {
		return fmt.Errorf("storing the list of standbys: %w", err)
	}
	return nil
}
