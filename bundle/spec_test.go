package bundle

import (
	"reflect"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// What a new version of the specification brings must not be lost on the way.
func TestNothingOfALinuxSpecificationIsLost(t *testing.T) {
	others := []string{"Solaris", "Windows", "VM", "ZOS", "FreeBSD"}
	ours, theirs := reflect.TypeFor[linuxSpec](), reflect.TypeFor[specs.Spec]()
	for field := range theirs.Fields() {
		of, ok := ours.FieldByName(field.Name)
		if slices.Contains(others, field.Name) {
			if ok {
				t.Errorf("%s is for another platform", field.Name)
			}
			continue
		}
		if !ok || of.Type != field.Type || of.Tag.Get("json") != field.Tag.Get("json") {
			t.Errorf("%s is %+v, want %+v", field.Name, of, field)
		}
	}
	full := specs.Spec{
		Version: "1.3.0", Process: &specs.Process{Cwd: "/"}, Root: &specs.Root{Path: "r"}, Hostname: "h", Domainname: "d",
		Mounts: []specs.Mount{{Destination: "/m"}}, Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/h"}}},
		Annotations: map[string]string{"a": "b"}, Linux: &specs.Linux{CgroupsPath: "/c"},
	}
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if name := theirs.Field(i).Name; v.Field(i).IsZero() != slices.Contains(others, name) {
			t.Errorf("%s is not in this test", name)
		}
	}
	data, err := encodeSpec(&full)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseSpec("config.json", data)
	if err != nil || !reflect.DeepEqual(*again, full) {
		t.Errorf("%s, %v", data, err)
	}
}
