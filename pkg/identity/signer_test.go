package identity_test

import (
	"crypto/x509"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/identity"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

var (
	content = task.File{URL: "https://example.org/a", Validator: "1", Length: 1}.ID()
	another = task.File{URL: "https://example.org/b", Validator: "1", Length: 1}.ID()
)

// newRun returns an unsigned run of n pieces of a task of 1 GiB.
func newRun(n int) piece.DigestRun {
	r := piece.DigestRun{Metadata: piece.MetadataFor(1<<30, "application/octet-stream"), Epoch: 1234567, First: 3}
	for i := range n {
		r.Digests = append(r.Digests, piece.Sum([]byte{byte(i), byte(i >> 8)}))
	}
	return r
}

func newSigner(t testing.TB, id *identity.Identity) *identity.Signer {
	t.Helper()
	s, err := identity.NewSigner(id)
	require.NoError(t, err)
	return s
}

// knowing returns a verifier of id's cluster that knows the signers' keys.
func knowing(t testing.TB, id *identity.Identity, signers ...*identity.Signer) *identity.Verifier {
	t.Helper()
	v := identity.NewVerifier(id)
	for _, s := range signers {
		key, err := v.AddCertificate(s.Certificate())
		require.NoError(t, err)
		assert.Equal(t, s.KeyID(), key)
	}
	return v
}

func TestARunIsGoodOnEveryMemberOfItsCluster(t *testing.T) {
	for _, secret := range []string{ours.Reveal(), ""} {
		coordinator, member := newIdentity(t, ours), newIdentity(t, ours)
		if secret == "" {
			coordinator, member = newIdentity(t, ""), newIdentity(t, "")
		}
		s := newSigner(t, coordinator)
		v := knowing(t, member, s)
		r := newRun(8)
		s.SignRun(content, &r)
		require.NoError(t, v.VerifyRun(content, r))
		final := newRun(0)
		final.Final = true
		s.SignRun(content, &final)
		require.NoError(t, v.VerifyRun(content, final))
		rev := piece.Revocation{Epoch: 9}
		s.SignRevocation(content, &rev)
		require.NoError(t, v.VerifyRevocation(content, rev))
	}
}

// Every changed field of a run is detected.
func TestTamperedRun(t *testing.T) {
	id := newIdentity(t, ours)
	s, other := newSigner(t, id), newSigner(t, id)
	v := knowing(t, id, s, other)
	for name, change := range map[string]func(*piece.DigestRun){
		"length":          func(r *piece.DigestRun) { r.Metadata.Length++ },
		"piece size":      func(r *piece.DigestRun) { r.Metadata.PieceSize *= 2 },
		"media type":      func(r *piece.DigestRun) { r.Metadata.MediaType = "text/html" },
		"epoch":           func(r *piece.DigestRun) { r.Epoch++ },
		"first":           func(r *piece.DigestRun) { r.First++ },
		"one digest":      func(r *piece.DigestRun) { r.Digests[2][31] ^= 1 },
		"digests swapped": func(r *piece.DigestRun) { r.Digests[0], r.Digests[1] = r.Digests[1], r.Digests[0] },
		"one less":        func(r *piece.DigestRun) { r.Digests = r.Digests[:len(r.Digests)-1] },
		"one more":        func(r *piece.DigestRun) { r.Digests = append(r.Digests, piece.Digest{}) },
		"final":           func(r *piece.DigestRun) { r.Final = true },
		"another key":     func(r *piece.DigestRun) { r.Key = other.KeyID() },
		"signature":       func(r *piece.DigestRun) { r.Signature[0] ^= 1 },
		"cut signature":   func(r *piece.DigestRun) { r.Signature = r.Signature[:63] },
		"long signature":  func(r *piece.DigestRun) { r.Signature = append(r.Signature, 0) },
		"no signature":    func(r *piece.DigestRun) { r.Signature = nil },
	} {
		r := newRun(8)
		s.SignRun(content, &r)
		require.NoError(t, v.VerifyRun(content, r))
		change(&r)
		assert.ErrorIs(t, v.VerifyRun(content, r), identity.ErrBadSignature, name)
	}
	r := newRun(8)
	s.SignRun(content, &r)
	assert.ErrorIs(t, v.VerifyRun(another, r), identity.ErrBadSignature, "moved to another task")
	r.Key[0] ^= 1
	assert.ErrorIs(t, v.VerifyRun(content, r), identity.ErrUnknownKey)
	impossible := newRun(8)
	impossible.First = piece.Index(impossible.Metadata.Layout().Count())
	s.SignRun(content, &impossible)
	assert.ErrorIs(t, v.VerifyRun(content, impossible), piece.ErrInvalidMetadata)
}

// Every changed field of a revocation is detected.
func TestTamperedRevocation(t *testing.T) {
	id := newIdentity(t, ours)
	s, other := newSigner(t, id), newSigner(t, id)
	v := knowing(t, id, s, other)
	r := piece.Revocation{Epoch: 9}
	s.SignRevocation(content, &r)
	require.NoError(t, v.VerifyRevocation(content, r))
	assert.ErrorIs(t, v.VerifyRevocation(another, r), identity.ErrBadSignature)
	assert.ErrorIs(t, v.VerifyRevocation(content, piece.Revocation{Epoch: 10, Key: r.Key, Signature: r.Signature}),
		identity.ErrBadSignature)
	assert.ErrorIs(t, v.VerifyRevocation(content, piece.Revocation{Epoch: 9, Key: other.KeyID(),
		Signature: r.Signature}),
		identity.ErrBadSignature)
	assert.ErrorIs(t, v.VerifyRevocation(content, piece.Revocation{Epoch: 9, Signature: r.Signature}),
		identity.ErrUnknownKey)
}

// Only a coordinator's certificate of this cluster makes a key known.
func TestAddCertificate(t *testing.T) {
	id := newIdentity(t, ours)
	role := func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "darter", Host: "role", Path: "/coordinator"}}
	}
	made := func(from *identity.Identity, edits ...func(*x509.Certificate)) []byte {
		der, err := identity.SignerWith(from, func(c *x509.Certificate) {
			role(c)
			for _, e := range edits {
				e(c)
			}
		})
		require.NoError(t, err)
		return der
	}
	good := made(id)
	v := identity.NewVerifier(id)
	_, err := v.AddCertificate(good)
	require.NoError(t, err, "valid before the changes of the cases below")

	for name, c := range map[string]struct {
		der  []byte
		want error
	}{
		"nothing":                  {nil, identity.ErrCertificate},
		"no certificate":           {[]byte("certificate"), identity.ErrCertificate},
		"too long":                 {make([]byte, identity.CertificateMax+1), identity.ErrCertificate},
		"cut":                      {good[:len(good)-1], identity.ErrCertificate},
		"with a tail":              {append(append([]byte(nil), good...), 0), identity.ErrCertificate},
		"the authority itself":     {id.Authority(), identity.ErrCertificate},
		"another cluster's":        {made(newIdentity(t, theirs)), identity.ErrCertificate},
		"of a cluster without one": {made(newIdentity(t, "")), identity.ErrCertificate},
		"a member's":               {identity.MemberCertificate(id), identity.ErrWrongRole},
		"another role": {made(id, func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "darter", Host: "role", Path: "/standby"}}
		}), identity.ErrWrongRole},
		"no role": {made(id, func(c *x509.Certificate) { c.URIs = nil }), identity.ErrWrongRole},
		"a role, TLS": {made(id, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), identity.ErrWrongRole},
		"no signatures": {made(id, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }),
			identity.ErrWrongRole},
		"expired": {made(id, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		}), identity.ErrExpired},
		"of the future": {made(id, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }),
			identity.ErrExpired},
	} {
		key, err := v.AddCertificate(c.der)
		assert.ErrorIs(t, err, c.want, name)
		assert.Zero(t, key, name)
	}
	for i := range good {
		changed := append([]byte(nil), good...)
		changed[i] ^= 1
		_, err := v.AddCertificate(changed)
		require.Error(t, err, "byte %d", i)
	}
	assert.Equal(t, 1, v.Known())
}

