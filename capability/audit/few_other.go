//go:build !linux

package audit

func (s Spools) few() (bool, error) { return false, nil }
