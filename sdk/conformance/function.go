package conformance

import "slices"

// Function is a function of the ABI under one of the types that a guest may import
// it with. A guest tells them apart by their place in [Functions].
type Function struct {
	// Name is as in the ABI; where there are two types, the case's name for this one
	// is Name and Variant joined by "/".
	Name, Variant string
	// Params has a letter for each parameter and Result one for the result: i, I and
	// F are i32, i64 and f64, nothing is none.
	Params, Result string
}

func (f Function) String() string {
	if f.Variant == "" {
		return f.Name
	}
	return f.Name + "/" + f.Variant
}

// Functions are all of them. The order is part of the script's format: additions
// go to the end.
var Functions = []Function{
	{"abi_version", "", "", "i"},
	{"read_input", "", "", "i"},
	{"read", "", "iii", "i"},
	{"size", "", "i", "I"},
	{"close", "", "i", "i"},
	{"write_output", "", "ii", "i"},
	{"write_output", "void", "ii", ""},
	{"set_error", "", "iii", "i"},
	{"last_error", "", "", "i"},
	{"log", "", "ii", ""},
	{"log", "level", "iii", ""},
	{"start_stream", "", "ii", "i"},
	{"write_stream", "", "iii", "i"},
	{"end_stream", "", "ii", "i"},
	{"download_media", "", "ii", "i"},
	{"upload_media", "", "iiii", "i"},
	{"record_metric", "", "iiiFii", "i"},
	{"request_capability", "", "iiii", "i"},
	{"invoke_capability", "", "iiiii", "i"},
	{"get_config", "", "ii", "i"},
}

func lookup(name string) (int, bool) {
	i := slices.IndexFunc(Functions, func(f Function) bool { return f.String() == name })
	return i, i >= 0
}

// Codes are the ABI's error codes by name.
var Codes = map[string]int64{
	"INVALID": -1, "DENIED": -2, "NOT_FOUND": -3, "LIMIT": -4, "DEADLINE": -5, "CANCELED": -6,
	"UNAVAILABLE": -7, "BAD_HANDLE": -8, "UNSUPPORTED": -9, "CONFLICT": -10, "INTERNAL": -11,
}
