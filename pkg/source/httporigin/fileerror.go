package httporigin

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/piece"
	"github.com/darter-io/darter/pkg/sharing"
	"github.com/darter-io/darter/pkg/source"
)

// FileError classifies the error of an origin, or of a download from it, for the client that asked for the
// file.
func FileError(err error) *api.FileError {
	var failure *api.Failure
	if !errors.As(err, &failure) {
		failure = source.Failure(err)
	}
	out := &api.FileError{Kind: api.FileUnreachable, Message: err.Error()}
	var blocked *AddrError
	var unlisted *HostError
	var header *sharing.HeaderError
	var answered *source.StatusError
	var proxy *ProxyError
	var certificate *tls.CertificateVerificationError
	var redirect *RedirectError
	var name *net.DNSError
	out.Untrusted = errors.As(err, &certificate)
	out.Final = out.Untrusted || errors.As(err, &redirect) || errors.As(err, &name) && name.IsNotFound
	switch {
	case errors.As(err, &blocked), errors.As(err, &unlisted):
		out.Kind = api.FileForbidden
	case errors.As(err, &header):
		out.Kind = api.FileBadRequest
	case errors.As(err, &proxy) &&
		(proxy.Status == http.StatusForbidden || proxy.Status == http.StatusProxyAuthRequired):
		out.Kind, out.Status = api.FileRefused, proxy.Status
	case failure.Wrong:
		out.Kind = api.FileDigestWrong
	case failure.Changed:
		out.Kind = api.FileChanged
	case errors.Is(err, piece.ErrNoSpace), !errors.As(err, &answered) &&
		failure.Status == http.StatusInsufficientStorage:
		out.Kind = api.FileNoSpace
	case errors.As(err, &answered), failure.Status < http.StatusInternalServerError:
		out.Kind, out.Status = api.FileRefused, failure.Status
	}
	return out
}
