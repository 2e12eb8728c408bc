package peer_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/peer"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/task"
)

// plain is a file: its name proves nothing about its bytes.
func plain() task.Spec {
	return task.Spec{ID: task.ID("file:" + strings.Repeat("f", 64)), Kind: task.Plain, URL: "https://files.test/x"}
}

// vouch signs a task as a coordinator.
func (k *keys) vouch(id task.ID, content []byte) *api.Proof {
	r := piece.DigestRun{Metadata: piece.MetadataFor(int64(len(content)), "application/x"), Epoch: 1, Final: true}
	if len(content) > 0 {
		r.Digests = []piece.Digest{piece.Sum(content)}
	}
	k.SignRun(id, &r)
	return api.NewProof(r.Metadata, []piece.DigestRun{r}, [][]byte{k.Certificate()})
}

// stored is what a store holds of a task, and with how many digests that others believe.
func stored(t *testing.T, s piece.Store, id task.ID) (content []byte, runs int) {
	r, err := s.Open(id)
	require.NoError(t, err)
	defer r.Close()
	content = make([]byte, r.Metadata().Length)
	n, _ := r.ReadAt(content, 0)
	kept, _ := r.Runs()
	return content[:n], len(kept)
}

// An owner may be any member, so its answer alone proves nothing.
func TestAnOwnersBareWordIsTakenForNoByte(t *testing.T) {
	right, evil := randomBytes(60, 1234), randomBytes(61, 1234)
	strangers := newKeys()
	cases := map[string]struct {
		blob   bool
		facts  piece.Metadata
		inline []byte
		proof  func(k *keys, id task.ID) *api.Proof
		taken  bool // from inside the answer, not from peers
	}{
		"a file with nothing to prove it":            {inline: evil},
		"a file of an owner that proves nothing yet": {inline: right},
		"a file that says it is empty":               {facts: piece.MetadataFor(0, "")},
		"a file with a stranger's proof": {inline: evil,
			proof: func(_ *keys, id task.ID) *api.Proof { return strangers.vouch(id, evil) }},
		"a file with the proof of another file": {inline: evil,
			proof: func(k *keys, _ task.ID) *api.Proof {
				return k.vouch(task.ID("file:"+strings.Repeat("e", 64)), evil)
			}},
		"a file with the proof of other bytes": {inline: evil,
			proof: func(k *keys, id task.ID) *api.Proof { return k.vouch(id, right) }},
		"a file that another member calls empty": {facts: piece.MetadataFor(0, ""),
			proof: func(_ *keys, id task.ID) *api.Proof { return strangers.vouch(id, nil) }},
		"a file with its proof": {inline: right,
			proof: func(k *keys, id task.ID) *api.Proof { return k.vouch(id, right) }, taken: true},
		"a blob that says it is empty": {blob: true, facts: piece.MetadataFor(0, "")},
		"a blob of other bytes":        {blob: true, inline: evil},
		"a blob of other bytes with a stranger's proof": {blob: true, inline: evil,
			proof: func(_ *keys, id task.ID) *api.Proof { return strangers.vouch(id, evil) }},
		"a blob of an owner that proves nothing yet": {blob: true, inline: right, taken: true},
		"a blob with its proof": {blob: true, inline: right,
			proof: func(k *keys, id task.ID) *api.Proof { return k.vouch(id, right) }, taken: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, right)
				spec := plain()
				if c.blob {
					spec = s.spec()
				}
				s.seed()
				a := s.node(memstore.New(memstore.Config{}))
				if c.inline != nil {
					c.facts = piece.MetadataFor(int64(len(c.inline)), "application/x")
				}
				s.owner.answer = func(from *node, _ api.Entry, answer *api.Assignment) error {
					if from != a {
						answer.Neighbours = nil // the seed would bring the content sooner than the answer
						return nil
					}
					answer.Metadata, answer.Inline = &c.facts, c.inline
					if c.proof != nil {
						answer.Proof = c.proof(s.keys, spec.ID)
					}
					return nil
				}
				data, err := s.read(t.Context(), a, spec, 0, int64(len(right)))
				require.NoError(t, err)
				require.True(t, bytes.Equal(right, data), "other bytes were read")
				time.Sleep(10 * time.Second)
				content, runs := stored(t, a.store, spec.ID)
				require.True(t, bytes.Equal(right, content), "other bytes are stored")
				stats := a.engine.Stats()
				wire := stats.Seeds + stats.Peers - stats.Inline
				if c.taken {
					assert.EqualValues(t, len(right), stats.Inline)
					assert.Zero(t, wire)
				} else {
					assert.Zero(t, stats.Inline)
					assert.EqualValues(t, len(right), wire)
				}
				if c.proof != nil || !c.taken {
					assert.NotZero(t, runs, "others can be shown who vouches for it")
				}
			})
		})
	}
}

