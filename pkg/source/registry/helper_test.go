package registry

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patience is how long something may take on a busy machine that takes milliseconds alone.
const patience = 30 * time.Second

// hanging is a helper that hangs for hung.test, with a child that hangs as well, until the file
// named go is there. It writes the numbers of both processes into the file named pids.
func hanging(t *testing.T) (d *dockerConfig, runs func() int, dir string) {
	dir = t.TempDir()
	runs = helper(t, `read server || true
case "$server" in
hung*) sleep 1000 & echo $$ $! > `+dir+`/pids.new; mv `+dir+`/pids.new `+dir+`/pids; while ! test -e `+dir+`/go; do sleep 0.05; done; kill $!; echo '{"Username":"late","Secret":"s"}' ;;
*) echo '{"Username":"robot","Secret":"s3"}' ;;
esac
`)
	d = written(t, `{"credHelpers":{"hung.test":"test","hung2.test":"test","quay.io":"test"},"auths":{"plain.test":{"username":"u","password":"p"}}}`)
	return d, runs, dir
}

func pids(t *testing.T, dir string) (list []int) {
	t.Helper()
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "pids"))
		list = nil
		for _, word := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(word)
			list = append(list, pid)
		}
		return err == nil && len(list) == 2
	}, patience, time.Millisecond)
	return list
}

func TestAHungHelperDelaysNoOtherRegistry(t *testing.T) {
	d, runs, dir := hanging(t)
	type result struct {
		auth authn.AuthConfig
		err  error
	}
	const waiting = 20
	late := make(chan result, waiting)
	for range waiting {
		go func() {
			auth, _, err := d.get(t.Context(), "hung.test", "a")
			late <- result{auth, err}
		}()
	}
	pids(t, dir)

	// All of these end while that one hangs: a lock that it held would keep them for ever.
	auth, ok, err := d.get(t.Context(), "quay.io", "a")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, "robot", auth.Username, "another answer of the same helper")
	auth, _, err = d.get(t.Context(), "plain.test", "a")
	require.NoError(t, err)
	assert.Equal(t, "u", auth.Username)
	assert.True(t, d.concerns("hung.test"))
	left, leave := context.WithCancelCause(t.Context())
	leave(errors.New("the client left"))
	_, _, err = d.get(left, "hung.test", "a")
	require.ErrorContains(t, err, "docker-credential-test: the client left")
	assert.Empty(t, late)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	for range waiting {
		r := <-late
		require.NoError(t, r.err)
		assert.Equal(t, "late", r.auth.Username)
	}
	assert.Equal(t, 2, runs(), "one run for all that waited, and quay.io's")
}

func TestAHelperThatHangsIsKilledWithItsChildren(t *testing.T) {
	d, runs, dir := hanging(t)
	d.helpers.limit = 10 * time.Second // within which the helper starts and writes its process IDs
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			_, ok, err := d.get(t.Context(), "hung.test", "a")
			assert.False(t, ok)
			assert.ErrorContains(t, err, "docker-credential-test gave no answer within 10s and was killed")
			assert.ErrorContains(t, err, "echo hung.test | docker-credential-test get")
		})
	}
	processes := pids(t, dir)
	all.Wait()
	for _, pid := range processes {
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ") // in a container nothing reaps it
		}, patience, time.Millisecond, "process %d lives", pid)
		assert.NotEqual(t, syscall.Getpid(), pid)
	}
	_, _, err := d.get(t.Context(), "hung.test", "a")
	require.ErrorContains(t, err, "was killed")
	assert.Equal(t, 1, runs(), "it does not run for a moment")
	d.helpers.running["docker-credential-test hung.test"].until = time.Now()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	d.helpers.limit = patience
	auth, _, err := d.get(t.Context(), "hung.test", "a")
	require.NoError(t, err)
	assert.Equal(t, "late", auth.Username, "and runs again then")
}

// A helper may leave a child that holds its output, such as an agent. Its own answer counts.
func TestAHelperMayLeaveAChild(t *testing.T) {
	dir := t.TempDir()
	helper(t, `read server || true
sleep 1000 &
echo $$ $! > `+dir+`/pids
echo '{"Username":"robot","Secret":"s3"}'
`)
	d := written(t, `{"credsStore":"test"}`)
	d.helpers.limit = patience
	auth, ok, err := d.get(t.Context(), "quay.io", "a")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, "robot", auth.Username)
	child := pids(t, dir)[1]
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, patience, time.Millisecond, "process %d lives", child)
}

func TestCloseKillsHelpers(t *testing.T) {
	d, _, dir := hanging(t)
	failed := make(chan error, 1)
	go func() {
		_, _, err := d.get(t.Context(), "hung.test", "a")
		failed <- err
	}()
	processes := pids(t, dir)
	d.helpers.close()
	require.ErrorIs(t, <-failed, errClosed)
	for _, pid := range processes {
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		}, patience, time.Millisecond, "process %d lives", pid)
	}
	_, _, err := d.get(t.Context(), "quay.io", "a")
	require.ErrorIs(t, err, errClosed)
}

func TestHelpersRunInBoundedNumber(t *testing.T) {
	runs := helper(t,
		"read server; while ! test -e $HELPER_GO; do sleep 0.05; done; echo "+
			"'{\"Username\":\"robot\",\"Secret\":\"s\"}'\n")
	release := filepath.Join(t.TempDir(), "go")
	t.Setenv("HELPER_GO", release)
	d := written(t, `{"credsStore":"test"}`)
	d.helpers.limit = patience
	var all sync.WaitGroup
	for i := range 2*helpersMax + 1 {
		all.Go(func() {
			_, ok, err := d.get(t.Context(), "r"+strconv.Itoa(i)+".test", "a")
			assert.NoError(t, err)
			assert.True(t, ok)
		})
	}
	require.Eventually(t, func() bool { return runs() == helpersMax && len(d.helpers.slots) == helpersMax }, patience,
		time.Millisecond)
	require.NoError(t, os.WriteFile(release, nil, 0o600))
	all.Wait()
	assert.Equal(t, 2*helpersMax+1, runs())
}

func TestAFileThatChangedIsAskedByItsOwnHelper(t *testing.T) {
	d, _, dir := hanging(t)
	first := make(chan error, 1)
	go func() {
		_, _, err := d.get(t.Context(), "hung.test", "a")
		first <- err
	}()
	pids(t, dir)
	require.NoError(t, os.WriteFile(d.path, []byte(`{"auths":{"hung.test":{"username":"new","password":"p"}}}`), 0o600))
	auth, _, err := d.get(t.Context(), "hung.test", "a")
	require.NoError(t, err)
	assert.Equal(t, "new", auth.Username)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o600))
	require.NoError(t, <-first)
}
