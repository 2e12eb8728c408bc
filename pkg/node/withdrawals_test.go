package node

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

// remembered opens the withdrawals of a directory at a time, and notes what is dropped.
func remembered(t *testing.T, dir string, now time.Time) (w *Withdrawals, dropped *[]task.ID) {
	w, err := openWithdrawals(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	w.now = func() time.Time { return now }
	dropped = new([]task.ID)
	w.drop = append(w.drop, func(id task.ID) { *dropped = append(*dropped, id) })
	return w, dropped
}

func TestAWithdrawalIsFollowedOnceAlsoOverRestarts(t *testing.T) {
	dir, now := t.TempDir(), time.Unix(1_800_000_000, 0)
	a := api.Withdrawal{Task: idOf("0a"), At: now.Add(-time.Hour)}
	w, dropped := remembered(t, dir, now)
	assert.Empty(t, w.Mark())
	require.NoError(t, w.Add([]api.Withdrawal{a}))
	require.NoError(t, w.Add([]api.Withdrawal{a}))
	assert.Equal(t, []task.ID{a.Task}, *dropped)
	mark := w.Mark()
	assert.NotEmpty(t, mark)

	w, dropped = remembered(t, dir, now)
	assert.Equal(t, mark, w.Mark())
	require.NoError(t, w.Add([]api.Withdrawal{a}))
	assert.Empty(t, *dropped, "what was brought since then stays")
	a.At = now
	require.NoError(t, w.Add([]api.Withdrawal{a}))
	assert.Equal(t, []task.ID{a.Task}, *dropped, "withdrawn again")
	assert.NotEqual(t, mark, w.Mark())
}

func TestWhatIsTooOldIsPassedOver(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, dropped := remembered(t, t.TempDir(), now)
	require.NoError(t, w.Add([]api.Withdrawal{
		{Task: idOf("0a"), At: now.Add(-api.WithdrawalLife)}, // of a former version: there is nothing else to judge by
		{Task: idOf("0b"), At: now, AgeMillis: api.WithdrawalLife.Milliseconds()},
		{Task: idOf("0d"), At: now, AgeMillis: 1 << 62},
	}))
	assert.Empty(t, *dropped)
	require.NoError(t, w.Add([]api.Withdrawal{{Task: idOf("0c"), At: now}}))
	w.now = func() time.Time { return now.Add(api.WithdrawalLife) }
	assert.Empty(t, w.Mark())
	assert.Empty(t, w.List())
}

func TestNoMoreWithdrawalsAreRememberedThanAllowed(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	w, _ := remembered(t, t.TempDir(), now)
	var list []api.Withdrawal
	for i := range api.WithdrawalsMax + 10 {
		list = append(list, api.Withdrawal{Task: task.ID("sha256:" + strings.Repeat("0", 56) + hexOf(i)), At: now.Add(time.Duration(i) * time.Millisecond)})
	}
	require.NoError(t, w.Add(list))
	assert.Len(t, w.List(), api.WithdrawalsMax)
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

func TestAFileThatIsNoListIsNotPassedOverInSilence(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, withdrawalsFile), []byte("{"), 0o600))
	_, err := openWithdrawals(dir, slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "delete the file to forget")
}

func TestWhatADiskCannotRememberIsDroppedAllTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	w, dropped := remembered(t, dir, time.Unix(1_800_000_000, 0))
	assert.ErrorContains(t, w.Add([]api.Withdrawal{{Task: idOf("0a"), At: time.Unix(1_800_000_000, 0)}}), "remembering what was withdrawn")
	assert.Len(t, *dropped, 1)
}
