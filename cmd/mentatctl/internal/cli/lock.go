package cli

import (
	"path/filepath"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
)

// What a host reads that has a network, where distributions keep it: the first
// of the authorities, and all of the others that there are.
var (
	nameFiles = []string{"/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf"}
	caFiles   = []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	}
	// programDirs hold what programs are made of that are no single file.
	programDirs = []string{"/bin", "/usr", "/lib", "/lib64", "/etc/alternatives"}
)

// lock makes the host lock itself into what the document, at path, names:
// without a container these are the walls. The host follows no link on the way
// to a path, so all of them are resolved first.
func lock(doc *hostdoc.Document, path string) error {
	places := []*string{&doc.Module, &doc.Input.Path}
	if doc.Media != nil {
		places = append(places, &doc.Media.Dir)
	}
	for _, e := range doc.Extensions {
		places = append(places, &e.Command[0])
	}
	for _, p := range places {
		if *p == "" {
			continue
		}
		resolved, err := filepath.EvalSymlinks(*p)
		if err != nil {
			return fault.Wrap(err, fault.Usage, *p, "cannot resolve the path").
				WithHint("a descriptor like /dev/stdin is no file: pipe the input in")
		}
		*p = resolved
	}
	l := doc.LeastLock(path)
	if l.Dial {
		l.Read = append(l.Read, there(nameFiles)...)
		if authorities := there(caFiles); len(authorities) > 0 {
			l.Read = append(l.Read, authorities[0])
		}
	}
	if len(l.Execute) > 0 {
		// A plugin inherits the lock, and few are one static file.
		for _, program := range l.Execute {
			l.Read = append(l.Read, filepath.Dir(program))
		}
		l.Execute = append(l.Execute, there(programDirs)...)
		l.Read = append(l.Read, there([]string{"/etc"})...)
	}
	doc.Lock = l
	return nil
}

// there resolves those of the paths that exist.
func there(paths []string) []string {
	var found []string
	for _, p := range paths {
		if resolved, err := filepath.EvalSymlinks(p); err == nil {
			found = append(found, resolved)
		}
	}
	return found
}
