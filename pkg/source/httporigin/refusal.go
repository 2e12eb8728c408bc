package httporigin

import (
	"crypto/tls"
	"errors"
	"net/http"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
)

// Refusal tells in which way a file cannot be had, for whatever error the origin, or a
// download from it, ended with.
func Refusal(err error) *api.FileError {
	var words *api.Failure
	if !errors.As(err, &words) {
		words = source.Failure(err)
	}
	out := &api.FileError{Kind: api.FileUnreachable, Message: err.Error()}
	var blocked *AddrError
	var unlisted *HostError
	var header *sharing.HeaderError
	var answered *source.StatusError
	var proxy *ProxyError
	var certificate *tls.CertificateVerificationError
	out.Untrusted = errors.As(err, &certificate)
	switch {
	case errors.As(err, &blocked), errors.As(err, &unlisted):
		out.Kind = api.FileForbidden
	case errors.As(err, &header):
		out.Kind = api.FileBadRequest
	case errors.As(err, &proxy) && (proxy.Status == http.StatusForbidden || proxy.Status == http.StatusProxyAuthRequired):
		out.Kind, out.Status = api.FileRefused, proxy.Status
	case words.Wrong:
		out.Kind = api.FileDigestWrong
	case words.Changed:
		out.Kind = api.FileChanged
	case errors.Is(err, piece.ErrNoSpace), !errors.As(err, &answered) && words.Status == http.StatusInsufficientStorage:
		out.Kind = api.FileNoSpace
	case errors.As(err, &answered), words.Status < http.StatusInternalServerError:
		out.Kind, out.Status = api.FileRefused, words.Status
	}
	return out
}
