package display

import (
	"fmt"
	"strings"
	"time"
)

// Size is a size for people; a MB is 2^20 bytes, as in manifests.
func Size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), "KB"
	for _, next := range []string{"MB", "GB"} {
		if value < 1<<10 {
			break
		}
		value, unit = value/(1<<10), next
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", value), ".0") + " " + unit
}

// Took is a duration for people.
func Took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Date is an instant for people, in UTC.
func Date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// Count is a number with its noun.
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
