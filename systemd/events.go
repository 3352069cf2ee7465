package systemd

// An Event is something that administrators look for in the journal, with
// "journalctl MESSAGE_ID=…", and that "journalctl -x" explains.
type Event struct {
	Message string // what is logged
	ID      string // MESSAGE_ID (systemd.journal-fields(7)); it never changes
}

// Events are all events that have a MESSAGE_ID. Each has an entry in the message
// catalogue.
func Events() []Event { return events }

var events = []Event{
	{"blocked", "daf5e2d7a5f94676acbc748bf1d8eafa"},
	{"not blocked", "2f912b0efca84e468138bb7675e3a27d"},
	{"unblocked", "b98e7c6697ac4d67ac35a641af830019"},
	{"element deleted by somebody else: forgotten", "c45a53367a744ccbb8d01ee38d42aec8"},
	{"datagram refused", "224d9ebfc14b43748a8d0be61b656ccc"},
	{"the table is not as it should be: put right", "560302044a4e42e09f42453aca999981"},
	{"elements restored", "63ce2371ff0340658f0227e7b67570a2"},
	{"the table cannot be put right", "3bb28a34671c49c9b1d1e98a1cf28246"},
	{"blocks cannot be committed; they wait, and are tried again", "031f96c0e8154fb186ab87cc7dfb3433"},
	{"blocks are not persisted; blocking goes on, and this is tried again", "96f94030bd0e4187bb208ccfe6f8590f"},
	{"the state is damaged", "2a305c927a8f4063868b6d585525382e"},
	{"a set is full: addresses are left out until others expire", "599ccf46810d47c1b0496c8c6b4beb51"},
	{"the configuration is bad: the old one stays in force", "e2aa288e3c304671a732f78b0e46395e"},
	{"rblnftd ends", "1bd5c17e868a4f728710ce78cecb21fe"},
	{"hanging: the watchdog is about to end the service", "43b1b09b14754fd09bfd9d058729a060"},
}

// messageID returns the ID of the event that a message belongs to, or nothing.
func messageID(message string) string {
	for _, e := range events {
		if e.Message == message {
			return e.ID
		}
	}
	return ""
}
