package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Environment variables that replace the places of a person's own files.
const (
	homeEnv       = "MENTAT_HOME"
	caEnv         = "MENTAT_CA"
	passphraseEnv = "MENTAT_PASSPHRASE" // #nosec G101 -- a variable's name
	hostEnv       = "MENTAT_HOST"
)

// home is the directory of a person's own files, ~/.mentat.
func home() (string, error) {
	if dir := os.Getenv(homeEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		return "", fault.Wrap(err, fault.NotFound, "", "cannot find the home directory").WithHint("set HOME or %s", homeEnv)
	}
	return filepath.Join(dir, ".mentat"), nil
}

// userConfig is ~/.mentat/config.toml.
type userConfig struct {
	// CA is the directory of the certificate authority.
	CA string `toml:"ca"`
	// Timestamp is the address of the time stamp authority that signatures are
	// stamped by unless a flag says otherwise, TimestampRoots a PEM file with its
	// roots.
	Timestamp      string `toml:"timestamp"`
	TimestampRoots string `toml:"timestamp_roots"`
}

// readUserConfig reads ~/.mentat/config.toml, if there is one. Paths in it are
// relative to its directory.
func readUserConfig() (userConfig, error) {
	var c userConfig
	dir, err := home()
	if err != nil {
		return c, err
	}
	path := filepath.Join(dir, "config.toml")
	data, err := limits.ReadFile(path, limits.PolicyBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fault.Wrap(err, fault.Usage, path, "cannot read the configuration")
	}
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return c, fault.New(fault.Usage, path, "unknown key %q, allowed are ca, timestamp and timestamp_roots", strings.Join(strict.Errors[0].Key(), "."))
		}
		return c, fault.Wrap(err, fault.Usage, path, "the configuration is malformed")
	}
	for _, p := range []*string{&c.CA, &c.TimestampRoots} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return c, nil
}

// caDir is where the certificate authority is: what the flag says, else the
// environment, else ~/.mentat/config.toml, else ~/.mentat/ca.
func caDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := os.Getenv(caEnv); dir != "" {
		return dir, nil
	}
	c, err := readUserConfig()
	if err != nil || c.CA != "" {
		return c.CA, err
	}
	dir, err := home()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "ca"), nil
}
