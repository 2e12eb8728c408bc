package supernode

import (
	"fmt"
	"strings"

	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/preheat/doors"
	"github.com/darter-io/darter/pkg/secret"
	"github.com/darter-io/darter/pkg/telemetry"
)

// tokensMax bounds the tokens of preheat.doors.tokenFile.
const tokensMax = 4

// openDoors opens the APIs with which Harbor and registries order preheats, if the operator set their address.
func (s *Supernode) openDoors(jobs doors.Jobs) (err error) {
	cfg := s.cfg.Preheat.Doors
	if cfg.Listen == "" {
		return nil
	}
	settings, use, err := s.readDoors(cfg)
	if err != nil {
		return err
	}
	use()
	if s.doors, err = doors.New(doors.Config{
		Jobs: jobs, Settings: settings, Listed: s.node.Origins.Registries.Listed,
		Metrics: telemetry.NewDoors(s.node.Metrics), Logger: s.node.Log,
	}); err != nil {
		return err
	}
	s.doorway, err = s.node.ListenFor("preheat.doors.listen", cfg.Listen, &s.doorCert)
	return err
}

// reloadDoors reads the settings that running doors can change. apply changes them.
func (s *Supernode) reloadDoors(cfg config.Doors) (apply func() error, err error) {
	if s.doors == nil {
		return func() error { return nil }, nil
	}
	settings, use, err := s.readDoors(cfg)
	if err != nil {
		return nil, err
	}
	return func() error {
		use()
		return s.doors.Reload(settings)
	}, nil
}

// readDoors reads the files of the doors: their credentials, and a certificate that use puts into force.
func (s *Supernode) readDoors(cfg config.Doors) (settings doors.Settings, use func(), err error) {
	if settings, err = doorSettings(cfg); err != nil {
		return settings, nil, err
	}
	if err = settings.Credentials.Check(); err != nil {
		return settings, nil, err
	}
	if use, err = s.doorCert.Read(cfg.Cert, cfg.Key); err != nil {
		return settings, nil, fmt.Errorf("preheat.doors.cert: %w", err)
	}
	return settings, use, nil
}

// doorSettings reads the files of the doors' credentials.
func doorSettings(cfg config.Doors) (out doors.Settings, err error) {
	read := func(key, path string) (text secret.String, err error) {
		if path == "" {
			return "", nil
		}
		if text, err = config.ReadSecretFile(path); err != nil {
			return "", fmt.Errorf("preheat.doors.%s: %w", key, err)
		}
		return text, nil
	}
	c := &out.Credentials
	tokens, err := read("tokenFile", cfg.TokenFile)
	if err != nil {
		return out, err
	}
	for line := range strings.Lines(tokens.Reveal()) {
		if line = strings.TrimSpace(line); line != "" {
			c.Tokens = append(c.Tokens, secret.String(line))
		}
	}
	if len(c.Tokens) > tokensMax {
		return out, fmt.Errorf("preheat.doors.tokenFile: it has %d tokens, one in each line, and may have %d", len(c.Tokens),
			tokensMax)
	}
	c.User, c.Header = cfg.Username, cfg.Header
	if c.Password, err = read("passwordFile", cfg.PasswordFile); err != nil {
		return out, err
	}
	if c.Value, err = read("headerFile", cfg.HeaderFile); err != nil {
		return out, err
	}
	out.Rules, out.Scope = cfg.Policy()
	return out, nil
}
