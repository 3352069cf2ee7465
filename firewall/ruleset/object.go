//go:build linux

package ruleset

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

// The marks are comments by which we know what is ours.
const (
	mark    = "rblnftd" // of a table, chain, counter; of a rule with its checksum
	setMark = "rblnft " // of a set, with its random name
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables.h.
const (
	tableHandle   = 4         // NFTA_TABLE_HANDLE
	tableUserdata = 6         // NFTA_TABLE_USERDATA
	tableOwner    = 7         // NFTA_TABLE_OWNER
	tableDormant  = 1         // NFT_TABLE_F_DORMANT
	chainUserdata = 12        // NFTA_CHAIN_USERDATA
	setHandle     = 16        // NFTA_SET_HANDLE
	objUserdata   = 8         // NFTA_OBJ_USERDATA
	objCounter    = uint32(1) // NFT_OBJECT_COUNTER
)

// gcInterval is how often the kernel collects what has expired, in milliseconds:
// with nft's default of a second it spends 65 to 90 ms of each on a million
// elements.
const gcInterval = uint32(60_000)

// An object is one that there is to be, and what there is under its name.
type object struct {
	what    string // for people
	kind    uint16 // NFT_MSG_NEW…; GET and DEL are the next two
	name    []nft.Field
	rest    []nft.Field // what it is made of beside its name
	comment uint16      // the attribute; its content is of the type
	udata   byte        // of libnftnl's udata.h, and
	mark    string      // this, with what tells one set from another
	fits    func(nft.Attrs) fit

	have nft.Attrs // as the kernel described it; nil: there is none
}

// A fit says how an object of ours that there is suits what there is to be.
type fit int

const (
	fine    fit = iota
	update      // it can be changed
	replace     // it has to be made anew
)

func field(kind uint16, value any) nft.Field { return nft.Field{Type: kind, Value: value} }

func (o *object) isOurs() bool { return strings.HasPrefix(o.have.Comment(o.comment, o.udata), o.mark) }

// make makes the object, a set with a random name, by which it is told from every
// other one. There must not be one, unless it is to be changed.
func (o *object) make(t *nft.Transaction, at nft.Table) {
	fields, text := slices.Concat(o.name, o.rest), o.mark
	if o.kind == unix.NFT_MSG_NEWSET {
		fields = append(fields, field(unix.NFTA_SET_ID, uint32(t.Len()+1)))
		random := make([]byte, 8)
		rand.Read(random) // which never fails
		text += hex.EncodeToString(random)
	}
	t.Message(o.kind, unix.NLM_F_CREATE, at, append(fields, field(o.comment, nft.Comment{UData: o.udata, Text: text}))...)
}

func (o *object) delete(t *nft.Transaction, at nft.Table) {
	flags := uint16(0)
	if o.kind == unix.NFT_MSG_NEWCHAIN {
		flags = unix.NLM_F_NONREC // not with others' rules
	}
	t.Message(o.kind+2, flags, at, o.name...)
}

func tableObject(at nft.Table) *object {
	return &object{
		what: "table " + at.String(), kind: unix.NFT_MSG_NEWTABLE, comment: tableUserdata, mark: mark,
		name: []nft.Field{field(unix.NFTA_TABLE_NAME, at.Name)},
		rest: []nft.Field{field(unix.NFTA_TABLE_FLAGS, uint32(0))},
		fits: func(a nft.Attrs) fit {
			if a.Number(unix.NFTA_TABLE_FLAGS)&tableDormant != 0 {
				return update
			}
			return fine
		},
	}
}

// setObject is a set of addresses, of a family: 0 is IPv4, 1 is IPv6.
func setObject(at nft.Table, name string, family int, flags uint32) *object {
	keyType := [2]uint32{7, 8}[family] // nft's numbers, include/datatype.h
	o := &object{
		what: fmt.Sprintf("set %s of table %s", name, at), kind: unix.NFT_MSG_NEWSET, comment: unix.NFTA_SET_USERDATA, udata: 7, mark: setMark,
		name: []nft.Field{field(unix.NFTA_SET_TABLE, at.Name), field(unix.NFTA_SET_NAME, name)},
		rest: []nft.Field{field(unix.NFTA_SET_FLAGS, flags), field(unix.NFTA_SET_KEY_TYPE, keyType),
			field(unix.NFTA_SET_KEY_LEN, [2]uint32{4, 16}[family])},
		fits: func(a nft.Attrs) fit {
			if uint32(a.Number(unix.NFTA_SET_KEY_TYPE)) != keyType || uint32(a.Number(unix.NFTA_SET_FLAGS))&^unix.NFT_SET_EVAL != flags ||
				a.Number(unix.NFTA_SET_TIMEOUT) != 0 || setSize(a) != 0 {
				return replace
			}
			return fine
		},
	}
	if flags == unix.NFT_SET_TIMEOUT {
		o.rest = append(o.rest, field(unix.NFTA_SET_GC_INTERVAL, gcInterval))
	}
	return o
}

// setSize is how many elements a set may have; 0: as many as fit.
func setSize(a nft.Attrs) int {
	return int(a.Nested(unix.NFTA_SET_DESC).Number(unix.NFTA_SET_DESC_SIZE))
}

func counterObject(at nft.Table, name string) *object {
	zero := []nft.Field{field(unix.NFTA_COUNTER_BYTES, uint64(0)), field(unix.NFTA_COUNTER_PACKETS, uint64(0))}
	return &object{
		what: fmt.Sprintf("counter %s of table %s", name, at), kind: unix.NFT_MSG_NEWOBJ, comment: objUserdata, mark: mark,
		name: []nft.Field{field(unix.NFTA_OBJ_TABLE, at.Name), field(unix.NFTA_OBJ_NAME, name), field(unix.NFTA_OBJ_TYPE, objCounter)},
		rest: []nft.Field{field(unix.NFTA_OBJ_DATA, zero)},
		fits: func(nft.Attrs) fit { return fine },
	}
}

// hooks are the places of the chain among the netfilter hooks (nft(8), "base chain
// hooks"): just before the filters of others, priority 0, or before destination
// NAT, -100 (linux/netfilter_ipv4.h).
var hooks = map[Hook]struct{ number, priority int32 }{
	HookInput:      {unix.NF_INET_LOCAL_IN, -10},
	HookForward:    {unix.NF_INET_FORWARD, -10},
	HookPrerouting: {unix.NF_INET_PRE_ROUTING, -110},
}

func chainObject(at nft.Table, name string, h Hook) *object {
	const accept = uint32(1) // NF_ACCEPT, linux/netfilter.h
	hook, priority := uint32(hooks[h].number), uint32(hooks[h].priority)
	return &object{
		what: fmt.Sprintf("chain %s of table %s", name, at), kind: unix.NFT_MSG_NEWCHAIN, comment: chainUserdata, mark: mark,
		name: []nft.Field{field(unix.NFTA_CHAIN_TABLE, at.Name), field(unix.NFTA_CHAIN_NAME, name)},
		rest: []nft.Field{
			field(unix.NFTA_CHAIN_HOOK, []nft.Field{field(unix.NFTA_HOOK_HOOKNUM, hook), field(unix.NFTA_HOOK_PRIORITY, priority)}),
			field(unix.NFTA_CHAIN_POLICY, accept), field(unix.NFTA_CHAIN_TYPE, "filter"),
		},
		fits: func(a nft.Attrs) fit {
			there := a.Nested(unix.NFTA_CHAIN_HOOK)
			switch {
			case a.Text(unix.NFTA_CHAIN_TYPE) != "filter", uint32(there.Number(unix.NFTA_HOOK_HOOKNUM)) != hook,
				uint32(there.Number(unix.NFTA_HOOK_PRIORITY)) != priority:
				return replace
			case uint32(a.Number(unix.NFTA_CHAIN_POLICY)) != accept:
				return update
			}
			return fine
		},
	}
}

// A rule is one rule as it should be.
type rule struct {
	expressions []nft.Field
	comment     string // the mark, with a checksum of the expressions
}

const (
	tcpDestinationPort = 2  // RFC 9293, section 3.1
	tcpFlags           = 13 // the same
	ipv4Source         = 12 // RFC 791, section 3.1
	ipv6Source         = 8  // RFC 8200, section 3
	fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
)

// wantedRules are two rules for each port, IPv4 and IPv6. Everything that a rule
// requires of a packet it requires by itself: a comparison that cannot be made,
// with a packet that is too short, only ends its own rule. The set of blocked
// addresses comes first, as most clients are in neither.
func wantedRules(cfg *Config) (rules []rule, err error) {
	load := func(base expr.PayloadBase, offset, size uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: size}
	}
	masked := func(mask ...byte) expr.Any {
		return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}
	}
	network := append(bytes.Repeat([]byte{0xff}, 8), make([]byte, 8)...)
	is := func(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	var verdict expr.Any = &expr.Verdict{Kind: expr.VerdictDrop}
	if cfg.Verdict == Reject {
		verdict = &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	for _, port := range cfg.Ports {
		for family, source := range [2][]expr.Any{
			{is(unix.NFPROTO_IPV4), load(expr.PayloadBaseNetworkHeader, ipv4Source, 4)},
			{is(unix.NFPROTO_IPV6), load(expr.PayloadBaseNetworkHeader, ipv6Source, 16), masked(network...)},
		} {
			all := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				is(unix.IPPROTO_TCP),
				load(expr.PayloadBaseTransportHeader, tcpDestinationPort, 2),
				is(binary.BigEndian.AppendUint16(nil, port)...),
				load(expr.PayloadBaseTransportHeader, tcpFlags, 1),
				masked(fin | syn | rst | ack),
				is(syn),
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			}
			all = append(append(all, source...), &expr.Lookup{SourceRegister: 1, SetName: cfg.Blocked[family]},
				source[1], &expr.Lookup{SourceRegister: 1, SetName: cfg.Allowed[family], Invert: true},
				&expr.Objref{Type: int(objCounter), Name: counters[family]}, verdict)
			sum := sha256.New()
			var w rule
			for _, e := range all {
				data, err := expr.Marshal(byte(cfg.Table.Family), e)
				if err != nil {
					return nil, err
				}
				sum.Write(data)
				w.expressions = append(w.expressions, field(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data))
			}
			w.comment = mark + " " + hex.EncodeToString(sum.Sum(nil)[:8])
			rules = append(rules, w)
		}
	}
	return rules, nil
}
