package registryproxy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// credential is who asks, as far as rights go: a hash of the Authorization, so that no cache
// holds a secret. The zero value is everybody: nothing was brought along.
type credential [sha256.Size]byte

func credentialOf(authorization string) credential {
	if authorization == "" {
		return credential{}
	}
	return sha256.Sum256([]byte(authorization))
}

// opaqueLife is how long a registry's yes counts when the credential does not say how long
// it lives: an opaque token, a password, or none.
const opaqueLife = time.Minute

// claimsMax bounds the claims of a token that are decoded, in bytes.
const claimsMax = 16 << 10

// lifeOf says until when a registry's yes to a credential counts, and when the credential itself
// ends; that is zero when it does not say. A token's exp and iat are read and nothing else of it,
// and unverified: the registry has just taken this very token, and they can only shorten what
// longest allows.
//
// now is this node's time with its monotonic reading, said the registry's own at its answer (RFC
// 9110 §6.6.1), zero where it told none. How long a token has left is what the registry's clock
// says, and never more than its whole life: this node's clock may be days off, and only measures
// how long ago the answer came. Where the registry tells no time, this node's own clock stands in.
func lifeOf(authorization string, now, said time.Time, longest time.Duration) (until, end time.Time) {
	issued, exp, ok := lifespan(authorization)
	if !ok {
		return now.Add(min(opaqueLife, longest)), time.Time{}
	}
	if said.IsZero() {
		said = now
	}
	left := exp.Sub(said)
	if !issued.IsZero() {
		left = min(left, exp.Sub(issued))
	}
	left = max(left, 0)
	return now.Add(min(left, longest)), now.Add(left)
}

// past reports whether now has reached a time that was reckoned from an earlier now. Both the
// monotonic clock, which a clock that is set back does not deceive, and the wall's, which goes on
// while a machine sleeps, have to be before it.
func past(now, at time.Time) bool {
	return !now.Before(at) || !now.Round(0).Before(at.Round(0))
}

// lifespan reads the iat and the exp of a bearer token that is a JWT (RFC 7519 §4.1.4, §4.1.6); ok
// is false without an exp. A token that says nbf and no iat was issued then.
func lifespan(authorization string) (issued, exp time.Time, ok bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	parts := strings.Split(strings.TrimSpace(token), ".")
	if !strings.EqualFold(scheme, "Bearer") || len(parts) != 3 || len(parts[1]) > claimsMax {
		return issued, exp, false
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return issued, exp, false
	}
	var c struct {
		Exp *float64 `json:"exp"`
		Iat any      `json:"iat"`
		Nbf any      `json:"nbf"`
	}
	if json.Unmarshal(claims, &c) != nil || c.Exp == nil || !isTime(*c.Exp) {
		return issued, exp, false
	}
	for _, claim := range []any{c.Iat, c.Nbf} {
		if seconds, isNumber := claim.(float64); isNumber && isTime(seconds) {
			issued = time.Unix(int64(seconds), 0)
			break
		}
	}
	return issued, time.Unix(int64(*c.Exp), 0), true
}

// isTime reports whether a number is a time in seconds since 1970 that anybody means: none is
// beyond 1e11, the year 5138.
func isTime(seconds float64) bool { return seconds >= 0 && seconds <= 1e11 }
