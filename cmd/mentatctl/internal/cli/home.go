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
	caURLEnv      = "MENTAT_CA_URL"
	caRootEnv     = "MENTAT_CA_ROOT"
	caTokenEnv    = "MENTAT_CA_TOKEN"   // #nosec G101 -- a variable's name
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
	// CAURL is where one is served, CARoot a PEM file with the root that vouches for
	// that server.
	CAURL  string `toml:"ca_url"`
	CARoot string `toml:"ca_root"`
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
			return c, fault.New(fault.Usage, path, "unknown key %q, allowed are ca, ca_url, ca_root, timestamp and timestamp_roots", strings.Join(strict.Errors[0].Key(), "."))
		}
		return c, fault.Wrap(err, fault.Usage, path, "the configuration is malformed")
	}
	for _, p := range []*string{&c.CA, &c.CARoot, &c.TimestampRoots} {
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

// caPlace is where certificates are had: from a directory or, if URL is set, from
// a server.
type caPlace struct{ URL, Root string }

// caURL tells whether a server is asked for certificates, and which: what flags
// say, else the environment, else ~/.mentat/config.toml. A level that names a
// directory and a server is refused.
func caURL(dirFlag, urlFlag, rootFlag string) (caPlace, error) {
	c, err := readUserConfig()
	if err != nil {
		return caPlace{}, err
	}
	root := firstOf(rootFlag, os.Getenv(caRootEnv), c.CARoot)
	for _, level := range []struct{ where, dir, url string }{
		{"--ca and --ca-url", dirFlag, urlFlag},
		{caEnv + " and " + caURLEnv, os.Getenv(caEnv), os.Getenv(caURLEnv)},
		{"ca and ca_url in ~/.mentat/config.toml", c.CA, c.CAURL},
	} {
		switch {
		case level.dir != "" && level.url != "":
			return caPlace{}, fault.New(fault.Usage, "", "%s name two certificate authorities", level.where).WithHint("name one with --ca or --ca-url")
		case level.url != "":
			return caPlace{URL: level.url, Root: root}, nil
		case level.dir != "":
			return caPlace{}, rootAlone(rootFlag)
		}
	}
	return caPlace{}, rootAlone(rootFlag)
}

func rootAlone(flag string) error {
	if flag != "" {
		return fault.New(fault.Usage, "--ca-root", "no server is asked").WithHint("name one with --ca-url")
	}
	return nil
}

func firstOf(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