// The runs of a dead coordinator stay good for a year.
func TestSignerLife(t *testing.T) {
	now := newClock()
	id := newIdentity(t, ours, now.use)
	s := newSigner(t, id)
	der := s.Certificate()
	r := newRun(4)
	s.SignRun(content, &r)

	now.add(identity.SignerLife - time.Hour)
	early := identity.NewVerifier(newIdentity(t, ours, now.use))
	_, err := early.AddCertificate(der)
	require.NoError(t, err)
	require.NoError(t, early.VerifyRun(content, r))

	now.add(2 * time.Hour)
	assert.ErrorIs(t, early.VerifyRun(content, r), identity.ErrExpired,
		"a key that was known does not outlive its certificate")
	_, err = early.AddCertificate(der)
	assert.ErrorIs(t, err, identity.ErrExpired)
	_, err = identity.NewVerifier(id).AddCertificate(der)
	assert.ErrorIs(t, err, identity.ErrExpired)
}

// A coordinator that runs for years keeps its key under new certificates.
func TestSignerRenewal(t *testing.T) {
	now := newClock()
	id := newIdentity(t, ours, now.use)
	s := newSigner(t, id)
	v := knowing(t, id, s)
	first := s.Certificate()
	r := newRun(4)
	s.SignRun(content, &r)
	for range 4 {
		now.add(identity.SignerLife * 3 / 4)
		key, err := v.AddCertificate(s.Certificate())
		require.NoError(t, err)
		assert.Equal(t, s.KeyID(), key)
		require.NoError(t, v.VerifyRun(content, r))
		assert.Equal(t, 1, v.Known())
	}
	assert.NotEqual(t, first, s.Certificate())
}

