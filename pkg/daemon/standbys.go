package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// standbysFile is where a node remembers, in its data directory, whom to ask while no
// supernode answers: it may start in that time.
const standbysFile = "standbys.json"

// readStandbys reads it; nothing where there is none or it cannot be read, which costs no more
// than having none.
func readStandbys(dir string) (list []string) {
	b, err := os.ReadFile(filepath.Join(dir, standbysFile))
	if err != nil || json.Unmarshal(b, &list) != nil {
		return nil
	}
	return list
}

// writeStandbys writes it, aside and then under its name, so that a reader sees one list or the
// other.
func writeStandbys(dir string, list []string) error {
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("remembering standbys: %w", err)
	}
	tmp, err := os.CreateTemp(dir, standbysFile+"-*")
	if err != nil {
		return fmt.Errorf("remembering standbys: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, standbysFile))
	}
	if err != nil {
		return fmt.Errorf("remembering standbys: %w", err)
	}
	return nil
}
