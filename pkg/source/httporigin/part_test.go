package httporigin_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/darter-io/darter/pkg/source/httporigin"
)

// TestAPartEndsWhereItShould asks for the bytes [100, 200) of 1000, or of 150.
func TestAPartEndsWhereItShould(t *testing.T) {
	file := make([]byte, 1000)
	for i := range file {
		file[i] = byte(i)
	}
	for name, c := range map[string]struct {
		answer func(*http.Response)
		length int // of the file, 1000 by default
		end    int // of the body, 200 by default
		wrong  bool
		skips  bool
	}{
		"the part":            {answer: ranged(file, 100, 200)},
		"the whole":           {answer: func(*http.Response) {}, skips: true},
		"up to the end":       {answer: ranged(file, 100, 1000)},
		"a longer part":       {answer: ranged(file, 100, 512)},
		"a shorter part":      {answer: ranged(file, 100, 150), end: 150},
		"another part":        {answer: ranged(file, 101, 200), wrong: true},
		"the end of the file": {answer: ranged(file[:150], 100, 150), length: 150, end: 150},
	} {
		t.Run(name, func(t *testing.T) {
			length := c.length
			if length == 0 {
				length = len(file)
			}
			end := c.end
			if end == 0 {
				end = 200
			}
			client, err := httporigin.NewClient(httporigin.Config{})
			require.NoError(t, err)
			u, err := url.Parse("http://files.test/x")
			require.NoError(t, err)
			asked := ""
			answer := trip(func(r *http.Request) (*http.Response, error) {
				asked = r.Header.Get("Range")
				res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: int64(length),
					Body: io.NopCloser(bytes.NewReader(file[:length])), Request: r}
				c.answer(res)
				return res, nil
			})
			res, err := client.Open(t.Context(), httporigin.Get{
				Request: httporigin.Request{URL: u, RoundTripper: answer}, Offset: 100, End: 200})
			assert.Equal(t, "bytes=100-199", asked)
			if c.wrong {
				var wrong *httporigin.AnswerError
				require.ErrorAs(t, err, &wrong)
				return
			}
			require.NoError(t, err)
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, file[100:end], b)
			assert.EqualValues(t, length, res.Length)
			assert.Equal(t, c.skips, res.Skips)
		})
	}
}

// ranged makes a partial answer of a file.
func ranged(file []byte, begin, end int) func(*http.Response) {
	return func(res *http.Response) {
		res.StatusCode = http.StatusPartialContent
		res.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", begin, end-1, len(file)))
		res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(file[begin:end])), int64(end-begin)
	}
}
