package shim

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func fifoFor(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writer opens the FIFO as a client does, in the background, and writes.
func writer(t *testing.T, path, text string) (opened chan *os.File) {
	t.Helper()
	opened = make(chan *os.File, 1)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	return opened
}

func watched(t *testing.T, path string) *inputEnd {
	t.Helper()
	e, err := watchInput(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.stop)
	return e
}

// takes reads what the task would read, whose end of the FIFO is opened now.
func takes(t *testing.T, path string, e *inputEnd) *os.File {
	t.Helper()
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	e.opened()
	return reader
}

func TestAnInputThatNobodyWroteHasEnded(t *testing.T) {
	for name, before := range map[string]func(path string){
		"nobody came": func(string) {},
		"a writer came and went": func(path string) {
			r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			(<-writer(t, path, "")).Close()
			r.Close()
		},
	} {
		path := fifoFor(t)
		before(path)
		if e := watched(t, path); !e.wait() {
			t.Errorf("%s: the end is not seen", name)
		}
	}
}

func TestAnInputEndsWithItsWriterAndLosesNothing(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "a byte": "x", "more than the pipe holds": strings.Repeat("lorem ", 30_000)} {
		path := fifoFor(t)
		opened := writer(t, path, text)
		e := watched(t, path)
		if e.ended {
			t.Fatalf("%s: ended under its writer", name)
		}
		reader := takes(t, path, e)
		got := make(chan string, 1)
		go func() {
			data, err := io.ReadAll(reader)
			if err != nil {
				t.Error(err)
			}
			got <- string(data)
		}()
		(<-opened).Close()
		if !e.wait() {
			t.Errorf("%s: the end is not seen", name)
		}
		if data := <-got; data != text {
			t.Errorf("%s: %d of %d bytes", name, len(data), len(text))
		}
	}
}

// What was written and closed before the task opens the FIFO is there still.
func TestAnInputThatEndedBeforeTheTaskReadsIsKept(t *testing.T) {
	path := fifoFor(t)
	opened := writer(t, path, "all of it")
	e := watched(t, path)
	(<-opened).Close()
	reader := takes(t, path, e)
	data, err := io.ReadAll(reader)
	if err != nil || string(data) != "all of it" || !e.wait() {
		t.Errorf("%q, %v", data, err)
	}
}

func TestAWriterThatIsOnItsWayIsWaitedFor(t *testing.T) {
	path := fifoFor(t)
	opened := make(chan *os.File, 1)
	go func() {
		time.Sleep(writerWait / 10)
		opened <- <-writer(t, path, "late")
	}()
	e := watched(t, path)
	if e.ended {
		t.Error("it has ended before its writer came")
	}
	(<-opened).Close()
	if !e.wait() {
		t.Error("the end is not seen")
	}
}

func TestAWatchOfNoFIFOFails(t *testing.T) {
	if _, err := watchInput(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
