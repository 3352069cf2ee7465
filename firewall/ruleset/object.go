//go:build linux

package ruleset

import (
	"encoding/binary"
	"strings"

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

// An object is one that there is to be: how it is asked for, made and deleted.
type object struct {
	what          string // for people
	get, add, del uint16 // NFT_MSG_…
	name          []nft.Field
	rest          []nft.Field // what it is made of beside its name
	comment       uint16      // the attribute; its content is of the type
	udata         byte        // of libnftnl's udata.h, and
	mark          string      // this, with what tells one set from another
	fits          func(nft.Attrs) fit
}

// A fit says how an object of ours that there is suits what there is to be.
type fit int

const (
	fine    fit = iota
	update      // it can be changed
	replace     // it has to be made anew
)

func field(kind uint16, value any) nft.Field { return nft.Field{Type: kind, Value: value} }

func (o *object) isOurs(a nft.Attrs) bool {
	return strings.HasPrefix(a.Comment(o.comment, o.udata), o.mark)
}

// make makes the object, which has a name of its own if it is a set. There must not
// be one, unless it is to be changed.
func (o *object) make(t *nft.Transaction, at nft.Table, own string) {
	fields := append(append([]nft.Field{}, o.name...), o.rest...)
	if o.add == unix.NFT_MSG_NEWSET {
		fields = append(fields, field(unix.NFTA_SET_ID, uint32(t.Len()+1)))
	}
	t.Message(o.add, unix.NLM_F_CREATE, at, append(fields, field(o.comment, nft.Comment{UData: o.udata, Text: o.mark + own}))...)
}

func (o *object) delete(t *nft.Transaction, at nft.Table) {
	flags := uint16(0)
	if o.del == unix.NFT_MSG_DELCHAIN {
		flags = unix.NLM_F_NONREC // not with others' rules
	}
	t.Message(o.del, flags, at, o.name...)
}

func tableObject(at nft.Table) *object {
	return &object{
		what: "table " + at.String(),
		get:  unix.NFT_MSG_GETTABLE, add: unix.NFT_MSG_NEWTABLE, del: unix.NFT_MSG_DELTABLE,
		name:    []nft.Field{field(unix.NFTA_TABLE_NAME, at.Name)},
		rest:    []nft.Field{field(unix.NFTA_TABLE_FLAGS, uint32(0))},
		comment: tableUserdata, mark: mark,
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
		what: "set " + name + " of table " + at.String(),
		get:  unix.NFT_MSG_GETSET, add: unix.NFT_MSG_NEWSET, del: unix.NFT_MSG_DELSET,
		name: []nft.Field{field(unix.NFTA_SET_TABLE, at.Name), field(unix.NFTA_SET_NAME, name)},
		rest: []nft.Field{field(unix.NFTA_SET_FLAGS, flags), field(unix.NFTA_SET_KEY_TYPE, keyType),
			field(unix.NFTA_SET_KEY_LEN, [2]uint32{4, 16}[family])},
		comment: unix.NFTA_SET_USERDATA, udata: 7, mark: setMark,
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
	return &object{
		what: "counter " + name + " of table " + at.String(),
		get:  unix.NFT_MSG_GETOBJ, add: unix.NFT_MSG_NEWOBJ, del: unix.NFT_MSG_DELOBJ,
		name: []nft.Field{field(unix.NFTA_OBJ_TABLE, at.Name), field(unix.NFTA_OBJ_NAME, name), field(unix.NFTA_OBJ_TYPE, objCounter)},
		rest: []nft.Field{field(unix.NFTA_OBJ_DATA, []nft.Field{
			field(unix.NFTA_COUNTER_BYTES, uint64(0)), field(unix.NFTA_COUNTER_PACKETS, uint64(0)),
		})},
		comment: objUserdata, mark: mark,
		fits: func(nft.Attrs) fit { return fine },
	}
}

func chainObject(at nft.Table, name string, hook uint32, priority int32) *object {
	const accept = uint32(1) // NF_ACCEPT, linux/netfilter.h
	return &object{
		what: "chain " + name + " of table " + at.String(),
		get:  unix.NFT_MSG_GETCHAIN, add: unix.NFT_MSG_NEWCHAIN, del: unix.NFT_MSG_DELCHAIN,
		name: []nft.Field{field(unix.NFTA_CHAIN_TABLE, at.Name), field(unix.NFTA_CHAIN_NAME, name)},
		rest: []nft.Field{
			field(unix.NFTA_CHAIN_HOOK, []nft.Field{field(unix.NFTA_HOOK_HOOKNUM, hook), field(unix.NFTA_HOOK_PRIORITY, uint32(priority))}),
			field(unix.NFTA_CHAIN_POLICY, accept), field(unix.NFTA_CHAIN_TYPE, "filter"),
		},
		comment: chainUserdata, mark: mark,
		fits: func(a nft.Attrs) fit {
			there := a.Nested(unix.NFTA_CHAIN_HOOK)
			var priorityThere int32
			if p := there[unix.NFTA_HOOK_PRIORITY]; len(p) == 4 {
				priorityThere = int32(binary.BigEndian.Uint32(p))
			}
			switch {
			case a.Text(unix.NFTA_CHAIN_TYPE) != "filter", uint32(there.Number(unix.NFTA_HOOK_HOOKNUM)) != hook, priorityThere != priority:
				return replace
			case uint32(a.Number(unix.NFTA_CHAIN_POLICY)) != accept:
				return update
			}
			return fine
		},
	}
}
