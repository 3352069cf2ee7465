package firewall

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Delete deletes the table of cfg and all that it holds, which [Table.Close]
// leaves in the kernel. One that is missing is no error. With [Config.Rules]
// false the table is not ours, and the error wraps [ErrNotOurs].
func Delete(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if !cfg.Rules {
		return fmt.Errorf("table %s: %w", cfg.Table, ErrNotOurs)
	}
	at, err := parseTable(cfg.Table)
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	err = c.structure(func(c *nftables.Conn) error {
		c.DelTable(at)
		return nil
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table %s: %w", cfg.Table, err)
	}
	return nil
}

// ErrNotOurs says that a table is somebody else's ([Config.Rules] is false).
var ErrNotOurs = errors.New("the table is not made by rblnftd, and is left alone")
