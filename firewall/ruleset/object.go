//go:build linux

package ruleset

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

// Marks are comments by which we know what is ours, in the kernel and for people.
const (
	mark    = "rblnftd" // of a table, chain, counter; of a rule with its checksum
	setMark = "rblnft " // of a set, before its random name
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nf_tables.h.
const (
	tableHandle   = 4         // NFTA_TABLE_HANDLE
	tableUserdata = 6         // NFTA_TABLE_USERDATA
	tableOwner    = 7         // NFTA_TABLE_OWNER
	tableDormant  = 0x1       // NFT_TABLE_F_DORMANT
	chainUserdata = 12        // NFTA_CHAIN_USERDATA
	setHandle     = 16        // NFTA_SET_HANDLE
	objUserdata   = 8         // NFTA_OBJ_USERDATA
	objCounter    = uint32(1) // NFT_OBJECT_COUNTER
	accept        = uint32(1) // NF_ACCEPT, linux/netfilter.h
)

// The types of comments in user data (libnftnl's udata.h).
const (
	udataComment    = 0
	udataSetComment = 7
)

// set is what is asked and wanted of a set.
type set struct {
	flags, keyType, keyLen, size uint32
	timeout                      uint64 // milliseconds; an element's unless it has its own
}

// nft's numbers of the types of keys (include/datatype.h) and their lengths, of
// IPv4 and IPv6.
var keyTypes = [2]uint32{7, 8}
var keyLens = [2]uint32{4, 16}

// A layout is what there is in the kernel under our names, and what of it is ours.
type layout struct {
	table struct {
		exists, ours        bool
		handle              uint64
		flags, use, ownedBy uint32
	}
	sets  map[string]foundSet
	chain struct {
		exists, ours bool
		hook         uint32
		priority     int32
		policy       uint32
		kind         string
	}
	rules    []foundRule
	counters map[string]bool // whether it is ours
}

type foundSet struct {
	set
	handle  uint64
	comment string
	ours    bool
}

type foundRule struct {
	handle  uint64
	comment string
	ours    bool
}

func field(kind uint16, value any) nft.Field { return nft.Field{Type: kind, Value: value} }

// look asks the kernel.
func (r *Ruleset) look() (l layout, err error) {
	l.sets, l.counters = map[string]foundSet{}, map[string]bool{}
	get := func(kind uint16, flags netlink.HeaderFlags, fields ...nft.Field) []nft.Attrs {
		if err != nil {
			return nil
		}
		var all []nft.Attrs
		if all, err = r.conn.Get(kind, flags, r.cfg.Table, fields...); err != nil {
			err = fmt.Errorf("look at table %s: %w", r.cfg.Table, err)
		}
		return all
	}
	name := r.cfg.Table.Name
	for _, a := range get(unix.NFT_MSG_GETTABLE, 0, field(unix.NFTA_TABLE_NAME, name)) {
		t := &l.table
		t.exists, t.ours = true, a.Comment(tableUserdata, udataComment) == mark
		t.handle, t.flags = a.Number(tableHandle), uint32(a.Number(unix.NFTA_TABLE_FLAGS))
		t.use, t.ownedBy = uint32(a.Number(unix.NFTA_TABLE_USE)), uint32(a.Number(tableOwner))
	}
	if !l.table.exists {
		return l, err
	}
	for _, s := range append(r.cfg.Blocked[:], r.cfg.Allowed[:]...) {
		for _, a := range get(unix.NFT_MSG_GETSET, 0, field(unix.NFTA_SET_TABLE, name), field(unix.NFTA_SET_NAME, s)) {
			comment := a.Comment(unix.NFTA_SET_USERDATA, udataSetComment)
			l.sets[s] = foundSet{
				set: set{
					flags: uint32(a.Number(unix.NFTA_SET_FLAGS)), keyType: uint32(a.Number(unix.NFTA_SET_KEY_TYPE)),
					keyLen: uint32(a.Number(unix.NFTA_SET_KEY_LEN)), timeout: a.Number(unix.NFTA_SET_TIMEOUT),
					size: uint32(a.Nested(unix.NFTA_SET_DESC).Number(unix.NFTA_SET_DESC_SIZE)),
				},
				handle: a.Number(setHandle), comment: comment, ours: isOurs(comment, setMark),
			}
		}
	}
	for _, a := range get(unix.NFT_MSG_GETCHAIN, 0, field(unix.NFTA_CHAIN_TABLE, name),
		field(unix.NFTA_CHAIN_NAME, r.cfg.chain())) {
		c, hook := &l.chain, a.Nested(unix.NFTA_CHAIN_HOOK)
		c.exists, c.ours = true, a.Comment(chainUserdata, udataComment) == mark
		c.hook, c.priority = uint32(hook.Number(unix.NFTA_HOOK_HOOKNUM)), int32(hook.Number(unix.NFTA_HOOK_PRIORITY))
		c.policy, c.kind = uint32(a.Number(unix.NFTA_CHAIN_POLICY)), a.Text(unix.NFTA_CHAIN_TYPE)
	}
	if l.chain.exists {
		for _, a := range get(unix.NFT_MSG_GETRULE, netlink.Dump, field(unix.NFTA_RULE_TABLE, name),
			field(unix.NFTA_RULE_CHAIN, r.cfg.chain())) {
			comment := a.Comment(unix.NFTA_RULE_USERDATA, udataComment)
			l.rules = append(l.rules, foundRule{a.Number(unix.NFTA_RULE_HANDLE), comment, isOurs(comment, mark+" ")})
		}
	}
	for _, c := range counters {
		for _, a := range get(unix.NFT_MSG_GETOBJ, 0, counterFields(r.cfg.Table, c)...) {
			l.counters[c] = a.Comment(objUserdata, udataComment) == mark
		}
	}
	return l, err
}

func counterFields(at nft.Table, name string) []nft.Field {
	return []nft.Field{field(unix.NFTA_OBJ_TABLE, at.Name), field(unix.NFTA_OBJ_NAME, name), field(unix.NFTA_OBJ_TYPE, objCounter)}
}

// A change is the transaction that makes things right.
type change struct {
	nft.Transaction
	at nft.Table
}

func (c *change) addTable() {
	c.Message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, c.at, field(unix.NFTA_TABLE_NAME, c.at.Name),
		field(unix.NFTA_TABLE_FLAGS, uint32(0)), // which wakes a dormant one
		field(tableUserdata, nft.Comment{UData: udataComment, Text: mark}))
}

