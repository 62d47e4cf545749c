package network

import (
	"errors"

	"github.com/mentatlab/mentat/host/backend"
	"github.com/mentatlab/mentat/host/dialer"
	"github.com/mentatlab/mentat/host/egress"
	"github.com/mentatlab/mentat/host/llm"
	"github.com/mentatlab/mentat/host/media/s3"
	"github.com/mentatlab/mentat/host/process"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/manifest"
)

// Services opens what the document asks for.
func Services(doc *hostdoc.Document, secrets hostdoc.Secrets, meters *backend.Meters) (process.Services, error) {
	return Open(doc, secrets, nil, meters)
}

// Open is [Services] with a resolver, nil for the system's; meters may be nil.
func Open(doc *hostdoc.Document, secrets hostdoc.Secrets, resolver dialer.Resolver, meters *backend.Meters) (s process.Services, err error) {
	s.Backends = map[string]backend.Backend{}
	defer func() {
		if err != nil {
			for _, b := range s.Backends {
				err = errors.Join(err, b.Close())
			}
			s = process.Services{}
		}
	}()
	if doc.Network != nil {
		own, err := dialer.Own()
		if err != nil {
			return s, err
		}
		b, err := egress.New(egress.Config{Document: doc, Secrets: secrets, Resolver: resolver, Own: own})
		if err != nil {
			return s, err
		}
		s.Backends[manifest.KindNetwork] = b
	}
	if doc.LLM != nil {
		b, err := llm.New(llm.Config{Document: doc, Secrets: secrets, Resolver: resolver, Meters: meters})
		if err != nil {
			return s, err
		}
		s.Backends[manifest.KindLLM] = b
	}
	if doc.Media != nil && doc.Media.S3 != nil {
		store, err := s3.Open(doc.Media.S3, secrets, resolver)
		if err != nil {
			return s, err
		}
		s.Media = store
	}
	return s, nil
}
