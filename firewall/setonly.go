package firewall

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// lookForSets is stand for a table that is somebody else's: it makes nothing,
// and says what is missing whenever that changes.
func (t *Table) lookForSets(first bool) error {
	l, err := t.readLayout()
	if err != nil {
		return err
	}
	if first {
		t.takeOver(l)
	}
	used, err := t.usedSets(l)
	if err != nil {
		return err
	}
	var missing []string
	for i, s := range t.sets {
		if t.at.Family == nftables.TableFamilyIPv4 && s.v6 || t.at.Family == nftables.TableFamilyIPv6 && !s.v6 {
			s.problem = fmt.Errorf("%w: table %s has no such addresses", ErrMissing, t)
			continue
		}
		w := t.wantedSets()[i]
		have, ok := l.sets[s.name]
		switch {
		case !ok:
			s.problem = fmt.Errorf("%w: table %s has no set %s", ErrMissing, t, s.name)
			missing = append(missing, fmt.Sprintf("no set %s: nft add set %s %s '{ type %s; flags timeout; size %d; }'",
				s.name, t, s.name, w.KeyType.Name, t.cfg.MaxElements))
		case have.keyType != w.KeyType.GetNFTMagic() || have.flags&^(unix.NFT_SET_EVAL) != unix.NFT_SET_TIMEOUT:
			s.problem = fmt.Errorf("%w: set %s is not of type %s with flags timeout", ErrMissing, s.name, w.KeyType.Name)
			missing = append(missing, fmt.Sprintf("set %s is not of type %s with flags timeout and no others", s.name, w.KeyType.Name))
		default:
			s.problem = nil
			if !used[s.name] {
				missing = append(missing, fmt.Sprintf("no rule uses set %s, so it blocks nobody: nft add rule %s CHAIN %s",
					s.name, t, t.ruleFor(s)))
			}
		}
	}
	t.know(l)
	if report := strings.Join(missing, "; "); report != t.reported {
		t.reported = report
		if report == "" {
			t.log.Info("all sets are there, and rules use them", "table", t.String())
		} else {
			t.log.Warn("the ruleset is not complete, and it is not ours to mend", "table", t.String(), "missing", report)
		}
	}
	return nil
}

// Incomplete reports whether something is missing that rblnftd does not make
// ([Config.Rules] is false), so that addresses are not blocked. What it is was
// logged.
func (t *Table) Incomplete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reported != ""
}

// ruleFor is a rule that makes use of a set of blocked addresses, as a shell
// takes it.
func (t *Table) ruleFor(s *blockedSet) string {
	match := "ip saddr @" + s.name
	if s.v6 {
		match = "ip6 saddr '& ffff:ffff:ffff:ffff::' @" + s.name
	}
	return "tcp dport 25 tcp flags '& (fin | syn | rst | ack)' == syn " + match + " counter drop"
}

// usedSets are the names of the sets that rules look into.
func (t *Table) usedSets(l layout) (map[string]bool, error) {
	used := map[string]bool{}
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	for _, chain := range l.chains {
		rules, err := c.GetRules(t.at, chain)
		if errors.Is(err, unix.ENOENT) {
			continue // the chain has gone by now
		}
		if err != nil {
			return nil, fmt.Errorf("look at the rules: %w", err)
		}
		for _, rule := range rules {
			for _, e := range rule.Exprs {
				if lookup, ok := e.(*expr.Lookup); ok {
					used[lookup.SetName] = true
				}
			}
		}
	}
	return used, nil
}