func (c *change) delTable() {
	c.Message(unix.NFT_MSG_DELTABLE, 0, c.at, field(unix.NFTA_TABLE_NAME, c.at.Name))
}

func (c *change) addSet(name string, s set, gcInterval uint32, comment string) {
	fields := []nft.Field{
		field(unix.NFTA_SET_TABLE, c.at.Name), field(unix.NFTA_SET_NAME, name), field(unix.NFTA_SET_FLAGS, s.flags),
		field(unix.NFTA_SET_KEY_TYPE, s.keyType), field(unix.NFTA_SET_KEY_LEN, s.keyLen),
		field(unix.NFTA_SET_ID, uint32(c.Len()+1)),
	}
	if gcInterval > 0 {
		fields = append(fields, field(unix.NFTA_SET_GC_INTERVAL, gcInterval))
	}
	fields = append(fields, field(unix.NFTA_SET_USERDATA, nft.Comment{UData: udataSetComment, Text: comment}))
	c.Message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, c.at, fields...)
}

func (c *change) delSet(name string) {
	c.Message(unix.NFT_MSG_DELSET, 0, c.at, field(unix.NFTA_SET_TABLE, c.at.Name), field(unix.NFTA_SET_NAME, name))
}

func (c *change) addCounter(name string) {
	zero := []nft.Field{field(unix.NFTA_COUNTER_BYTES, uint64(0)), field(unix.NFTA_COUNTER_PACKETS, uint64(0))}
	c.Message(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE|unix.NLM_F_EXCL, c.at, append(counterFields(c.at, name),
		field(unix.NFTA_OBJ_DATA, zero), field(objUserdata, nft.Comment{UData: udataComment, Text: mark}))...)
}

func (c *change) delCounter(name string) {
	c.Message(unix.NFT_MSG_DELOBJ, 0, c.at, counterFields(c.at, name)...)
}

// addChain makes the chain or, where there is one with the same hook and priority,
// sets its policy.
func (c *change) addChain(name string, hook uint32, priority int32) {
	c.Message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.at,
		field(unix.NFTA_CHAIN_TABLE, c.at.Name), field(unix.NFTA_CHAIN_NAME, name),
		field(unix.NFTA_CHAIN_HOOK, []nft.Field{
			field(unix.NFTA_HOOK_HOOKNUM, hook), field(unix.NFTA_HOOK_PRIORITY, uint32(priority)),
		}),
		field(unix.NFTA_CHAIN_POLICY, accept), field(unix.NFTA_CHAIN_TYPE, "filter"),
		field(chainUserdata, nft.Comment{UData: udataComment, Text: mark}))
}

// delChain deletes the chain, unless it has rules (NLM_F_NONREC).
func (c *change) delChain(name string) {
	c.Message(unix.NFT_MSG_DELCHAIN, unix.NLM_F_NONREC, c.at, field(unix.NFTA_CHAIN_TABLE, c.at.Name),
		field(unix.NFTA_CHAIN_NAME, name))
}

func (c *change) addRule(chain string, w rule) {
	c.Message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, c.at,
		field(unix.NFTA_RULE_TABLE, c.at.Name), field(unix.NFTA_RULE_CHAIN, chain),
		field(unix.NFTA_RULE_EXPRESSIONS, w.expressions),
		field(unix.NFTA_RULE_USERDATA, nft.Comment{UData: udataComment, Text: w.comment}))
}

func (c *change) delRule(chain string, handle uint64) {
	c.Message(unix.NFT_MSG_DELRULE, 0, c.at, field(unix.NFTA_RULE_TABLE, c.at.Name),
		field(unix.NFTA_RULE_CHAIN, chain), field(unix.NFTA_RULE_HANDLE, handle))
}
