package identity_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

// The error names both clocks and what to do.
func TestClockError(t *testing.T) {
	here := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, skew := range []time.Duration{0, time.Hour, identity.ClockSkew, -identity.ClockSkew} {
		assert.NoError(t, identity.CompareClocks("owner a:1", here, here.Add(skew)), skew)
	}
	for _, skew := range []time.Duration{identity.ClockSkew + 1, -identity.ClockSkew - 1, 72*time.Hour - time.Minute,
		-72 * time.Hour, 1 << 62} {
		err := identity.CompareClocks("owner a:1", here, here.Add(skew))
		var apart *identity.ClockError
		require.ErrorAs(t, err, &apart)
		assert.True(t, identity.OfClocks(fmt.Errorf("announcing: %w", err)))
		assert.ErrorContains(t, err, "2026-03-04T05:06:07Z")
		assert.ErrorContains(t, err, "owner a:1 says "+here.Add(skew).Format(time.RFC3339))
		assert.ErrorContains(t, err, "NTP")
	}
	assert.ErrorContains(t, identity.CompareClocks("owner a:1", here, here.Add(72*time.Hour-time.Minute)), "71h59m0s")
	assert.False(t, identity.OfClocks(errors.New("connection refused")))
	assert.False(t, identity.OfClocks(nil))
}

// Both ends recognise a refusal because of clocks.
func TestClockRefusal(t *testing.T) {
	for _, ahead := range []time.Duration{-96 * time.Hour, 96 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			one, other := newClock(), newClock()
			a, b := newIdentity(t, ours, one.use), newIdentity(t, ours, other.use)
			require.NoError(t, talk(t, a, b).client)
			other.add(ahead)
			r := talk(t, a, b)
			require.Error(t, r.client)
			assert.True(t, identity.OfClocks(r.client), "%v", r.client)
			// Both ends name two times: that of the dialling end, and that of the certificate.
			assert.ErrorContains(t, r.client, one.now.Add(ahead).Format(time.RFC3339))
			assert.ErrorContains(t, r.client, one.now.Format(time.RFC3339))
			assert.ErrorContains(t, r.client, "NTP")
			other.add(-ahead)
			require.NoError(t, talk(t, a, b).client, "set right, they are together again")
		})
	}
	t.Run("the answering end alone refuses", func(t *testing.T) {
		// A day and a half ahead, and a certificate that is half a day old: it is still good for
		// the one that is behind.
		one, other := newClock(), newClock()
		late := newIdentity(t, ours, other.use)
		other.add(-12 * time.Hour)
		one.add(-30 * time.Hour)
		early := newIdentity(t, ours, one.use)
		one.add(-12 * time.Hour)
		r := talk(t, early, late)
		err := r.client
		if err == nil {
			err = r.server
		}
		require.Error(t, err)
		assert.True(t, identity.OfClocks(identity.Explain(err)), "%v", err)
		assert.ErrorContains(t, identity.Explain(err), "NTP")
	})
}

// A coordinator whose clock was set back believes its own signatures.
func TestClockSetBack(t *testing.T) {
	now := newClock()
	a := newIdentity(t, ours, now.use)
	signer, err := identity.NewSigner(a)
	require.NoError(t, err)
	v := identity.NewVerifier(a)
	id := task.ID("sha256:" + strings.Repeat("0a", 32))
	vouch := func() error {
		if _, err := v.AddCertificate(signer.Certificate()); err != nil {
			return err
		}
		r := piece.Revocation{Epoch: 7}
		signer.SignRevocation(id, &r)
		return v.VerifyRevocation(id, r)
	}
	require.NoError(t, vouch())
	for _, ahead := range []time.Duration{-72 * time.Hour, -72 * time.Hour, 400 * 24 * time.Hour, -400 * 24 * time.Hour,
		144 * time.Hour} {
		now.add(ahead)
		require.NoError(t, vouch(), ahead)
	}
}
