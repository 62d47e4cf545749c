package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/limits"
)

// Names of checks of containerd.
const (
	checkDaemon    = "containerd.running"
	checkVersion   = "containerd.version"
	checkSettings  = "containerd.config"
	checkRestart   = "containerd.restarted"
	checkPlugin    = "verifier.plugin"
	checkLoaded    = "containerd.plugins"
	checkDirectory = "verifier.directory"
	checkEntry     = "verifier.entry"
	checkShadowed  = "verifier.shadowed"
	checkMax       = "verifier.max"
	checkTimeout   = "verifier.timeout"
	checkCRI       = "cri.verification"
	checkHandler   = "cri.runtime"
	checkRunc      = "runc.version"
	checkPrograms  = "programs"
	checkBuild     = "programs.build"
	checkOwner     = "files.owner"
	checkCache     = "files.cache"
	checkClock     = "clock"
	checkConfig    = "config"
	checkPolicy    = "policy"
	checkLint      = "policy.lint"

	checkEnforcement = "policy.enforcement"

	checkCRL        = "revocation.list"
	checkReleases   = "releases.list"
	checkCert       = "certificates"
	checkAgents     = "images"
	checkCanaryPull = "canary.pull"
	checkCanaryGate = "canary.verifier"
	checkCanaryCRI  = "canary.cri"
	checkCanaryRun  = "canary.run"
)

// Plugins of containerd.
const (
	pluginVerifier = "io.containerd.image-verifier.v1.bindir"
	pluginTransfer = "io.containerd.transfer.v1.local"
	pluginImages   = "io.containerd.cri.v1.images"
	pluginRuntime  = "io.containerd.cri.v1.runtime"
	mentatRuntime  = "io.containerd.mentat.v1"
)

// settings are containerd's own words about its configuration, defaults and
// imports included.
type settings struct {
	Disabled []string                  `toml:"disabled_plugins"`
	Imports  []string                  `toml:"imports"`
	Plugins  map[string]map[string]any `toml:"plugins"`
}

func parseSettings(dump string) (*settings, error) {
	var s settings
	if err := toml.Unmarshal([]byte(dump), &s); err != nil {
		return nil, err
	}
	if len(s.Plugins) == 0 {
		return nil, fault.New(fault.Internal, "", "it names no plugins")
	}
	return &s, nil
}

// plugin is a plugin's table; nil if it is disabled or not known.
func (s *settings) plugin(name string) map[string]any {
	if slices.Contains(s.Disabled, name) {
		return nil
	}
	return s.Plugins[name]
}

// value follows a path of keys into a table.
func value(table map[string]any, path string) any {
	var at any = table
	for _, key := range strings.Split(path, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[key]
	}
	return at
}

func checkContainerdVersion(r *Report, on, text string) {
	v, ok := parseRelease(text)
	switch {
	case !ok:
		r.fail(checkVersion, on, fmt.Sprintf("does not say its version: %q", text), "what it verifies cannot be told", "install containerd "+oldestContainerd.String()+" or newer")
		return
	case v.before(pullsContainerd):
		r.fail(checkVersion, on, "is containerd "+v.String(), "it knows no image verifiers: nothing is verified at a pull", "install containerd "+oldestContainerd.String()+" or newer")
		return
	case v.before(oldestContainerd):
		r.fail(checkVersion, on, "is containerd "+v.String(), "its CRI asks no verifier: what a kubelet pulls is not verified", "install containerd "+oldestContainerd.String()+" or newer")
		return
	}
	if !r.flawed(checkVersion, on, "containerd", v, containerdFlaws) {
		r.ok(checkVersion, on, "containerd %s", v)
	}
}

// flawed warns of known flaws: distributions repair some without another version.
func (r *Report) flawed(check, on, name string, v release, flaws []flaw) bool {
	found := false
	for _, f := range flaws {
		if f.has(v) {
			found = true
			r.warn(check, on, fmt.Sprintf("is %s %s, which has %s", name, v, f.what),
				"who uses the flaw goes past what was verified",
				fmt.Sprintf("install %s %s or newer, or make sure that your distribution's package has the fix", name, f.since(v)))
		}
	}
	return found
}

func checkRuncVersion(r *Report, on, text string) {
	v, ok := parseRelease(text)
	if !ok {
		r.fail(checkRunc, on, fmt.Sprintf("does not say its version: %q", text), "what holds agents cannot be told", "install runc")
		return
	}
	if !r.flawed(checkRunc, on, "runc", v, runcFlaws) {
		r.ok(checkRunc, on, "runc %s", v)
	}
}

