package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// get asks for objects: kind is one of the NFT_MSG_GET…, and the names say of
// which table, and of which set of it. The answers are message bodies.
func get(family nftables.TableFamily, kind uint16, flags netlink.HeaderFlags, names ...string) iter.Seq2[[]byte, error] {
	return getUntil(context.Background(), family, kind, flags, names...)
}

// getUntil is get, which ends with an error when ctx is done.
func getUntil(ctx context.Context, family nftables.TableFamily, kind uint16, flags netlink.HeaderFlags, names ...string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 1 << 16})
		if err != nil {
			yield(nil, fmt.Errorf("netlink: %w", err))
			return
		}
		defer nl.Close()
		if err := nl.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
			yield(nil, fmt.Errorf("netlink: %w", err))
			return
		}
		defer context.AfterFunc(ctx, func() { nl.SetDeadline(time.Unix(1, 0)) })()
		body := []byte{byte(family), unix.NFNETLINK_V0, 0, 0}
		for i, name := range names {
			// NFTA_TABLE_NAME, NFTA_SET_TABLE and
			// NFTA_SET_ELEM_LIST_TABLE are all 1, NFTA_SET_ELEM_LIST_SET 2.
			body = appendString(body, uint16(i+1), name)
		}
		_, err = nl.Send(netlink.Message{
			Header: netlink.Header{
				Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind),
				Flags: netlink.Request | flags,
			},
			Data: body,
		})
		if err != nil {
			yield(nil, err)
			return
		}
		for m, err := range nl.ReceiveIter() {
			if err != nil {
				yield(nil, err)
				return
			}
			if m.Header.Flags&netlink.DumpInterrupted != 0 && kind != unix.NFT_MSG_GETSETELEM {
				yield(nil, errInterrupted)
				return
			}
			if !yield(m.Data, nil) {
				nl.Close() // or else ReceiveIter reads on to the end
				return
			}
		}
	}
}

// errInterrupted says that what was being listed changed meanwhile
// (NLM_F_DUMP_INTR). A list of elements is never interrupted: a set under load
// would never be read to its end.
var errInterrupted = errors.New("the ruleset changed while it was listed")

// generationOf returns the number of a generation from a NFT_MSG_NEWGEN.
func generationOf(body []byte) (generation uint32, err error) {
	err = eachAttr(body, func(ad *netlink.AttributeDecoder) {
		if ad.Type() == unix.NFTA_GEN_ID {
			generation = ad.Uint32()
		}
	})
	return generation, err
}

// An identity tells a set from a later one of the same name: the kernel
// numbers tables, and a table numbers what it holds.
type identity struct{ table, set uint64 }

// tableInfo is what the kernel says of a table.
type tableInfo struct {
	handle uint64
	flags  uint32
}

// readTable returns ENOENT if there is no such table.
func readTable(at *nftables.Table) (tableInfo, error) {
	var info tableInfo
	for body, err := range get(at.Family, unix.NFT_MSG_GETTABLE, 0, at.Name) {
		if err != nil {
			return tableInfo{}, err
		}
		err = eachAttr(body, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_TABLE_FLAGS:
				info.flags = ad.Uint32()
			case nftaTableHandle:
				info.handle = ad.Uint64()
			}
		})
		if err != nil {
			return tableInfo{}, err
		}
	}
	return info, nil
}

// setInfo is what the kernel says of a set.
type setInfo struct {
	name            string
	handle          uint64
	flags           uint32 // NFT_SET_…
	keyType, keyLen uint32
	size            uint32
	timeout         uint64 // milliseconds; an element's unless it has one of its own
}

// readSets returns the table's sets, the anonymous ones too.
func readSets(at *nftables.Table) (map[string]setInfo, error) {
	sets := map[string]setInfo{}
	for body, err := range get(at.Family, unix.NFT_MSG_GETSET, netlink.Dump, at.Name) {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		var s setInfo
		err = eachAttr(body, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				s.name = ad.String()
			case unix.NFTA_SET_FLAGS:
				s.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = ad.Uint32()
			case unix.NFTA_SET_TIMEOUT:
				s.timeout = ad.Uint64()
			case nftaSetHandle:
				s.handle = ad.Uint64()
			case unix.NFTA_SET_DESC:
				ad.Nested(func(desc *netlink.AttributeDecoder) error {
					desc.ByteOrder = binary.BigEndian
					for desc.Next() {
						if desc.Type() == unix.NFTA_SET_DESC_SIZE {
							s.size = desc.Uint32()
						}
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, err
		}
		sets[s.name] = s
	}
	return sets, nil
}

// eachAttr calls f at every attribute of a message body.
func eachAttr(body []byte, f func(*netlink.AttributeDecoder)) error {
	if len(body) < sizeofNfgenmsg {
		return fmt.Errorf("netlink: message of %d bytes", len(body))
	}
	ad, err := netlink.NewAttributeDecoder(body[sizeofNfgenmsg:])
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		f(ad)
	}
	return ad.Err()
}

const (
	// passes bounds how often readElements reads a set,
	passes = 4
	// and oncePast is how many elements it must not have for that.
	oncePast = 300_000
)

// readElements calls f once with every element of a set. The kernel finds the
// place where one part of its answer ended, and the next begins, by counting
// (nft_rhash_walk). So it skips elements if others were freed in between, or
// the hash table is being resized, and the set is read until nothing new comes;
// and the time for that is as the square of the number of elements: half a
// second for 100,000, a minute for a million. A set of that size is read once.
// With limit, other than 0, reading ends after that time; it reports whether it
// was complete.
func readElements(ctx context.Context, at *nftables.Table, set string, limit time.Duration, f func(element)) (complete bool, err error) {
	seen := map[[16]byte]struct{}{}
	start := time.Now()
	for range passes {
		news := false
		for body, err := range getUntil(ctx, at.Family, unix.NFT_MSG_GETSETELEM, netlink.Dump, at.Name, set) {
			if err != nil {
				return false, fmt.Errorf("list set %s: %w", set, err)
			}
			_, _, elements, err := decodeElements(body)
			if err != nil {
				return false, fmt.Errorf("list set %s: %w", set, err)
			}
			for _, e := range elements {
				var key [16]byte
				copy(key[:], e.key)
				if _, ok := seen[key]; !ok {
					seen[key] = struct{}{}
					news = true
					f(e)
				}
			}
			if limit > 0 && time.Since(start) > limit {
				return false, nil
			}
		}
		if !news || len(seen) > oncePast {
			break
		}
	}
	return true, nil
}

// readBlocks returns the elements of a set of blocked addresses, those that
// could be read within limit.
func readBlocks(ctx context.Context, at *nftables.Table, set string, limit time.Duration) (blocks []Block, complete bool, err error) {
	now := time.Now()
	complete, err = readElements(ctx, at, set, limit, func(e element) {
		if b, ok := e.block(now); ok {
			blocks = append(blocks, b)
		}
	})
	return blocks, complete, err
}
