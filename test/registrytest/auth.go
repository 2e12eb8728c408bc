package registrytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	tokenService = "registrytest"
	tokenIssuer  = "registrytest-issuer"
	tokenKeyID   = "registrytest-key"
)

// access is one grant inside a token (distribution's token specification).
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// tokens signs tokens and stores their expiry.
type tokens struct {
	signer jose.Signer

	// mu guards the maps below.
	mu      sync.Mutex
	expires map[string]time.Time
	refresh map[string]string // refresh token → user
}

func newTokens(jwksFile string) (*tokens, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the token service's key: %w", err)
	}
	public := jose.JSONWebKey{Key: key.Public(), KeyID: tokenKeyID, Algorithm: string(jose.ES256), Use: "sig"}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	if err != nil {
		return nil, fmt.Errorf("encoding the token service's key: %w", err)
	}
	if err := os.WriteFile(jwksFile, set, 0o600); err != nil {
		return nil, fmt.Errorf("writing the token service's key: %w", err)
	}
	signing := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: tokenKeyID}}
	signer, err := jose.NewSigner(signing, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("making the token service's signer: %w", err)
	}
	return &tokens{signer: signer, expires: map[string]time.Time{}, refresh: map[string]string{}}, nil
}

func (t *tokens) issue(user string, grants []access, life time.Duration) (string, error) {
	now := time.Now()
	if grants == nil {
		grants = []access{}
	}
	claims := map[string]any{
		"iss": tokenIssuer, "sub": user, "aud": tokenService, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(life).Unix() + 1, "access": grants,
	}
	token, err := jwt.Signed(t.signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a token for %q: %w", user, err)
	}
	t.mu.Lock()
	t.expires[token] = now.Add(life)
	t.mu.Unlock()
	return token, nil
}

func (t *tokens) live(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.expires[token])
}

func (t *tokens) revoke() {
	t.mu.Lock()
	clear(t.expires)
	t.mu.Unlock()
}

func bearerOf(req *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(req.Header.Get("Authorization"), " ")
	return token, ok && strings.EqualFold(scheme, "bearer")
}

// serveToken serves the token service: GET with Basic, or an OAuth2 POST with a password or a refresh token. It grants
// the part of the requested scopes that the user may have, perhaps none.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		writeError(w, http.StatusBadRequest, "UNSUPPORTED", "unreadable form")
		return
	}
	user, password, given := req.BasicAuth()
	if req.Method == http.MethodPost {
		switch req.PostForm.Get("grant_type") {
		case "password":
			user, password, given = req.PostForm.Get("username"), req.PostForm.Get("password"), true
		case "refresh_token":
			r.tokens.mu.Lock()
			name, ok := r.tokens.refresh[req.PostForm.Get("refresh_token")]
			r.tokens.mu.Unlock()
			if u, known := r.user(name); ok && known {
				user, password, given = name, u.Password, true
			} else {
				user, given = "unknown", true
			}
		default:
			writeError(w, http.StatusBadRequest, "UNSUPPORTED", "unknown grant_type")
			return
		}
	}
	if given {
		if u, known := r.user(user); !known || u.Password != password || user == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="registrytest"`)
			writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user or password")
			return
		}
	} else {
		user = ""
	}
	var grants []access
	for _, scopes := range req.Form["scope"] {
		for _, scope := range strings.Fields(scopes) {
			parts := strings.Split(scope, ":")
			if len(parts) != 3 || parts[0] != "repository" {
				continue
			}
			a := access{Type: parts[0], Name: parts[1], Actions: []string{}}
			for _, action := range strings.Split(parts[2], ",") {
				if r.may(user, a.Name, action) {
					a.Actions = append(a.Actions, action)
				}
			}
			if len(a.Actions) > 0 {
				grants = append(grants, a)
			}
		}
	}
	token, err := r.tokens.issue(user, grants, r.cfg.TokenLife)
	if err != nil {
		writeError(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	answer := map[string]any{
		"token": token, "access_token": token,
		"expires_in": int(r.cfg.TokenLife.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	}
	if user != "" && (req.Form.Get("offline_token") == "true" || req.Form.Get("access_type") == "offline") {
		refresh := rand.Text()
		r.tokens.mu.Lock()
		r.tokens.refresh[refresh] = user
		r.tokens.mu.Unlock()
		answer["refresh_token"] = refresh
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// IdentityToken returns a refresh token of a user, as docker login stores it; it needs [Bearer].
func (r *Registry) IdentityToken(user string) string {
	token := rand.Text()
	r.tokens.mu.Lock()
	r.tokens.refresh[token] = user
	r.tokens.mu.Unlock()
	return token
}

// authority is the certificate authority of one registry.
type authority struct {
	cert   *x509.Certificate
	key    crypto.Signer
	pem    []byte
	server tls.Certificate
}

func newAuthority(hosts []string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the authority's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "registrytest authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the authority's certificate: %w", err)
	}
	a := &authority{key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	certPEM, keyPEM, err := a.issue("registrytest", append(slices.Clone(hosts), "localhost", "127.0.0.1", "::1"))
	if err != nil {
		return nil, err
	}
	if a.server, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	return a, nil
}

func (a *authority) issue(commonName string, hosts []string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making the key of %s: %w", commonName, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, nil, fmt.Errorf("drawing the serial number of %s: %w", commonName, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: commonName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the certificate of %s: %w", commonName, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the key of %s: %w", commonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) serverConfig(cfg Config) *tls.Config {
	c := &tls.Config{
		Certificates: []tls.Certificate{a.server}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
	}
	if cfg.HTTP2 {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	if cfg.ClientCert {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, a.pool()
	}
	return c
}