// checkRestarted compares what the daemon read when it started with what is there now.
func checkRestarted(r *Report, d *Daemon, s *settings) {
	files := []string{d.Config}
	for _, pattern := range s.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(d.Config), pattern)
		}
		found, err := filepath.Glob(pattern)
		if err == nil {
			files = append(files, found...)
		}
	}
	stale := false
	for _, f := range files {
		info, err := os.Stat(f)
		if err == nil && info.ModTime().After(d.Started.Add(time.Second)) {
			stale = true
			r.fail(checkRestart, f, fmt.Sprintf("changed at %s, containerd runs since %s", stamp(info.ModTime()), stamp(d.Started)),
				"containerd reads it when it starts: what the file says does not hold yet, and this report is about the file", "restart containerd")
		}
	}
	if strings.HasSuffix(d.Program, " (deleted)") {
		r.warn(checkRestart, d.Program, "the running program was replaced on disk", "what was installed does not run yet", "restart containerd")
	} else if !stale {
		r.ok(checkRestart, d.Config, "not changed since containerd started")
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// criSetting is one of CRI's settings that leave the transfer service, and with it
// all verifiers, out. With most of them a line in the log is all that is said.
type criSetting struct {
	path string
	good func(any) bool
	keep string
}

var criSettings = []criSetting{
	{"use_local_image_pull", isFalse, "at false"},
	{"disable_snapshot_annotations", func(v any) bool { return v == true }, "at true"},
	{"discard_unpacked_layers", isFalse, "at false"},
	{"image_pull_with_sync_fs", isFalse, "at false"},
	{"max_concurrent_downloads", func(v any) bool { return v == nil || v == int64(3) }, "at 3, and tune it under plugins.'" + pluginTransfer + "'"},
	{"registry.mirrors", isEmpty, "unset, and use registry.config_path"},
	{"registry.configs", isEmpty, "unset, and use registry.config_path"},
	{"registry.auths", isEmpty, "unset, and use registry.config_path"},
}

func isFalse(v any) bool { return v == nil || v == false }

func isEmpty(v any) bool {
	m, ok := v.(map[string]any)
	return v == nil || ok && len(m) == 0
}

// checkCRISettings looks at what a kubelet's pulls go through.
func checkCRISettings(r *Report, s *settings) {
	images := s.plugin(pluginImages)
	if images == nil {
		r.note(checkCRI, pluginImages, "CRI's images are not served here", "no kubelet pulls on this node")
		return
	}
	const why = "CRI then pulls without the transfer service and asks no verifier; containerd says so in its log at most"
	if _, known := images["use_local_image_pull"]; !known {
		r.fail(checkCRI, pluginImages, "this containerd's CRI does not know the transfer service", "it asks no verifier", "install containerd "+oldestContainerd.String()+" or newer")
		return
	}
	bad := false
	for _, c := range criSettings {
		v := value(images, c.path)
		if !c.good(v) {
			bad = true
			r.fail(checkCRI, fmt.Sprintf("plugins.'%s'.%s", pluginImages, c.path), fmt.Sprintf("is %s", shown(v)), why, "keep it "+c.keep+", then restart containerd")
		}
	}
	if s.plugin(pluginTransfer) == nil {
		bad = true
		r.fail(checkCRI, pluginTransfer, "the plugin is disabled or not there", why, "enable it, then restart containerd")
	}
	if !bad {
		r.ok(checkCRI, pluginImages, "pulls go through the transfer service")
	}
	checkRuntimes(r, s)
}

func shown(v any) string {
	switch m := v.(type) {
	case nil:
		return "not known to this containerd"
	case map[string]any:
		keys := make([]string, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		return "set, for " + strings.Join(keys, ", ")
	}
	return fmt.Sprint(v)
}

func checkRuntimes(r *Report, s *settings) {
	table := s.plugin(pluginRuntime)
	runtimes, _ := value(table, "containerd.runtimes").(map[string]any)
	var ours []string
	for name, v := range runtimes {
		if entry, ok := v.(map[string]any); ok && entry["runtime_type"] == mentatRuntime {
			ours = append(ours, name)
		}
	}
	slices.Sort(ours)
	if len(ours) == 0 {
		r.warn(checkHandler, "plugins.'"+pluginRuntime+"'", "no runtime has the type "+mentatRuntime,
			"no pod can ask for the gate before its containers start", "add a runtime of that type and a RuntimeClass for it")
		return
	}
	r.ok(checkHandler, "plugins.'"+pluginRuntime+"'", "%s for the handlers %s", mentatRuntime, strings.Join(ours, ", "))
	if name, _ := value(table, "containerd.default_runtime_name").(string); !slices.Contains(ours, name) {
		r.note(checkHandler, "default_runtime_name", fmt.Sprintf("is %q", name),
			"pods without the runtime class are judged when their image is pulled, and not again when they start")
	}
}

// checkVerifiers looks at the directory of verifiers with containerd's eyes. It
// returns the path of ours, "" where it is not asked.
func checkVerifiers(r *Report, s *settings) string {
	table := s.plugin(pluginVerifier)
	if table == nil {
		r.fail(checkPlugin, pluginVerifier, "the plugin is disabled or not there", "no verifier is asked at any pull", "remove it from disabled_plugins, then restart containerd")
		return ""
	}
	r.ok(checkPlugin, pluginVerifier, "enabled")
	checkBudget(r, table)
	dir, _ := table["bin_dir"].(string)
	entries, err := os.ReadDir(dir)
	const open = "containerd then takes every image without a word"
	do := "install mentat-verifier as " + filepath.Join(dir, "00-mentat")
	switch {
	case err != nil:
		r.fail(checkDirectory, dir, "cannot be read: "+err.Error(), open, do)
		return ""
	case len(entries) == 0:
		r.fail(checkDirectory, dir, "is empty", open, do)
		return ""
	}
	most, ok := table["max_verifiers"].(int64)
	if !ok {
		r.fail(checkMax, dir, "max_verifiers is "+shown(table["max_verifiers"]), "how many verifiers are asked cannot be told", "set it to a number")
		return ""
	}
	return checkEntries(r, dir, entries, most, do)
}

func checkEntries(r *Report, dir string, entries []os.DirEntry, most int64, do string) string {
	ours := -1
	for i, e := range entries {
		path := filepath.Join(dir, e.Name())
		if runnable(path) != nil {
			r.fail(checkEntry, path, "is not a program that can be executed: "+runnable(path).Error(),
				"containerd executes every entry, and what cannot be executed blocks every pull", "remove it, or make it executable")
			continue
		}
		if ours < 0 && isProgram(path, "mentat-verifier") {
			ours = i
		}
	}
	if ours < 0 {
		r.fail(checkEntry, dir, fmt.Sprintf("none of its %d entries is mentat-verifier", len(entries)), "the node's policy is not asked at a pull", do)
		return ""
	}
	path := filepath.Join(dir, entries[ours].Name())
	if most >= 0 && int64(ours) >= most {
		r.fail(checkMax, path, fmt.Sprintf("is entry %d by name, max_verifiers is %d", ours+1, most), "containerd skips it with a line in its log", "give it a name that sorts first, such as 00-mentat, or raise max_verifiers")
		return ""
	}
	if ours > 0 {
		r.warn(checkShadowed, path, fmt.Sprintf("%d other entries are asked first, the first is %s", ours, entries[0].Name()),
			"what one of them refuses, or takes too long for, never comes to the node's policy; with more of them it falls beyond max_verifiers", "give it a name that sorts first, such as 00-mentat")
	} else {
		r.ok(checkEntry, path, "is asked first")
	}
	return path
}

func checkBudget(r *Report, table map[string]any) {
	text, _ := table["per_verifier_timeout"].(string)
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		r.warn(checkTimeout, pluginVerifier, fmt.Sprintf("per_verifier_timeout is %q", text), "how long a verifier may take cannot be told", "set it to 10s")
	case d <= limits.VerifierBudget:
		r.warn(checkTimeout, pluginVerifier, fmt.Sprintf("per_verifier_timeout is %s, mentat-verifier takes up to %s", d, limits.VerifierBudget),
			"containerd kills it before it answers, which blocks the pull", "set it to 10s")
	default:
		r.ok(checkTimeout, pluginVerifier, "%s", d)
	}
}

// dump asks the daemon's own program what its configuration means.
func dump(ctx context.Context, d *Daemon) (*settings, error) {
	out, stderr, err := output(ctx, d.env, "", d.exe, "--config", d.Config, "config", "dump")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, words(stderr))
	}
	return parseSettings(out)
}

// mustRun are the plugins that verification goes through.
var mustRun = []string{pluginVerifier, pluginTransfer, pluginImages}

// checkPluginList reads what the running daemon says of its plugins: one with a
// setting that it does not accept is not there, and containerd runs on without it.
func checkPluginList(r *Report, list string) {
	state := map[string]string{}
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) >= 4 {
			state[f[0]+"."+f[1]] = f[len(f)-1]
		}
	}
	sound := true
	for _, name := range mustRun {
		switch got := state[name]; got {
		case "ok", "skip":
		case "":
			if name == pluginImages {
				continue // CRI is off
			}
			sound = false
			r.fail(checkLoaded, name, "is not there", "nothing is verified at a pull", "enable it, then restart containerd")
		default:
			sound = false
			r.fail(checkLoaded, name, "did not start: "+got, "what goes through it does not work, or goes another way", "see containerd's log for why, repair it, then restart containerd")
		}
	}
	if sound {
		r.ok(checkLoaded, "containerd", "its verifiers and what asks them run")
	}
}
