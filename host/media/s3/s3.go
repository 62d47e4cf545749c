package s3

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/mentatlab/mentat/host/dialer"
	"github.com/mentatlab/mentat/host/media"
	"github.com/mentatlab/mentat/host/secret"
	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
)

// Store is a store in a bucket ([media.Store]).
type Store struct {
	client         *minio.Core
	transport      *http.Transport
	bucket, prefix string
}

// defaultRegion is what a storage that knows no regions takes; naming one keeps
// the client from asking.
const defaultRegion = "us-east-1"

// Open makes a store of a bucket that exists; it connects to nothing yet. A nil
// resolver is the system's. Errors are [fault.PolicyInvalid].
func Open(c *hostdoc.MediaS3, secrets hostdoc.Secrets, resolver dialer.Resolver) (*Store, error) {
	const on = "media storage"
	u, err := url.Parse(c.Endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.PolicyInvalid, on, "the endpoint must be http(s)://HOST[:PORT] and no more")
	}
	access, err := secret.Lookup(secrets, c.AccessKey, on)
	if err != nil {
		return nil, err
	}
	key, err := secret.Lookup(secrets, c.SecretKey, on)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(c.Prefix, "/") || strings.Contains(c.Prefix, "//") || strings.Contains("/"+c.Prefix+"/", "/../") {
		return nil, fault.New(fault.PolicyInvalid, on, "the prefix %q is no beginning of a key", c.Prefix)
	}
	var roots *x509.CertPool
	if u.Scheme == "https" {
		if roots, err = dialer.Roots(c.CAFile); err != nil {
			return nil, err
		}
	}
	host := strings.ToLower(u.Host)
	d := &dialer.Dialer{Resolver: resolver, Endpoint: endpoint(u, host)}
	s := &Store{transport: d.Transport(roots, limits.MediaConnections), bucket: c.Bucket, prefix: c.Prefix}
	s.transport.ResponseHeaderTimeout = limits.MediaResponseTime
	if s.prefix != "" && !strings.HasSuffix(s.prefix, "/") {
		s.prefix += "/"
	}
	region := c.Region
	if region == "" {
		region = defaultRegion
	}
	s.client, err = minio.NewCore(host, &minio.Options{
		Creds:     credentials.NewStaticV4(access, key, ""),
		Secure:    u.Scheme == "https",
		Transport: s.transport,
		Region:    region,
		// The endpoint is what is dialled; a bucket's own host name is not.
		BucketLookup: minio.BucketLookupPath,
		MaxRetries:   3,
	})
	if err != nil {
		return nil, fault.New(fault.PolicyInvalid, on, "the endpoint, region or bucket cannot be used")
	}
	return s, nil
}

func endpoint(u *url.URL, host string) string {
	if u.Port() != "" {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

func (s *Store) key(ref media.Ref) string { return s.prefix + ref.Hex() }

// Open opens an object.
func (s *Store) Open(ctx context.Context, ref media.Ref, most int64) (io.ReadCloser, media.Info, error) {
	body, object, _, err := s.client.GetObject(ctx, s.bucket, s.key(ref), minio.GetObjectOptions{})
	if err != nil {
		return nil, media.Info{}, explain(ref.String(), err)
	}
	if object.Size > most {
		_ = body.Close() // nothing was read of it
		return nil, media.Info{}, fault.New(fault.ResourceLimit, ref.String(), "the object has %d bytes, the limit is %d", object.Size, most)
	}
	kind, err := media.CheckType(object.ContentType)
	if err != nil {
		kind = media.DefaultType
	}
	return media.Verify(&reader{body, ref}, ref, object.Size), media.Info{Size: object.Size, Type: kind}, nil
}

// reader explains what a body fails with.
type reader struct {
	io.ReadCloser
	ref media.Ref
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = explain(r.ref.String(), err)
	}
	return n, err
}

// Put stores an object unless it is there: the first type stays. A reader that
// cannot go back is read into memory, because the object's name is its digest.
func (s *Store) Put(ctx context.Context, mediaType string, r io.Reader, size int64) (media.Ref, error) {
	seeker, ok := r.(io.ReadSeeker)
	if !ok {
		data, err := limits.Read(r, size)
		if err != nil {
			return media.Ref{}, fault.Wrap(err, fault.Unavailable, "", "cannot read the object")
		}
		seeker = bytes.NewReader(data)
	}
	ref, err := media.Copy(ctx, io.Discard, seeker, size)
	if err == nil {
		_, err = seeker.Seek(0, io.SeekStart)
	}
	if err != nil {
		return media.Ref{}, fault.Wrap(err, fault.Unavailable, "", "cannot read the object")
	}
	there, err := s.has(ctx, ref, size)
	if there || err != nil {
		return ref, err
	}
	options := minio.PutObjectOptions{ContentType: mediaType}
	// Of two writers at once the first one's type stays, too.
	options.SetMatchETagExcept("*")
	// The digest is signed, so that the storage takes the very bytes.
	_, err = s.client.PutObject(ctx, s.bucket, s.key(ref), seeker, size, "", ref.Hex(), options)
	if err == nil {
		return ref, nil
	}
	// Another writer was faster: the storage says so, or just hangs up.
	if there, _ := s.has(ctx, ref, size); there {
		return ref, nil
	}
	return media.Ref{}, explain(ref.String(), err)
}

// has tells whether an object is stored. One of another size is damaged, and is
// removed, so that it can be stored anew.
func (s *Store) has(ctx context.Context, ref media.Ref, size int64) (bool, error) {
	there, err := s.client.StatObject(ctx, s.bucket, s.key(ref), minio.StatObjectOptions{})
	switch {
	case err == nil && there.Size == size:
		return true, nil
	case err == nil:
		err = s.client.RemoveObject(ctx, s.bucket, s.key(ref), minio.RemoveObjectOptions{})
	}
	if err != nil && minio.ToErrorResponse(err).StatusCode != http.StatusNotFound {
		return false, explain(ref.String(), err)
	}
	return false, nil
}

// Close closes the connections that nothing uses.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// explain turns an error of the client into one that may be shown: its text may
// hold addresses, names and what the storage says.
func explain(on string, err error) error {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return fault.New(fault.Unavailable, on, "the media storage: %s", dialer.Explain(err).Reason)
	}
	switch {
	case answer.Code == minio.NoSuchBucket:
		return fault.New(fault.Unavailable, on, "the media storage has no such bucket")
	case answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound:
		return fault.New(fault.NotFound, on, "no such object is stored")
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		return fault.New(fault.Unavailable, on, "the media storage refuses the node's credentials")
	}
	return fault.New(fault.Unavailable, on, "the media storage answers with status %d", answer.StatusCode)
}