func TestContentWithItsProofIsPassedOnToPeers(t *testing.T) {
	for name, content := range map[string][]byte{"one piece": randomBytes(62, 1234), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSwarm(t, content)
				s.adjust = func(c *peer.Config) { c.Origin = nil }
				a, b := s.node(nil), s.node(nil)
				f := piece.MetadataFor(int64(len(content)), "application/x")
				s.owner.answer = func(from *node, _ api.Entry, answer *api.Assignment) error {
					if from == a {
						answer.Metadata, answer.Inline, answer.Proof = &f, content, s.keys.vouch(plain().ID, content)
					}
					return nil
				}
				for _, n := range []*node{a, b} {
					data, err := s.read(t.Context(), n, plain(), 0, f.Length)
					require.NoError(t, err)
					assert.True(t, bytes.Equal(content, data))
				}
				synctest.Wait()
				assert.EqualValues(t, len(content), b.engine.Stats().Peers)
				assert.Empty(t, s.origin.requests(), "no host asked the origin")
			})
		})
	}
}

// A small object comes inside the owner's answer, so its seed dials the host that wants it only if the origin is slow.
func TestASeedOfASmallObjectDialsNobodyAtOnce(t *testing.T) {
	for name, row := range map[string]struct {
		origin time.Duration // until its first byte
		length int
		dials  int
	}{
		"small, a quick origin": {20 * time.Millisecond, api.InlineMax, 0},
		"small, a slow origin":  {time.Second, api.InlineMax, 1},
		"large, a quick origin": {20 * time.Millisecond, api.InlineMax + 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				content := randomBytes(63, row.length)
				s := newSwarm(t, content)
				s.origin.fail = func(int, int64) error { time.Sleep(row.origin); return nil }
				var mu sync.Mutex
				var dials []time.Duration // of the seed, since the start
				began := time.Now()
				s.adjust = func(c *peer.Config) {
					dial := c.Dial
					c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
						mu.Lock()
						defer mu.Unlock()
						dials = append(dials, time.Since(began))
						return dial(ctx, addr)
					}
				}
				s.seed()
				s.adjust = nil
				a := s.node(nil)
				spec := s.spec()
				spec.Length = int64(row.length)
				s.owner.answer = func(from *node, e api.Entry, answer *api.Assignment) error {
					if from != a {
						return nil
					}
					answer.Neighbours = nil // only the seed can dial
					if time.Sleep(50 * time.Millisecond); e.Event == api.Started && row.dials == 0 {
						f := piece.MetadataFor(int64(row.length), s.origin.mediaType)
						answer.Metadata, answer.Inline = &f, content
					}
					return nil
				}
				data, err := s.read(t.Context(), a, spec, 0, int64(row.length))
				require.NoError(t, err)
				require.True(t, bytes.Equal(content, data))
				time.Sleep(10 * time.Second)
				mu.Lock()
				defer mu.Unlock()
				require.Len(t, dials, row.dials, "%v", dials)
				if row.origin > 200*time.Millisecond {
					assert.Equal(t, 200*time.Millisecond, dials[0].Truncate(10*time.Millisecond))
				}
			})
		})
	}
}
