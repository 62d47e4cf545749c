package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

// lossy is a program for transcripts: `lossy COUNT SERVER FILE` prints an address and
// passes connections on to the server, but of the first COUNT no answer comes back: a
// connection stands still once the server has answered and closed its side, and FILE
// gets a line. With a COUNT below zero that many are cut there instead.
func lossy() {
	count, err := strconv.Atoi(os.Args[1])
	cut := count < 0
	if cut {
		count = -count
	}
	var l net.Listener
	if err == nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	for n := 0; ; n++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go pass(c, os.Args[2], n < count, func() {
			f, err := os.OpenFile(os.Args[3], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				fmt.Fprintln(f, "answered")
				f.Close()
			}
			if cut {
				c.Close()
			}
		})
	}
}

// pass carries both ways. What a server says after the client's second word is its
// answer: before that it shook hands.
func pass(c net.Conn, server string, lose bool, lost func()) {
	s, err := net.Dial("tcp", server)
	if err != nil {
		c.Close()
		return
	}
	defer s.Close()
	var words atomic.Int32
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := c.Read(buffer)
			if err != nil {
				return
			}
			words.Add(1)
			if _, err := s.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := s.Read(buffer)
		if lose && words.Load() > 1 {
			_, _ = io.Copy(io.Discard, s)
			lost()
			return
		}
		if err != nil {
			c.Close()
			return
		}
		if _, err := c.Write(buffer[:n]); err != nil {
			return
		}
	}
}
