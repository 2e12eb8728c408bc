package jobs

import (
	_ "embed" // for the description
	"net/http"
)

//go:embed openapi.json
var openAPI []byte

// ServeOpenAPI serves the description of the operators' API (OpenAPI 3.0).
func ServeOpenAPI(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI) // the client is gone if this fails
}
