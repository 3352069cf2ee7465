package main

// A mutant is the filter with one thing changed.
type mutant struct {
	name     string
	file     string
	old, new string
}

const (
	decide   = "dnsbl/decide.go"
	codes    = "dnsbl/codes.go"
	zone     = "dnsbl/zone.go"
	client   = "dnsbl/resolver/resolver_linux.go"
	lookup   = "dnsbl/resolver/lookup_linux.go"
	conn     = "dnsbl/resolver/conn_linux.go"
	servers  = "dnsbl/resolver/servers_linux.go"
	reply    = "smtpreply/smtpreply.go"
	serve    = "smtpreply/serve_linux.go"
	sender   = "firewall/hit/sender_linux.go"
	program  = "cmd/rblsmtpd/main.go"
	options  = "cmd/rblsmtpd/options.go"
	lookups  = "cmd/rblsmtpd/lookups_linux.go"
	report   = "cmd/rblsmtpd/report_linux.go"
	entry    = "cmd/rblsmtpd/entry_linux.go"
	execFile = "cmd/rblsmtpd/exec_linux.go"
)

var mutants = []mutant{
	{"no recursion desired", lookup, "RecursionDesired: true", "RecursionDesired: false"},
	{"the ID of a query is always the same", lookup, "c := conn{fd: fd, server: server, id: uint16(rand.Uint32())}", "c := conn{fd: fd, server: server, id: 7 + 0*uint16(rand.Uint32())}"},
	{"any ID will do", lookup, "!h.Response || h.ID != id", "!h.Response"},
	{"a query is an answer", lookup, "!h.Response || h.ID != id", "h.ID != id"},
	{"any type will do", lookup, "q.Type != l.question.Type || ", ""},
	{"any class will do", lookup, "q.Class != l.question.Class || ", ""},
	{"any name will do", lookup, " || !sameName(q.Name, l.question.Name)", ""},
	{"capitals are other letters", lookup, "x|0x20 != y|0x20 || ", "true || "},
	{"names are folded beyond letters", lookup, " || x|0x20 < 'a' || x|0x20 > 'z'", ""},
	{"two questions", lookup, "if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {", "if false {"},
	{"a failure without a question is ignored", lookup, "if err == dnsmessage.ErrSectionDone && h.RCode", "if false && h.RCode"},
	{"truncated over UDP is refused", lookup, "case h.Truncated && !tcp:\n\t\treturn dnsbl.Answer{}, truncated", "case h.Truncated && !tcp:\n\t\treturn dnsbl.Answer{}, refused"},
	{"truncated over TCP is believed", lookup, "case h.Truncated:", "case false:"},
	{"NXDOMAIN is a failure", lookup, "return dnsbl.Answer{}, answered\n\tcase h.RCode != dns", "return dnsbl.Answer{}, refused\n\tcase h.RCode != dns"},
	{"SERVFAIL is an answer", lookup, "case h.RCode != dnsmessage.RCodeSuccess:\n\t\treturn dnsbl.Answer{}, refused", "case h.RCode != dnsmessage.RCodeSuccess:\n\t\treturn dnsbl.Answer{}, answered"},
	{"only the last A record", lookup, "a.Addrs = append(a.Addrs, netip.AddrFrom4(r.A))", "a.Addrs = []netip.Addr{netip.AddrFrom4(r.A)}"},
	{"only the first string", lookup, "range r.TXT {", "range r.TXT[:min(1, len(r.TXT))] {"},
	{"records of any class", lookup, "case h.Class != l.question.Class || h.Type", "case h.Type"},
	{"a broken record is skipped", lookup, "\t\tif err != nil {\n\t\t\treturn a, err\n\t\t}\n\t}\n}", "\t\tif err != nil {\n\t\t\treturn a, nil\n\t\t}\n\t}\n}"},
	{"a text without end", lookup, "s[:min(len(s), maxText-len(text))]...", "s..."},
	{"no limit for TCP", lookup, "16 * 1024 // bytes", "64 * 1024 // bytes"},
	{"the length before a query is wrong", lookup, "l.query[0], l.query[1] = byte(length>>8), byte(length)", "l.query[0], l.query[1] = 0, byte(length+1)"},

	{"the server that answers is not preferred", client, "\t\t\tc.preferred = server\n", "\t\t\t_ = server\n"},
	{"no fail-over where nobody listens", client, "if l.turn%len(c.servers) == 0 {", "if true {"},
	{"no end of asking where nobody listens", client, "if l.turn%len(c.servers) == 0 {", "if false {"},
	{"no back-off", client, "now.Add(firstPatience << min(l.turn/len(c.servers), 6))", "now.Add(firstPatience)"},
	{"want of descriptors costs a turn", client, "l.patience = now.Add(shortage)", "l.turn++; l.patience = now.Add(8 * firstPatience)"},
	{"want of descriptors is for ever", client, "if len(l.conns) == 0 {\n\t\t\t\tc.advance(l, now)", "if false {\n\t\t\t\tc.advance(l, now)"},
	{"one failure is enough", client, "failuresAllowed = 2", "failuresAllowed = 1"},
	{"three failures", client, "failuresAllowed = 2", "failuresAllowed = 3"},
	{"failures are not counted", client, "\t} else {\n\t\tl.failures[server]++\n\t}", "\t}"},
	{"nobody is asked again", client, "if !l.done && !now.Before(l.patience) {", "if false {"},
	{"descriptors stay open after an answer", client, "\t\t\tl.close()\n\t\t\tended = true", "\t\t\tended = true"},
	{"descriptors stay open at the end", client, "for _, l := range c.lookups {\n\t\tl.close()\n\t}", ""},
	{"a lookup given up has no error", client, "dnsbl.Answer{Err: ErrTimeout}", "dnsbl.Answer{}"},

	{"a partial write over TCP is sent again", conn, "c.unsent = c.unsent[n:]", "if n == len(c.unsent) {\n\t\t\tc.unsent = nil\n\t\t}"},
	{"TCP connections are not closed", conn, "if c.fd >= 0 {\n\t\tunix.Close", "if c.fd >= 0 && !c.tcp {\n\t\tunix.Close"},
	{"no descriptor means unreachable", conn, "case unix.EMFILE, unix.ENFILE,", "case unix.ENFILE,"},
	{"a refused port means unreachable", conn, "return absent", "return unreachable"},
	{"no route means absent", conn, "return unreachable", "return absent"},
	{"datagrams of any size", conn, "n > maxUDP:", "false:"},
	{"link-local servers without an interface", conn, "ZoneId: zoneID(addr.Zone())", "ZoneId: 0 * zoneID(addr.Zone())"},
	{"the length of an answer is in the wrong order", conn, "int(c.read[0])<<8 + int(c.read[1])", "int(c.read[1])<<8 + int(c.read[0])"},
	{"half an answer over TCP", conn, "if len(c.read) == want && want > 2 {", "if want > 2 {"},

	{"keywords anywhere in a line", servers, `!strings.HasPrefix(line, "nameserver") || `, ""},
	{"no comments behind a semicolon", servers, `"#;"`, `"#"`},
	{"any number of servers", servers, `fields[0] != "nameserver" || len(servers) == maxServers`, `fields[0] != "nameserver"`},
	{"no server in resolv.conf: 127.0.0.2", servers, "AddrFrom4([4]byte{127, 0, 0, 1})", "AddrFrom4([4]byte{127, 0, 0, 2})"},
	{"an unreadable resolv.conf is an empty one", servers, "err != nil && err != unix.ENOENT", "false"},

	{"error codes are a /16", codes, "255, 0}), 24)", "255, 0}), 16)"},
	{"any address lists", codes, "code.IsLoopback() && (s.Codes", "(s.Codes"},
	{"any code lists", codes, "(s.Codes == nil || s.Codes.Match(code))", "true"},
	{"an error code is no failure", codes, "return outcome{kind: failed}", "return outcome{}"},
	{"a mistyped zone goes unsaid", codes, "case 252:", "case 253:"},

	{"127.0.0.2 must not be listed", zone, "never := netip.AddrFrom4([4]byte{127, 0, 0, 1})", "never := netip.AddrFrom4([4]byte{127, 0, 0, 2})"},
	{"IPv6 lists are asked for IPv4", zone, "if !addr.Unmap().Is4() {", "if false {"},
	{"names may be a byte longer", zone, "return string(b), len(b) <= maxName", "return string(b), len(b) <= maxName+1"},
	{"names must be a byte shorter", zone, "return string(b), len(b) <= maxName", "return string(b), len(b) < maxName"},
	{"nibbles in the wrong order", zone, "hex[ip[i]&15], '.', hex[ip[i]>>4], '.'", "hex[ip[i]>>4], '.', hex[ip[i]&15], '.'"},

	{"a bounce after a failure", decide, "bounceable = false", "bounceable = true"},
	{"a failing allow list never allows", decide, "case s.Allow && !s.FailClosed:", "case false:"},
	{"fail closed is ignored", decide, "case !s.Allow && s.FailClosed:", "case false:"},
	{"a list that is not asked about is sick", decide, "\tcase unanswered:\n", "\tcase unanswered:\n\t\treturn false, nil\n\tcase false:\n"},
	{"no list is sick", decide, "if !sane {", "if !sane && false {"},
	{"texts alone are not tested", decide, "evidence = TXT", "evidence = A"},
	{"nothing is checked while an answer is late", decide, "\t\t\td.checkLater()\n", ""},
	{"a question is asked as often as it comes", decide, "if d.find(name, qtype) == nil {", "if true {"},
	{"all at once in spite of -s", decide, "if !oneByOne {", "if true {"},
	{"one after the other without -s", decide, "if !oneByOne {", "if false {"},
	{"only the first source is logged", decide, "\t\td.log(s.Zone, what, detail)", "\t\tif len(d.said) == 1 {\n\t\t\td.log(s.Zone, what, detail)\n\t\t}"},
	{"everything is logged twice", decide, "!slices.Contains(d.said, line)", "!slices.Contains(d.said[:0], line)"},
	{"only the first %IP%", decide, `strings.ReplaceAll(s.Message, "%IP%", addr.String())`, `strings.Replace(s.Message, "%IP%", addr.String(), 1)`},
	{"a text lists although its A record does not", decide, "if len(a.Addrs) == 0 && s.Codes == nil {", "if s.Codes == nil {"},

	{"a byte less of the text", reply, "maxText = 200", "maxText = 199"},
	{"DEL is printable", reply, "c <= 126", "c <= 127"},
	{"what follows QUIT is answered", reply, "return out, true", "c.length = 0"},
	{"long words are commands", reply, "if c.length > maxVerb {", "if false {"},

	{"the rest of a partial reply is lost", serve, "\t\t\tb = b[n:]", "\t\t\tb = b[n:][:0]"},
	{"the conversation never ends", serve, "left := time.Until(s.deadline)", "left := time.Hour"},
	{"a client that is gone is talked to", serve, "case err != unix.EAGAIN && err != unix.EINTR:", "case false:"},
	{"writing waits", serve, "unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)", "unix.MSG_NOSIGNAL)"},

	{"a full queue is an error", sender, "if err == unix.EAGAIN || err == unix.EINTR {", "if err == unix.EINTR {"},
	{"a hit that is lost was sent", sender, "return err == nil, err\n", "return true, nil\n"},

	{"-i rejects", program, "if !o.reportOnly {", "if true {"},
	{"-i overrides $RBLSMTPD", program, "if !decided {\n\t\t\tp.setenv", "if true {\n\t\t\tp.setenv"},
	{"-i keeps hyphens", program, `strings.TrimLeft(smtpreply.Printable(d.Text), "-")`, `strings.TrimLeft(smtpreply.Printable(d.Text), "")`},
	{"-i logs a second line", program, "o.verbose && !o.reportOnly", "o.verbose"},
	{"no hyphen before the text", program, "case text[0] == '-':", "case false:"},
	{"an unknown address is looked up", program, "\tif !c.addr.IsValid() {\n\t\tsteps = nil", "\tif false {\n\t\tsteps = nil"},
	{"spaces in a field of the log", program, "if b[i] == ' ' {", "if false {"},
	{"a block that is no listing is reported", program, `if d.Zone != "" {`, "if true {"},
	{"a log that is full stops mail", program, "if ppoll(log[:], 0) == nil && log[0].Revents == 0 {", "if false && log[0].Revents == 0 {"},

	{"-B is -b", options, "bounce = false", "bounce = true"},
	{"-C is -c", options, "failClosed = false", "failClosed = true"},
	{"no largest number", options, "n = most", "n = most / 2"},

	{"the time for lookups does not pass", lookups, "l.left -= time.Since(now)", "l.left -= 0"},
	{"a client that is gone stays", lookups, "case err != nil || n == 0 ||", "case err != nil || n == -2 ||"},
	{"a client that speaks early is said twice", lookups, "\t\tl.noted = true\n", ""},

	{"no second try for a hit", report, "lastTry = 10 * time.Millisecond", "lastTry = 0"},
	{"a hit lost goes unsaid", report, `r.lost("the queue is full")`, "_ = r.lost"},

	{"no thread is needed", entry, "case threadError == -int(unix.EAGAIN) || threadError == -int(unix.ENOMEM):", "case false:"},
	{"no memory is needed", entry, "case memoryError != 0:", "case false:"},
	{"ignored signals are forgotten", entry, "savedIgnored |= 1 << n", "savedIgnored |= 0 << n"},
	{"closed descriptors are forgotten", entry, "savedClosed |= 1 << fd", "savedClosed |= 0 << fd"},
	{"unprintable addresses without the runtime", entry, "if c < ' ' || c > '~' {", "if false {"},
	{"options end at -- alone", entry, "if *char(arg, 1) == '-' {", "if *char(arg, 1) == '-' && *char(arg, 2) == 0 {"},

	{"the alarm clock goes on", execFile, "syscall.RawSyscall6(unix.SYS_SETITIMER", "syscall.RawSyscall6(unix.SYS_GETITIMER"},
	{"an alarm kills", execFile, "action := sigaction{handler: code,", "action := sigaction{handler: 0 * code,"},
	{"blocked signals are not restored", execFile, "unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK", "unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK"},
	{"the slack of timers stays", execFile, "unix.PR_SET_TIMERSLACK, savedSlack", "unix.PR_GET_TIMERSLACK, savedSlack"},
	{"the death of the parent goes unnoticed", execFile, "if parentDeath != 0 {", "if false {"},
	{"descriptors that were closed stay open", execFile, "syscall.RawSyscall6(unix.SYS_CLOSE, fd,", "syscall.RawSyscall6(unix.SYS_DUP, fd,"},
	{"limits are not restored", execFile, "unix.SYS_PRLIMIT64, 0, limited[i], uintptr(unsafe.Pointer(&savedLimits[i])), 0", "unix.SYS_PRLIMIT64, 0, limited[i], 0, 0*uintptr(unsafe.Pointer(&savedLimits[i]))"},
	{"PATH ends at an empty directory", execFile, "length = put(length, '.')", "length = put(length, 'x')"},
	{"a file that may not be executed ends the search", execFile, "if errno != unix.EACCES && errno", "if errno"},
	{"the search goes on after any error", execFile, "errno != unix.EACCES && errno != unix.EPERM && errno != unix.EISDIR", "false"},
	{"signals stay caught", execFile, "if runtimeSignals&(1<<n) == 0 {", "if false {"},
}
