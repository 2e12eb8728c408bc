package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/coordinator"
	"github.com/darter-io/darter/pkg/host"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/piece/memstore"
	"github.com/darter-io/darter/pkg/scheduler"
	"github.com/darter-io/darter/pkg/task"
	"github.com/darter-io/darter/test/results"
)

// The crowd that the scheduler has to bear: hosts in ten zones that all want all tasks.
const (
	schedulerHosts = 10_000
	schedulerTasks = 10
)

// scheduler measures how many announces per second one processor answers, and the memory of a host in a task: all hosts
// join, then all announce their progress and request two more neighbours. It measures the same through the coordinator
// with JSON.
func (b *bench) scheduler(ctx context.Context) error {
	hosts, tasks := schedulerCrowd()
	var join, progress, coded, each []float64
	for range b.rounds() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		before := heap()
		s := scheduler.New(scheduler.Config{Self: host.Host{ID: benchHost(0), Name: "supernode", Addr: "127.0.0.1:1"}})
		now := time.Unix(1e9, 0)
		announce := func(event scheduler.Event, need int) (float64, error) {
			return perSecond(schedulerHosts*schedulerTasks, func(i int) error {
				h, t := hosts[i%schedulerHosts], tasks[i/schedulerHosts]
				_, err := s.Announce(now, scheduler.Report{Host: h, Generation: 1,
					Entries: []scheduler.Entry{{Task: t, Event: event, Have: i / schedulerHosts, Need: need}}})
				return err
			})
		}
		rate, err := announce(scheduler.Started, 16)
		if err != nil {
			return err
		}
		join = append(join, rate)
		each = append(each, (heap()-before)/(schedulerHosts*schedulerTasks))
		if rate, err = announce(scheduler.Progress, 2); err != nil {
			return err
		}
		progress = append(progress, rate)
		runtime.KeepAlive(s)
		if rate, err = codedAnnounces(hosts, tasks); err != nil {
			return err
		}
		coded = append(coded, rate)
	}
	scenario := fmt.Sprintf("scheduler/%d-hosts-%d-tasks", schedulerHosts, schedulerTasks)
	asJSON := results.Median(scenario, "as_json_per_core", coded, "announces/CPU-s")
	asJSON.Better = "higher"
	b.out.Add(
		results.Median(scenario, "joins_per_core", join, "announces/CPU-s").AtLeast(20_000),
		results.Median(scenario, "progress_per_core", progress, "announces/CPU-s").AtLeast(20_000),
		asJSON,
		results.Median(scenario, "bytes_per_peer_and_task", each, "bytes").AtMost(500),
	)
	return nil
}

// codedAnnounces returns how many announces per second a processor answers after all hosts joined, from JSON to JSON
// and without connections.
func codedAnnounces(hosts []host.Host, tasks []task.ID) (float64, error) {
	c := coordinator.New(coordinator.Config{
		Host:  host.Host{ID: benchHost(0), Name: "supernode", Addr: "127.0.0.1:1"},
		Store: memstore.New(memstore.Config{}),
		Seed:  func(task.Spec) {},
	})
	for _, h := range hosts {
		entries := make([]api.Entry, len(tasks))
		for j, t := range tasks {
			entries[j] = api.Entry{Task: t, Event: api.Started,
				Spec: &api.Spec{Upstream: "registry.test", Repository: "bench"}, Need: 16}
		}
		if _, err := c.ServeAnnounce(context.Background(),
			api.AnnounceRequest{Version: api.Version, Host: h, Generation: 1, Entries: entries}); err != nil {
			return 0, err
		}
	}
	const questions = 20_000
	bodies := make([][]byte, questions)
	for i := range bodies {
		h, t := hosts[i%len(hosts)], tasks[i/len(hosts)]
		body, err := json.Marshal(api.AnnounceRequest{Version: api.Version, Host: h, Generation: 1,
			Entries: []api.Entry{{Task: t, Event: api.Progress, Have: 1, Need: 2}}})
		if err != nil {
			return 0, err
		}
		bodies[i] = body
	}
	var w answer
	return perSecond(questions, func(i int) error {
		req, err := http.NewRequest(http.MethodPost, api.PathAnnounce, bytes.NewReader(bodies[i]))
		if err != nil {
			return err
		}
		w = answer{header: http.Header{}}
		if c.HandleAnnounce(&w, req); w.status != http.StatusOK {
			return fmt.Errorf("an announce is answered with %d: %s", w.status, w.body.Bytes())
		}
		return nil
	})
}

// answer takes what a handler answers.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// perSecond does something n times and says how often it can be done in a second of one
// processor, what the collection of garbage costs included.
func perSecond(n int, f func(i int) error) (float64, error) {
	u, err := observe("", func() error {
		for i := range n {
			if err := f(i); err != nil {
				return err
			}
		}
		runtime.GC() // what it left is its own to clear away
		return nil
	})
	return float64(n) / (u.User + u.Sys).Seconds(), err
}

// heap is how many bytes of the heap are in use.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func schedulerCrowd() (hosts []host.Host, tasks []task.ID) {
	for i := range schedulerHosts {
		hosts = append(hosts, host.Host{
			ID: benchHost(i + 1), Name: fmt.Sprintf("node%d", i), Addr: fmt.Sprintf("10.%d.%d.%d:65002", i>>16,
				i>>8&255, i&255),
			Zone: fmt.Sprintf("zone%d", i%10),
		})
	}
	for i := range schedulerTasks {
		tasks = append(tasks, task.ID(piece.Sum([]byte{byte(i)}).String()))
	}
	return hosts, tasks
}

func benchHost(i int) host.ID { return host.ID(fmt.Sprintf("%032x", i+1)) }
