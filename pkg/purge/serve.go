package purge

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/task"
)

// ServeOrders serves [api.PathPurgeOrders].
func (s *Service) ServeOrders(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		s.serveNewOrders(w, r)
		return
	}
	w.Header().Set(api.HeaderClock, s.cfg.Now().UTC().Format(time.RFC3339Nano))
	if s.Mark() == r.URL.Query().Get("mark") {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	s.answer(w, api.PurgeOrders{Version: api.Version, List: s.List()})
}

// serveNewOrders answers once the orders are carried out: the sender must not count a task as dropped here
// that is not.
func (s *Service) serveNewOrders(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.PurgeOrdersSize+1))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	orders, err := api.DecodePurgeOrders(b)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.Add(orders.List); err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// ServeProgress serves [api.PathPurgeProgress] for a task.
func (s *Service) ServeProgress(w http.ResponseWriter, name string) {
	id, err := task.ParseID(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.answer(w, s.Progress(id))
}

// ServePurge serves the DELETE of [api.PathPurge] for a task, and sends the order to supernodes.
func (s *Service) ServePurge(w http.ResponseWriter, r *http.Request, name string, supernodes []string) {
	id, err := task.ParseID(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var wait time.Duration
	if text := r.URL.Query().Get("wait"); text != "" {
		if wait, err = time.ParseDuration(text); err != nil || wait < 0 {
			http.Error(w, fmt.Sprintf("wait=%.40q is no duration; write wait=10s", text), http.StatusBadRequest)
			return
		}
	}
	result, err := s.Purge(r.Context(), id, supernodes, wait)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
		return
	}
	s.answer(w, result)
}

func (s *Service) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("answer about purging not sent", "error", err)
	}
}
