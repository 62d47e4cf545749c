package host

import (
	"unicode/utf8"

	"github.com/mentatlab/mentat/host/metrics"
	"github.com/mentatlab/mentat/host/output"
	"github.com/mentatlab/mentat/internal/limits"
)

func recordMetric(c *call) bool {
	name, ok := c.bytes(0)
	if !ok {
		return false
	}
	attrs, ok := c.bytes(4)
	if !ok {
		return false
	}
	name = name[:min(len(name), limits.MetricNameBytes+1)] // a byte too long is as bad as many
	if !utf8.Valid(name) {
		return c.fails(codeInvalid, detail{Reason: "a metric's name is text"})
	}
	attributes, refused := metrics.ParseAttributes(attrs)
	m := metrics.Measurement{Name: string(name), Kind: metrics.Kind(c.values[2].I32()), Value: c.values[3].F64(), Attributes: attributes}
	o := c.s.out
	if refused == nil && o.observer != nil && !o.take(len(name)+len(attrs)) {
		return c.fails(codeLimit, detail{Reason: errOutputLimit.Error()})
	}
	if refused == nil {
		refused = c.s.p.metrics.Record(m)
	}
	if refused != nil {
		return c.refuses("", refused)
	}
	if o.observer != nil {
		// A reader that left is noticed when something is written that counts.
		_ = o.observer.Metric(output.Metric{Name: m.Name, Kind: m.Kind.String(), Value: m.Value, Attributes: m.Attributes})
	}
	return c.returns(0)
}
