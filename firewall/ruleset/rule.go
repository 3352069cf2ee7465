//go:build linux

package ruleset

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"rblnft/firewall/nft"
)

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
	source4 := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ipv4Source, Len: 4}
	source6 := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ipv6Source, Len: 16}
	mask := append(bytes.Repeat([]byte{0xff}, 8), make([]byte, 8)...)
	network := &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)}
	var verdict expr.Any = &expr.Verdict{Kind: expr.VerdictDrop}
	if cfg.Verdict == Reject {
		verdict = &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	}
	for _, port := range cfg.Ports {
		for family, source := range [2][]expr.Any{
			{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}, source4},
			{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV6}}, source6, network},
		} {
			all := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpDestinationPort, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
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

// Priorities of linux/netfilter_ipv4.h.
const (
	priFilter = 0    // NF_IP_PRI_FILTER
	priNATDst = -100 // NF_IP_PRI_NAT_DST
)

// hook is the chain's place among the netfilter hooks (nft(8), "base chain
// hooks"): just before the filters of others, or before destination NAT.
func (c *Config) hook() (number uint32, priority int32) {
	switch c.Hook {
	case HookForward:
		return unix.NF_INET_FORWARD, priFilter - 10
	case HookPrerouting:
		return unix.NF_INET_PRE_ROUTING, priNATDst - 10
	}
	return unix.NF_INET_LOCAL_IN, priFilter - 10
}
