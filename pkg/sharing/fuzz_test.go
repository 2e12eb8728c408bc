package sharing_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/sharing"
)

// FuzzDecide judges an answer with any headers: no text makes it panic, what forbids sharing does so beside any other
// text, and Confirm agrees with Decide about the same answer.
func FuzzDecide(f *testing.F) {
	for _, s := range [][7]string{
		{"public, max-age=60", "", `"v1"`, "1", "", "", "max-age=90"},
		{`private="a, b"`, "Accept", `W/"v1"`, "-1", "0", "Mon, 02 Jan 2006 15:04:05 GMT", "no-cache"},
		{"max-age=99999999999999999999", "*", `"`, "99999999999999999999", "Thu, 01 Jan 1970 00:00:00 GMT", "x",
			"max-age=-1"},
		{`,=,"=",,max-age`, ",,\x00", "\"\x7f\"", "1e9", "\t", "Fri, 31 Dec 9999 23:59:59 GMT", "max-age=4294967296"},
	} {
		f.Add(s[0], s[1], s[2], s[3], s[4], s[5], s[6])
	}
	f.Fuzz(func(t *testing.T, control, vary, tag, age, expires, date, client string) {
		q := request("Authorization: Bearer alice")
		q.Control = sharing.ParseControl(http.Header{"Cache-Control": {client}})
		require.GreaterOrEqual(t, q.Control.MaxAge, time.Duration(-1))
		a := sharing.Answer{Header: http.Header{
			"Cache-Control": {control}, "Vary": {vary}, "Etag": {tag}, "Age": {age}, "Expires": {expires}, "Date": {date},
		}}
		if d := sharing.Decide(q, a, key, now); d.Share != sharing.Direct {
			require.NoError(t, sharing.Confirm(d.Share, []string{"Authorization"}, a.Header, now), "%+v", d)
		}
		for _, forbids := range []string{"private", "no-store", `Private="x"`, "NO-STORE"} {
			a.Header["Cache-Control"] = []string{control, forbids}
			require.Equal(t, sharing.Direct, sharing.Decide(q, a, key, now).Share, forbids)
		}
	})
}
