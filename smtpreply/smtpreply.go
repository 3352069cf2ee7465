// Package smtpreply is the small SMTP conversation that a blocked client gets.
//
// It is rblsmtpd's: the greeting, 250 to what leads up to a message, and one
// error line to RCPT, DATA and anything else, so that a mail server that keeps
// to RFC 5321 gives up this message, or keeps it for later, and tells its user
// why. No message is ever accepted.
package smtpreply

// maxText is how many bytes of the text the client is told.
const maxText = 200

// The replies, apart from the error line.
const (
	greeting = "220 rblsmtpd.local\r\n"
	accepted = "250 rblsmtpd.local\r\n"
	goodbye  = "221 rblsmtpd.local\r\n"
)

// ErrorLine returns what a blocked client is told, without the line's end: the
// reply code 553 if bounce is set, which makes the client's server return the
// message to its sender, otherwise 451, which makes it try again later (RFC
// 5321, section 4.2.1), and the text, cut at 200 bytes.
func ErrorLine(bounce bool, text string) string {
	code := "451 "
	if bounce {
		code = "553 "
	}
	return code + Printable(text[:min(len(text), maxText)])
}

// Printable replaces every byte outside printable ASCII, 32 to 126, by a
// question mark, so that a text from elsewhere stays on its line.
func Printable(text string) string {
	ok := func(c byte) bool { return c >= 32 && c <= 126 }
	for i := 0; i < len(text); i++ {
		if ok(text[i]) {
			continue
		}
		b := []byte(text)
		for ; i < len(b); i++ {
			if !ok(b[i]) {
				b[i] = '?'
			}
		}
		return string(b)
	}
	return text
}

// A Conversation turns what a client sends, in pieces of any size, into the
// replies. It keeps no more of a line than it takes to know the command.
type Conversation struct {
	errorLine string
	verb      [maxVerb]byte
	length    int  // of the line's first word so far, in bytes
	argument  bool // the first word has ended
}

// maxVerb is the length of the longest command known, and of the CR that may
// follow it.
const maxVerb = len("quit\r")

// New returns a conversation in which errorLine, as [ErrorLine] makes it, is
// the answer to whatever is not harmless.
func New(errorLine string) *Conversation {
	return &Conversation{errorLine: errorLine + "\r\n"}
}

// Input takes what the client has sent, appends the replies to out, and
// reports whether the client has said QUIT. What it sent after that is not
// looked at. Lines end in LF, or in CR LF; a line that has not ended is not
// answered.
func (c *Conversation) Input(in, out []byte) (replies []byte, quit bool) {
	for _, b := range in {
		switch {
		case b == '\n':
			reply := c.reply()
			out = append(out, reply...)
			if reply == goodbye {
				return out, true
			}
			c.length, c.argument = 0, false
		case b == ' ':
			c.argument = true
		case !c.argument:
			if c.length < maxVerb {
				if b >= 'A' && b <= 'Z' {
					b += 'a' - 'A'
				}
				c.verb[c.length] = b
			}
			c.length++
		}
	}
	return out, false
}

// reply returns the reply to the line that has just ended.
func (c *Conversation) reply() string {
	if c.length > maxVerb {
		return c.errorLine
	}
	verb := c.verb[:c.length]
	if n := len(verb); !c.argument && n > 0 && verb[n-1] == '\r' {
		verb = verb[:n-1]
	}
	switch string(verb) {
	case "quit":
		return goodbye
	case "helo", "ehlo", "mail", "rset", "noop":
		return accepted
	}
	return c.errorLine
}
