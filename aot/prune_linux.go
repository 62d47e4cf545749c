package aot

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mentatlab/mentat/internal/limits"
)

// fresh protects what was just handed out and may not be mapped yet, and
// temporary files of a compilation that goes on.
const fresh = time.Minute

// Prune removes entries beyond [Options.MaxBytes], those first that were used
// longest ago, and what crashed processes left behind. An entry in use stays
// usable: its file lives on until the last mapping ends.
func (c *Cache) Prune() error {
	listing, err := os.ReadDir(c.opts.Dir)
	if err != nil {
		return diskError(err, c.opts.Dir, "cannot list the cache")
	}
	type entry struct {
		key  string
		size int64
		used time.Time
	}
	var entries []entry
	var total int64
	var errs []error
	now := time.Now()
	for _, item := range listing {
		name := item.Name()
		info, err := item.Info()
		if err != nil {
			continue // gone meanwhile
		}
		path := filepath.Join(c.opts.Dir, name)
		age := now.Sub(info.ModTime())
		switch {
		case strings.HasSuffix(name, moduleSuffix):
			e := entry{strings.TrimSuffix(name, moduleSuffix), info.Size(), info.ModTime()}
			if memo, err := os.Lstat(filepath.Join(c.opts.Memory, e.key)); c.opts.Memory != "" && err == nil && memo.ModTime().After(e.used) {
				e.used = memo.ModTime()
			}
			entries = append(entries, e)
			total += e.size
		case strings.HasSuffix(name, failSuffix) && age > fresh:
			errs = append(errs, os.RemoveAll(path))
		}
	}
	errs = append(errs, c.sweep(), c.pruneJails(listing))
	if c.opts.MaxBytes <= 0 {
		return errors.Join(errs...)
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	for _, e := range entries {
		if total <= c.opts.MaxBytes {
			break
		}
		if now.Sub(e.used) < fresh {
			continue
		}
		unlock, err := c.tryLock(e.key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if unlock == nil {
			continue // somebody is at it, so it is in use
		}
		err = c.remove(e.key)
		unlock()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		total -= e.size
	}
	return errors.Join(errs...)
}

// pruneJails removes the compilers of earlier builds of mentat-host.
func (c *Cache) pruneJails(listing []fs.DirEntry) error {
	host, err := c.openHost()
	if err != nil {
		return err
	}
	defer host.file.Close()
	var errs []error
	for _, item := range listing {
		name := item.Name()
		if !strings.HasPrefix(name, jailPrefix) || name == jailPrefix+host.digest[:32] {
			continue
		}
		// A build may still be about to start its compiler here.
		if info, err := item.Info(); err == nil && time.Since(info.ModTime()) > c.opts.CompileWall+fresh {
			errs = append(errs, os.RemoveAll(filepath.Join(c.opts.Dir, name)))
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what processes left that were killed while they compiled for
// the cache in dir. What goes on is left alone: its lock is held.
func Sweep(dir string) error {
	c := &Cache{opts: Options{Dir: dir, CompileWall: limits.CompileWall}}
	return c.sweep()
}

func (c *Cache) sweep() error {
	listing, err := os.ReadDir(c.opts.Dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return diskError(err, c.opts.Dir, "cannot list the cache")
	}
	var errs []error
	keys := make(map[string]bool)
	for _, item := range listing {
		rest, ok := strings.CutPrefix(item.Name(), tempPrefix)
		if !ok {
			continue
		}
		if key, _, _ := strings.Cut(rest, "-"); len(key) == 2*sha256.Size {
			keys[key] = true
			continue
		}
		// Made without a lock, in a moment.
		if info, err := item.Info(); err == nil && time.Since(info.ModTime()) > c.opts.CompileWall+fresh {
			errs = append(errs, os.RemoveAll(filepath.Join(c.opts.Dir, item.Name())))
		}
	}
	for _, dir := range leftGroups(c.groupName("*")) {
		keys[strings.TrimPrefix(filepath.Base(dir), c.groupName(""))] = true
	}
	for key := range keys {
		unlock, err := c.tryLock(key)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if unlock == nil {
			continue
		}
		errs = append(errs, c.clear(key))
		unlock()
	}
	return errors.Join(errs...)
}

// clear removes what an earlier holder of the key's lock left when it was
// killed. The caller holds the lock.
func (c *Cache) clear(key string) error {
	errs := []error{clearGroup(c.groupName(key))}
	listing, err := os.ReadDir(c.opts.Dir)
	errs = append(errs, err)
	for _, item := range listing {
		if strings.HasPrefix(item.Name(), tempPrefix+key+"-") {
			errs = append(errs, os.RemoveAll(filepath.Join(c.opts.Dir, item.Name())))
		}
	}
	return errors.Join(errs...)
}
