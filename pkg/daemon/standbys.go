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

// standbysFile is where a node remembers, in its data directory, whom to ask while no
// supernode answers: it may start in that time.
const standbysFile = "standbys.json"

// standbysSize bounds the file, in bytes: [api.StandbysMax] addresses are far less.
const standbysSize = 64 << 10

// readStandbys reads it; nothing where there is none or it cannot be read, which costs no more
// than having none.
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

// parseStandbys reads the file's text: at most [api.StandbysMax] addresses, or nothing where it
// is something else. The announce client takes of them only those that are host:port.
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

// writeStandbys replaces the file.
func writeStandbys(dir string, list []string) error {
	b, err := json.Marshal(list)
	if err == nil {
		err = atomicfile.Write(filepath.Join(dir, standbysFile), b)
	}
	if err != nil {
		return fmt.Errorf("remembering standbys: %w", err)
	}
	return nil
}