// The keys used last are remembered.
func TestKeysMax(t *testing.T) {
	id := newIdentity(t, ours)
	v := identity.NewVerifier(id)
	first := newSigner(t, id)
	second := newSigner(t, id)
	for _, s := range []*identity.Signer{first, second} {
		_, err := v.AddCertificate(s.Certificate())
		require.NoError(t, err)
	}
	r1, r2 := newRun(1), newRun(1)
	first.SignRun(content, &r1)
	second.SignRun(content, &r2)
	for range identity.KeysMax - 1 {
		require.NoError(t, v.VerifyRun(content, r1))
		_, err := v.AddCertificate(newSigner(t, id).Certificate())
		require.NoError(t, err)
	}
	assert.Equal(t, identity.KeysMax, v.Known())
	require.NoError(t, v.VerifyRun(content, r1))
	require.ErrorIs(t, v.VerifyRun(content, r2), identity.ErrUnknownKey)
	_, err := v.AddCertificate(second.Certificate())
	require.NoError(t, err)
	require.NoError(t, v.VerifyRun(content, r2), "its certificate makes it known again")
}

func TestSigningAndVerifyingAtOnceIsSafe(t *testing.T) {
	id := newIdentity(t, ours)
	s := newSigner(t, id)
	v := identity.NewVerifier(id)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				_, err := v.AddCertificate(s.Certificate())
				assert.NoError(t, err)
				r := newRun(2)
				s.SignRun(content, &r)
				assert.NoError(t, v.VerifyRun(content, r))
			}
		})
	}
	wg.Wait()
}

func FuzzAddCertificate(f *testing.F) {
	id := newIdentity(f, ours)
	stranger := newIdentity(f, theirs)
	f.Add(newSigner(f, id).Certificate())
	f.Add(newSigner(f, stranger).Certificate())
	f.Add(identity.MemberCertificate(id))
	f.Add(id.Authority())
	f.Add([]byte{0x30, 0x80})
	v := identity.NewVerifier(stranger)
	known := newSigner(f, stranger)
	if _, err := v.AddCertificate(known.Certificate()); err != nil {
		f.Fatal(err)
	}
	before := v.Known()
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := v.AddCertificate(der)
		// Nothing that the fuzzer can write is signed by the stranger's authority, except
		// what it was given.
		if err == nil && v.Known() > before+1 {
			t.Fatalf("key %s was added without a certificate", key)
		}
		if err != nil && key != (piece.KeyID{}) {
			t.Fatalf("key %s and error %v", key, err)
		}
	})
}

func FuzzVerifyRun(f *testing.F) {
	id := newIdentity(f, ours)
	s := newSigner(f, id)
	v := knowing(f, id, s)
	r := newRun(2)
	s.SignRun(content, &r)
	f.Add(r.Metadata.Length, r.Metadata.PieceSize, r.Metadata.MediaType, r.Epoch, int(r.First), 2, false, r.Signature)
	f.Add(int64(-1), int64(0), "", uint64(0), -1, 0, true, []byte(nil))
	f.Add(int64(1)<<62, int64(1), "x", uint64(1)<<63, 1<<62, 3, true, make([]byte, 64))
	key := s.KeyID()
	f.Fuzz(func(t *testing.T, length, size int64, media string, epoch uint64, first, n int, final bool,
		signature []byte) {
		got := piece.DigestRun{Metadata: piece.Metadata{Length: length, PieceSize: size, MediaType: media},
			Epoch: epoch, First: piece.Index(first), Final: final, Key: key, Signature: signature}
		for i := range min(max(n, 0), 1000) {
			got.Digests = append(got.Digests, piece.Sum([]byte{byte(i), byte(i >> 8)}))
		}
		if v.VerifyRun(content, got) == nil && string(got.SigningBytes(content)) != string(r.SigningBytes(content)) {
			t.Fatalf("%+v has no signature and was accepted", got)
		}
	})
}

func benchmarkVerify(b *testing.B, pieces int) {
	id := newIdentity(b, ours)
	s := newSigner(b, id)
	v := knowing(b, id, s)
	r := newRun(pieces)
	s.SignRun(content, &r)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.VerifyRun(content, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyRunOf1(b *testing.B)   { benchmarkVerify(b, 1) }
func BenchmarkVerifyRunOf32(b *testing.B)  { benchmarkVerify(b, 32) }
func BenchmarkVerifyRunOf250(b *testing.B) { benchmarkVerify(b, 250) }

func BenchmarkSignRunOf32(b *testing.B) {
	s := newSigner(b, newIdentity(b, ours))
	r := newRun(32)
	b.ReportAllocs()
	for b.Loop() {
		s.SignRun(content, &r)
	}
}

func BenchmarkAddKnownCertificate(b *testing.B) {
	id := newIdentity(b, ours)
	s := newSigner(b, id)
	v := knowing(b, id, s)
	for b.Loop() {
		if _, err := v.AddCertificate(s.Certificate()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddNewCertificate(b *testing.B) {
	id := newIdentity(b, ours)
	der := newSigner(b, id).Certificate()
	for b.Loop() {
		if _, err := identity.NewVerifier(id).AddCertificate(der); err != nil {
			b.Fatal(err)
		}
	}
}
