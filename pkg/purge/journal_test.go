package purge

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

func idOf(letters string) task.ID { return task.ID("sha256:" + strings.Repeat(letters, 32)) }

// openAt opens the journal of a directory at a time, and notes what is dropped.
func openAt(t *testing.T, dir string, now time.Time) (w *Journal, dropped *[]task.ID) {
	w, err := openJournal(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	w.now = func() time.Time { return now }
	dropped = new([]task.ID)
	w.hooks = append(w.hooks, func(id task.ID) { *dropped = append(*dropped, id) })
	return w, dropped
}

func TestOrderIsCarriedOutOnce(t *testing.T) {
	dir, now := t.TempDir(), time.Unix(1_800_000_000, 0)
	a := api.PurgeOrder{Task: idOf("0a"), At: now.Add(-time.Hour)}
	w, dropped := openAt(t, dir, now)
	assert.Empty(t, w.Mark())
	require.NoError(t, w.Add([]api.PurgeOrder{a}))
	require.NoError(t, w.Add([]api.PurgeOrder{a}))
	assert.Equal(t, []task.ID{a.Task}, *dropped)
	mark := w.Mark()
	assert.NotEmpty(t, mark)

	w, dropped = openAt(t, dir, now)
	assert.Equal(t, mark, w.Mark())
	require.NoError(t, w.Add([]api.PurgeOrder{a}))
	assert.Empty(t, *dropped, "a replica that came later stays")
	a.At = now
	require.NoError(t, w.Add([]api.PurgeOrder{a}))
	assert.Equal(t, []task.ID{a.Task}, *dropped, "purged again")
	assert.NotEqual(t, mark, w.Mark())
}

func TestOldOrdersAreIgnored(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, dropped := openAt(t, t.TempDir(), now)
	require.NoError(t, w.Add([]api.PurgeOrder{
		{Task: idOf("0a"), At: now.Add(-api.PurgeOrderLife)}, // of the version before: only the clock tells its age
		{Task: idOf("0b"), At: now, AgeMillis: api.PurgeOrderLife.Milliseconds()},
		{Task: idOf("0d"), At: now, AgeMillis: 1 << 62},
	}))
	assert.Empty(t, *dropped)
	require.NoError(t, w.Add([]api.PurgeOrder{{Task: idOf("0c"), At: now}}))
	w.now = func() time.Time { return now.Add(api.PurgeOrderLife) }
	assert.Empty(t, w.Mark())
	assert.Empty(t, w.List())
}

func TestOrdersAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, _ := openAt(t, t.TempDir(), now)
	var list []api.PurgeOrder
	for i := range api.PurgeOrdersMax + 10 {
		list = append(list, api.PurgeOrder{Task: task.ID("sha256:" + strings.Repeat("0", 56) + hexOf(i)),
			At: now.Add(time.Duration(i) * time.Millisecond)})
	}
	require.NoError(t, w.Add(list))
	assert.Len(t, w.List(), api.PurgeOrdersMax)
	assert.Equal(t, list[10].Task, w.List()[0].Task, "the oldest are forgotten")
}

func hexOf(i int) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 8)
	for k := range out {
		out[7-k] = digits[i>>(4*k)&15]
	}
	return string(out)
}

func TestBrokenJournalIsAnError(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, journalFile), []byte("{"), 0o600))
	_, err := openJournal(dir, slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "delete the file to forget")
}

func TestUnsavedOrderIsCarriedOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	w, dropped := openAt(t, dir, time.Unix(1_800_000_000, 0))
	assert.ErrorContains(t, w.Add([]api.PurgeOrder{{Task: idOf("0a"), At: time.Unix(1_800_000_000, 0)}}),
		"saving the purge orders")
	assert.Len(t, *dropped, 1)
}
