package apiclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/darter-io/darter/pkg/api"
)

// statusTimeout bounds [FetchStatus].
const statusTimeout = 5 * time.Second

// FetchStatus asks a program of this machine for its status, at its local or admin API. The errors are for the
// operator: they say what to do.
func FetchStatus(ctx context.Context, program, addr string) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	s, _, err := Local(addr).Status(ctx)
	answer := ""
	var status *StatusError
	var body *BodyError
	switch {
	case err == nil && s.Program != "":
		return s, nil
	case err == nil:
		answer = fmt.Sprintf("%d %s", http.StatusOK, http.StatusText(http.StatusOK))
	case errors.As(err, &status):
		answer = status.Status
	case errors.As(err, &body):
		answer = body.Status
	default:
		return api.Status{}, fmt.Errorf("no %s answers at %s (%w); is it running, and is this its address?",
			program, addr, err)
	}
	return api.Status{}, fmt.Errorf("%s is not a Darter status address (it answers %s); use the dfdaemon's api.listen "+
		"or the supernode's admin.listen", addr, answer)
}
