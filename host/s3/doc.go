// Package s3 keeps media in a bucket of S3-compatible storage.
//
// Trusted: the host document, which names the bucket, and its credentials.
// Hostile: the storage and what others wrote into the bucket: an object's bytes
// count only with their digest, its type only if it is one. Promise: that of
// [media.Store]; nothing but the configured endpoint is connected to; no error
// holds a credential or an answer's text.
package s3
