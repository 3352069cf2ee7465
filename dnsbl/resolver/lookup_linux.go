package resolver

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"rblnft/dnsbl"
)

// How much of an answer is believed.
const (
	maxUDP  = 512       // bytes of a datagram, as no larger size is offered (RFC 1035, section 4.2.1)
	maxTCP  = 16 * 1024 // bytes of a message
	maxText = 1024      // bytes of TXT records
)

// lookup is one question on its way.
type lookup struct {
	id       int
	qtype    dnsbl.Type
	query    []byte // with two bytes of length before it, as TCP wants it; every copy gets an ID of its own
	question dnsmessage.Question
	conns    []conn
	first    int       // the server that is asked first
	turn     int       // how many servers have been asked
	patience time.Time // when the next one is
	failures []uint8   // of every server
	done     bool
}

// ErrName says that a name cannot be asked for.
var ErrName = errors.New("not a domain name")

// pack makes the query.
func (l *lookup) pack(name string) error {
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return ErrName
	}
	l.question = dnsmessage.Question{Name: n, Type: dnsmessage.Type(l.qtype), Class: dnsmessage.ClassINET}
	b := dnsmessage.NewBuilder(make([]byte, 2, 2+maxUDP), dnsmessage.Header{RecursionDesired: true})
	if b.StartQuestions() != nil || b.Question(l.question) != nil {
		return ErrName
	}
	l.query, err = b.Finish()
	if err != nil {
		return ErrName
	}
	length := len(l.query) - 2
	l.query[0], l.query[1] = byte(length>>8), byte(length)
	return nil
}

// send asks a server over UDP, from a new port and with a new ID (RFC 5452,
// section 9.2), or, where there is no descriptor left, once more from the old one.
func (l *lookup) send(server int, addr netip.Addr) error {
	fd, err := dial(addr, unix.SOCK_DGRAM)
	if err == nil {
		c := conn{fd: fd, server: server, id: uint16(rand.Uint32())}
		if err = l.write(&c); err == nil {
			l.conns = append(l.conns, c)
		} else {
			c.drop()
		}
		return err
	}
	if troubleOf(err) == exhausted {
		for i := range l.conns {
			if c := &l.conns[i]; c.server == server && !c.tcp && c.fd >= 0 {
				return l.write(c)
			}
		}
	}
	return err
}

func (l *lookup) write(c *conn) error {
	l.setID(c.id)
	_, err := unix.Write(c.fd, l.query[2:])
	return err
}

func (l *lookup) setID(id uint16) { l.query[2], l.query[3] = byte(id>>8), byte(id) }

func (l *lookup) dialTCP(server int, addr netip.Addr) error {
	for i := range l.conns {
		if c := &l.conns[i]; c.server == server && c.tcp && c.fd >= 0 {
			return nil // under way
		}
	}
	fd, err := dial(addr, unix.SOCK_STREAM)
	if err == nil {
		id := uint16(rand.Uint32())
		l.setID(id)
		l.conns = append(l.conns, conn{fd: fd, server: server, id: id, tcp: true, unsent: slices.Clone(l.query)})
	}
	return err
}

// forgetDropped forgets connections that were dropped: poll(2) takes no more
// entries than there may be open files.
func (l *lookup) forgetDropped() {
	open := l.conns[:0]
	for _, c := range l.conns {
		if c.fd >= 0 {
			open = append(open, c)
		}
	}
	clear(l.conns[len(open):])
	l.conns = open
}

func (l *lookup) close() {
	for i := range l.conns {
		l.conns[i].drop()
	}
}

// responseClass is what a message is.
type responseClass uint8

const (
	irrelevant responseClass = iota // not the answer to this question
	truncated                       // the answer has more than fits
	answered
	refused // the server failed, or its answer cannot be read
)

// read reads a message as the answer to the lookup's question, asked with id. A
// server that fails may leave the question out.
func (l *lookup) read(message []byte, id uint16, tcp bool) (dnsbl.Answer, responseClass) {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || !h.Response || h.ID != id {
		return dnsbl.Answer{}, irrelevant
	}
	q, err := p.Question()
	if err == dnsmessage.ErrSectionDone && h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError {
		return dnsbl.Answer{}, refused
	}
	if err != nil || q.Type != l.question.Type || q.Class != l.question.Class || !sameName(q.Name, l.question.Name) {
		return dnsbl.Answer{}, irrelevant
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return dnsbl.Answer{}, irrelevant
	}
	switch {
	case h.Truncated && !tcp:
		return dnsbl.Answer{}, truncated
	case h.Truncated:
		return dnsbl.Answer{}, refused
	case h.RCode == dnsmessage.RCodeNameError:
		return dnsbl.Answer{}, answered
	case h.RCode != dnsmessage.RCodeSuccess:
		return dnsbl.Answer{}, refused
	}
	a, err := l.records(&p)
	if err != nil {
		return dnsbl.Answer{}, refused
	}
	return a, answered
}

// sameName compares names as the DNS does: only the case of ASCII letters does not
// matter (RFC 4343, section 3).
func sameName(a, b dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	for i := range a.Length {
		x, y := a.Data[i], b.Data[i]
		if x != y && (x|0x20 != y|0x20 || x|0x20 < 'a' || x|0x20 > 'z') {
			return false
		}
	}
	return true
}

// records reads the answer section. Records of the wanted type count whatever
// their owner: before them stands the chain of CNAMEs that leads there.
func (l *lookup) records(p *dnsmessage.Parser) (dnsbl.Answer, error) {
	var a dnsbl.Answer
	var text []byte
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			a.Text = string(text)
			return a, nil
		}
		if err != nil {
			return a, err
		}
		switch {
		case h.Class != l.question.Class || h.Type != l.question.Type:
			err = p.SkipAnswer()
		case h.Type == dnsmessage.TypeA && h.Length == 4:
			var r dnsmessage.AResource
			if r, err = p.AResource(); err == nil {
				a.Addrs = append(a.Addrs, netip.AddrFrom4(r.A))
			}
		case h.Type == dnsmessage.TypeTXT:
			var r dnsmessage.TXTResource
			if r, err = p.TXTResource(); err == nil {
				for _, s := range r.TXT {
					text = append(text, s[:min(len(s), maxText-len(text))]...)
				}
			}
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return a, err
		}
	}
}
