package cli

import (
	"crypto/x509"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/verifier"
)

// noStamp as an address switches the configured authority off.
const noStamp = "none"

// stampFlags say who stamps signatures.
type stampFlags struct {
	url, rootsFile string
	roots          *x509.CertPool // set by resolve, with url
}

func (f *stampFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.url, "timestamp", "", "have the RFC 3161 authority at this `URL` stamp the signature; none for none (default: timestamp in ~/.mentat/config.toml, else none)")
	cmd.Flags().StringVar(&f.rootsFile, "timestamp-root", "", "the root certificates of that authority, a PEM `FILE` (default: timestamp_roots in ~/.mentat/config.toml)")
}

// resolve fills in what is configured. A stamp that its maker cannot check is
// not asked for.
func (f *stampFlags) resolve() error {
	if f.url != noStamp && (f.url == "" || f.rootsFile == "") {
		c, err := readUserConfig()
		if f.url == "" && fault.ReasonOf(err) == fault.NotFound {
			return nil // without a home there is no configuration
		}
		if err != nil {
			return err
		}
		if f.url == "" {
			f.url = c.Timestamp
		}
		if f.rootsFile == "" {
			f.rootsFile = c.TimestampRoots
		}
	}
	if f.url == noStamp || f.url == "" {
		if f.rootsFile != "" && f.url == "" {
			return fault.New(fault.Usage, f.rootsFile, "there are roots of a time stamp authority, and no authority").WithHint("name it with --timestamp")
		}
		f.url = ""
		return nil
	}
	if f.rootsFile == "" {
		return fault.New(fault.Usage, f.url, "the roots of the time stamp authority are not known").WithHint("name them with --timestamp-root")
	}
	certs, err := readChain(f.rootsFile, "root certificates of the time stamp authority")
	if err != nil {
		return err
	}
	if _, err := verifier.NewStore(storeName, certs...); err != nil {
		return fault.Wrap(err, fault.Usage, f.rootsFile, "not the roots of a time stamp authority")
	}
	f.roots = x509.NewCertPool()
	for _, c := range certs {
		f.roots.AddCert(c)
	}
	return nil
}
