// Package aot keeps compiled modules: each module is compiled once per node, in
// a child process, and every later run maps the file that is here.
//
// Trusted: the owner of the cache directory (root on a node), the mentat-host
// binary, and the node-local key beside the entries. Hostile: the modules, and
// therefore the compiler child once it has read one, and whatever it returns;
// the child gets the module on stdin and answers on one descriptor, and it has
// no environment, no network, no file system, no privileges and hard limits
// where the caller is root, and limits and no environment where it is not.
//
// Promise: the path that [Cache.Module] returns holds exactly the bytes that
// this node's compiler made of the module with that digest, under this build of
// mentat-host and on this kind of processor: anything else is removed and
// compiled again. Native code never comes from anywhere else. Nothing half
// written is ever visible, and no module is compiled twice at the same time.
package aot
