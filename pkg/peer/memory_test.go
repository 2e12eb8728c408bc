package peer

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/task"
)

func TestWhatWasReplacedIsRememberedForAWhile(t *testing.T) {
	for name, note := range map[string]func(*Engine, task.ID){
		"dropped":          (*Engine).noteReplaced,
		"wrong, as a seed": func(e *Engine, id task.ID) { e.wrong(time.Now(), id) },
		"revoked by a neighbour": func(e *Engine, id task.ID) {
			e.noteRevoked(time.Now(), id, piece.Revocation{Epoch: 7}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &Engine{attempts: map[task.ID]attempt{}}
				assert.False(t, e.Replaced("sha256:00"))
				note(e, "sha256:00")
				assert.True(t, e.Replaced("sha256:00"))
				assert.False(t, e.Replaced("sha256:01"))
				time.Sleep(attemptMemory)
				assert.True(t, e.Replaced("sha256:00"))
				time.Sleep(time.Second)
				assert.False(t, e.Replaced("sha256:00"))
			})
		})
	}
}
