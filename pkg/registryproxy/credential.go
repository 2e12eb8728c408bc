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

// lifeOf says until when a registry's yes to a credential counts, and when the credential
// itself ends; that is zero when it does not say. A token's exp is read and nothing else of
// it, and unverified: the registry has just taken this very token, and exp can only shorten
// what longest allows.
func lifeOf(authorization string, now time.Time, longest time.Duration) (until, end time.Time) {
	end, ok := expiry(authorization)
	if !ok {
		return now.Add(min(opaqueLife, longest)), time.Time{}
	}
	until = now.Add(longest)
	if end.Before(until) {
		until = end
	}
	return until, end
}

// expiry reads the exp of a bearer token that is a JWT (RFC 7519 §4.1.4).
func expiry(authorization string) (time.Time, bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	parts := strings.Split(strings.TrimSpace(token), ".")
	if !strings.EqualFold(scheme, "Bearer") || len(parts) != 3 || len(parts[1]) > claimsMax {
		return time.Time{}, false
	}
	claims, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return time.Time{}, false
	}
	var c struct {
		Exp *float64 `json:"exp"`
	}
	// Beyond 1e11 seconds (the year 5138) it is no time that anybody means.
	if json.Unmarshal(claims, &c) != nil || c.Exp == nil || *c.Exp < 0 || *c.Exp > 1e11 {
		return time.Time{}, false
	}
	return time.Unix(int64(*c.Exp), 0), true
}
