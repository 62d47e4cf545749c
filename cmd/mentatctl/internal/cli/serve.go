package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mentatlab/mentat/internal/fault"
	"github.com/mentatlab/mentat/internal/hostdoc"
	"github.com/mentatlab/mentat/internal/limits"
	"github.com/mentatlab/mentat/manifest"
)

// serveFlags are those of run that make it a server.
type serveFlags struct {
	serve  bool
	listen string
	// said is set when --serve or --serve=false was given.
	said bool
}

func (f *serveFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.serve, "serve", false, "answer HTTP requests; --serve=false runs an agent of mode serve once")
	cmd.Flags().StringVar(&f.listen, "listen", "", "serve on this `ADDRESS`, as HOST:PORT or :PORT for every address; default 127.0.0.1 and the manifest's port")
}

// wanted tells whether an agent is to be served.
func (f *serveFlags) wanted(m *manifest.Manifest) bool {
	if f.said {
		return f.serve
	}
	return f.listen != "" || m.Serving()
}

// loopback is where an agent is served unless somebody says otherwise: there is
// neither TLS nor authentication.
const loopback = "127.0.0.1"

// serve runs the host as a server until it is told to end. The socket is opened
// here, so that what is wrong with the address is this command's failure, and
// its port is known.
func (a *app) serve(ctx context.Context, host string, doc *hostdoc.Document, secrets hostdoc.Secrets, m *manifest.Manifest, o *runOptions, args []string) error {
	switch {
	case o.input != "":
		return fault.New(fault.Usage, "--input", "a served agent takes its input from its requests").WithHint("--serve=false runs it once")
	case len(args) > 0 && doc.Entry != hostdoc.EntryCommand:
		return fault.New(fault.Usage, args[0], "a served agent takes its input from its requests, not from arguments").WithHint("--serve=false runs it once")
	}
	doc.Serve = m.Served(loopback)
	if o.serve.listen != "" {
		doc.Serve.Listen = o.serve.listen
	}
	l, err := net.Listen("tcp", doc.Serve.Listen)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, doc.Serve.Listen, "cannot listen there").WithHint("choose another address with --listen")
	}
	socket, err := l.(*net.TCPListener).File()
	if err = errors.Join(err, l.Close()); err != nil {
		return fault.Wrap(err, fault.Internal, doc.Serve.Listen, "cannot pass the socket on")
	}
	defer socket.Close()
	addr, _ := l.Addr().(*net.TCPAddr)
	doc.Serve.Listen, doc.Serve.Socket = addr.String(), firstExtraFile
	doc.Serve.NoticeMillis = 0 // nobody balances requests between this server and others
	doc.Input = hostdoc.Input{Kind: hostdoc.InputStdin}
	doc.Limits.InputBytes = m.BodyLimit()
	if doc.Limits.DeadlineMillis == 0 {
		doc.Limits.DeadlineMillis = millis(limits.DefaultServeDeadline)
	}
	a.announce(doc.Agent.ID, addr)
	return a.exec(ctx, host, doc, secrets, socket)
}

// firstExtraFile is the descriptor under which a child has the first of
// exec.Cmd's ExtraFiles.
const firstExtraFile = 3

// announce tells where the agent is served, and how to ask it.
func (a *app) announce(id string, addr *net.TCPAddr) {
	p := a.printer()
	at := *addr
	if at.IP.IsUnspecified() {
		at.IP = net.ParseIP(loopback)
		p.Note("warning: everybody who reaches this machine reaches the agent, without TLS or a password")
	}
	url := "http://" + at.String()
	p.Note("serving %s on %s; Ctrl-C lets requests finish", id, url)
	p.Note("try: curl --data-binary @input.json %s/v1/process", url)
	p.Note("or:  curl -N -H 'Accept: text/event-stream' --data-binary @input.json %s/v1/process", url)
}

// netHostName is the program that serves agents.
const netHostName = "mentat-host-net"

// netHost finds mentat-host-net beside mentat-host: they are of one build.
func netHost(lean string) (string, error) {
	path := filepath.Join(filepath.Dir(lean), netHostName)
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return "", fault.New(fault.NotFound, path, "there is no %s beside %s", netHostName, lean).WithHint("install the two together")
	}
	return path, nil
}
