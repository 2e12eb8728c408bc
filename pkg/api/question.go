package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/darter-io/darter/pkg/task"
)

// PathQuestions is where an owner answers what is the same for every host: what a tag means,
// what anybody may have (POST, JSON: a Question; the answer is an Answer). The status and
// headers of the answer come at once, its body when the registry has spoken.
const PathQuestions = "/api/v1/questions"

// Bounds on questions and answers, in bytes of JSON and in elements.
const (
	QuestionMax   = 128 << 10
	AnswerMax     = 64 << 10
	questionTypes = 64   // media types in an Accept
	answerFields  = 16   // values of the headers of a refusal
	answerValue   = 4096 // bytes of one of them
)

// Question is what a host would else ask a registry itself. Its Authorization is a secret,
// plain here: it goes over TLS, to owners only, and is never logged.
type Question struct {
	Version    int       `json:"version"`
	Upstream   string    `json:"upstream"`
	Repository string    `json:"repository"`
	Kind       task.Kind `json:"kind"` // task.Manifest or task.Blob
	// Reference is a digest, or the tag of a manifest.
	Reference     string   `json:"reference"`
	Accept        []string `json:"accept,omitempty"`
	Authorization string   `json:"authorization,omitempty"`
	// Anonymous asks with the token that the registry gives to anybody.
	Anonymous bool `json:"anonymous,omitempty"`
	// MaxAgeMillis is how old an answer about a tag may be.
	MaxAgeMillis int64 `json:"maxAgeMillis,omitempty"`
}

// Key is what the owner of a question is chosen by, so that all hosts ask the same one.
func (q Question) Key() string { return q.Upstream + "/" + q.Repository + ":" + q.Reference }

// String names the question, so that no verb prints the secret.
func (q Question) String() string { return string(q.Kind) + " " + q.Key() }

// Format keeps every verb from printing the secret.
func (q Question) Format(f fmt.State, _ rune) { fmt.Fprint(f, q.String()) }

// LogValue keeps log/slog from showing the secret.
func (q Question) LogValue() slog.Value { return slog.StringValue(q.String()) }

// Answer is a registry's word on a Question, by way of an owner. Digest is set where the
// registry consented, Refusal where it refused, Unreached where it did not answer.
type Answer struct {
	Version   int     `json:"version"`
	Digest    task.ID `json:"digest,omitempty"`
	Length    int64   `json:"length,omitempty"` // bytes; 0 when not told
	MediaType string  `json:"mediaType,omitempty"`
	// Yours says that the registry consented to the question's own credential; else it
	// consented to another one, and what the asker may have is another question.
	Yours bool `json:"yours,omitempty"`
	// AgeMillis is how long ago the registry said so.
	AgeMillis int64 `json:"ageMillis,omitempty"`
	// DateSeconds is when the registry said so by its own clock (its Date), in seconds since
	// 1970; 0 when it did not tell. A node's clock may be off, and a token's end is the registry's.
	DateSeconds int64    `json:"dateSeconds,omitempty"`
	Refusal     *Refusal `json:"refusal,omitempty"`
	// Unreached says for people why there was no answer; it holds no secret.
	Unreached string `json:"unreached,omitempty"`
}

// Refusal is a registry's own, to the letter as far as clients need it.
type Refusal struct {
	Status int `json:"status"`
	// Header holds WWW-Authenticate and Retry-After.
	Header map[string][]string `json:"header,omitempty"`
	// Body is cut at FailureMax.
	Body []byte `json:"body,omitempty"`
}

// DecodeQuestion reads a question of at most QuestionMax bytes and checks its form; what its
// names mean is checked by whoever asks them.
func DecodeQuestion(b []byte) (Question, error) {
	if len(b) > QuestionMax {
		return Question{}, fmt.Errorf("question of more than %d bytes", QuestionMax)
	}
	var wire struct {
		Question
		Accept json.RawMessage `json:"accept"`
	}
	if err := json.Unmarshal(b, &wire); err != nil {
		return Question{}, fmt.Errorf("reading a question: %w", err)
	}
	q := wire.Question
	if wire.Accept != nil {
		var err error
		if q.Accept, err = UnmarshalList[string](wire.Accept, questionTypes, QuestionMax); err != nil {
			return Question{}, fmt.Errorf("reading a question: accept: %w", err)
		}
	}
	switch {
	case q.Version < 1 || q.Version > Version+1:
		return Question{}, fmt.Errorf("question of version %d, this owner speaks %d", q.Version, Version)
	case q.Kind != task.Manifest && q.Kind != task.Blob:
		return Question{}, fmt.Errorf("question about a %.40q, which no registry has", q.Kind)
	case q.MaxAgeMillis < 0:
		return Question{}, errors.New("question about an answer of less than no age")
	}
	return q, nil
}

// DecodeAnswer reads an answer of at most AnswerMax bytes and takes out of it what no honest
// owner says.
func DecodeAnswer(b []byte) (Answer, error) {
	if len(b) > AnswerMax {
		return Answer{}, fmt.Errorf("answer of more than %d bytes", AnswerMax)
	}
	var a Answer
	if err := json.Unmarshal(b, &a); err != nil {
		return Answer{}, fmt.Errorf("reading an answer: %w", err)
	}
	_, err := task.ParseID(string(a.Digest))
	switch {
	case a.Version < 1 || a.Version > Version+1:
		return Answer{}, fmt.Errorf("answer of version %d, this host speaks %d", a.Version, Version)
	case a.Length < 0 || a.AgeMillis < 0 || a.DateSeconds < 0 || len(a.MediaType) > 255 || len(a.Unreached) > answerValue:
		return Answer{}, errors.New("answer with numbers or texts that no registry gives")
	case a.Unreached != "":
		return Answer{Version: a.Version, Unreached: a.Unreached}, nil
	case a.Refusal != nil:
		return Answer{Version: a.Version, Refusal: a.Refusal}, a.Refusal.check()
	case err != nil:
		return Answer{}, fmt.Errorf("answer without consent or refusal: %w", err)
	}
	return a, nil
}

func (r *Refusal) check() error {
	if r.Status < 400 || r.Status > 599 {
		return fmt.Errorf("answer with a refusal of status %d", r.Status)
	}
	r.Body = r.Body[:min(len(r.Body), FailureMax)]
	kept, values := map[string][]string{}, 0
	for _, name := range []string{"Www-Authenticate", "Retry-After"} {
		for _, v := range http.Header(r.Header).Values(name) {
			if values++; values <= answerFields && len(v) <= answerValue {
				kept[name] = append(kept[name], v)
			}
		}
	}
	r.Header = kept
	return nil
}
