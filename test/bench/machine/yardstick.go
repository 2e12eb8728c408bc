package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/darter-io/darter/pkg/piece"
)

// The yardstick's settings: what a plain design would choose.
const (
	meshRequests = 4         // on their way to one peer
	meshSlots    = 4         // pieces that one peer sends at once
	meshBuffer   = 256 << 10 // one read of a body, one write to the file
)

// mesh is the yardstick: peers that do only the necessary work. They request pieces from each other with HTTP/1.1 range
// requests, send them with sendfile, hash them and write them with pwrite. One function call decides who requests which
// piece, where real peers need messages. Nothing is announced, signed, journalled or synced.
type mesh struct {
	layout  piece.Layout
	digests []piece.Digest
	peers   []*meshPeer // the first is the seed

	// mu is held to choose and to note, never while bytes move.
	mu      sync.Mutex
	copies  []int // of each piece, those on their way included
	flights int
	parked  []chan struct{} // workers that found nothing to ask for, the longest first
}

type meshPeer struct {
	m      *mesh
	path   string
	file   *os.File
	url    string
	server *http.Server
	client *http.Client
	sent   atomic.Int64

	// The mesh's mu guards these.
	have, flying piece.Bitmap
	sending      int
}

func newMesh(a assignment) (_ *mesh, err error) {
	stat, err := os.Stat(a.Content)
	if err != nil {
		return nil, err
	}
	m := &mesh{layout: piece.Layout{Length: stat.Size(), PieceSize: a.PieceSize}}
	n := m.layout.Count()
	m.digests, m.copies = make([]piece.Digest, n), make([]int, n)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	for i := range a.Peers + 1 {
		path := a.Content
		if i > 0 {
			path = filepath.Join(a.Dir, "peer"+strconv.Itoa(i))
		}
		if err := m.add(path); err != nil {
			return nil, err
		}
	}
	seed := m.peers[0]
	seed.have.SetAll()
	buf := make([]byte, a.PieceSize)
	for i := range piece.Index(n) {
		b := buf[:m.layout.Size(i)]
		if _, err := seed.file.ReadAt(b, m.layout.Offset(i)); err != nil {
			return nil, err
		}
		m.digests[i], m.copies[i] = piece.Sum(b), 1
	}
	return m, nil
}

func (m *mesh) add(path string) error {
	n := m.layout.Count()
	p := &meshPeer{m: m, path: path, have: piece.NewBitmap(n), flying: piece.NewBitmap(n)}
	flags := os.O_RDWR | os.O_CREATE
	if len(m.peers) == 0 {
		flags = os.O_RDONLY
	}
	var err error
	if p.file, err = os.OpenFile(path, flags, 0o644); err != nil {
		return err
	}
	m.peers = append(m.peers, p)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.url = "http://" + l.Addr().String() + "/"
	p.server = &http.Server{Handler: p}
	p.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: meshRequests, DisableCompression: true}}
	go p.server.Serve(l)
	return nil
}

func (m *mesh) close() (err error) {
	for _, p := range m.peers {
		if p.server != nil {
			err = errors.Join(err, p.server.Close())
			p.client.CloseIdleConnections()
		}
		err = errors.Join(err, p.file.Close())
	}
	return err
}

func (m *mesh) seedSent() int64 { return m.peers[0].sent.Load() }

// ServeHTTP answers a range request from the page cache.
func (p *meshPeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A file of its own, because sendfile moves the file's offset.
	f, err := os.Open(p.path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	first, last, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	begin, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		http.Error(w, "no range", http.StatusBadRequest)
		return
	}
	if _, err := f.Seek(begin, io.SeekStart); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	n := end + 1 - begin
	// A type that is known keeps the server from reading bytes to guess it, which would
	// cost it sendfile.
	w.Header()["Content-Type"] = []string{"application/octet-stream"}
	w.Header()["Content-Length"] = []string{strconv.FormatInt(n, 10)}
	w.WriteHeader(http.StatusPartialContent)
	sent, _ := io.CopyN(w, f, n)
	p.sent.Add(sent)
}

func (m *mesh) pull(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range m.peers[1:] {
		for range meshRequests {
			g.Go(func() error { return p.work(ctx) })
		}
	}
	return g.Wait()
}

// work downloads pieces until none is left to ask for.
func (p *meshPeer) work(ctx context.Context) error {
	buf := make([]byte, meshBuffer)
	for {
		i, from, wait := p.m.choose(p)
		switch {
		case wait != nil:
			select {
			case <-wait:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case from == nil:
			return nil
		default:
			if err := p.fetch(ctx, i, from, buf); err != nil {
				return fmt.Errorf("piece %d from %s: %w", i, from.url, err)
			}
			p.m.done(p, i, from)
		}
	}
}

// choose returns the next request of p: a random peer with a free slot and a useful piece, and its rarest such piece.
// It returns neither peer nor channel if p has or has requested all pieces, and a channel to wait for if no peer can
// help now.
func (m *mesh) choose(p *meshPeer) (i piece.Index, from *meshPeer, wait <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, flying := p.have.Words(), p.flying.Words()
	missing := false
	for w := range have {
		all := ^uint64(0)
		if rest := m.layout.Count() - 64*w; rest < 64 {
			all = 1<<rest - 1
		}
		missing = missing || all&^(have[w]|flying[w]) != 0
	}
	if !missing {
		return 0, nil, nil
	}
	offset := rand.IntN(len(m.peers))
	for k := range m.peers {
		q := m.peers[(k+offset)%len(m.peers)]
		if q == p || q.sending >= meshSlots {
			continue
		}
		best, ties := 0, 0
		for w, set := range q.have.Words() {
			for set &^= have[w] | flying[w]; set != 0; set &= set - 1 {
				j := piece.Index(64*w + bits.TrailingZeros64(set))
				switch c := m.copies[j]; {
				case ties == 0 || c < best:
					best, ties, i = c, 1, j
				case c == best:
					if ties++; rand.IntN(ties) == 0 {
						i = j
					}
				}
			}
		}
		if ties > 0 {
			q.sending++
			p.flying.Set(i)
			m.copies[i]++
			m.flights++
			return i, q, nil
		}
	}
	ch := make(chan struct{})
	m.parked = append(m.parked, ch)
	return 0, nil, ch
}

// done notes a piece that came. A slot and a piece are there now that were not before, so two
// who wait may go on; all when nothing is on its way that would wake them later.
func (m *mesh) done(p *meshPeer, i piece.Index, from *meshPeer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.have.Set(i)
	p.flying.Clear(i)
	from.sending--
	m.flights--
	n := min(2, len(m.parked))
	if m.flights == 0 {
		n = len(m.parked)
	}
	for _, ch := range m.parked[:n] {
		close(ch)
	}
	m.parked = slices.Delete(m.parked, 0, n)
}

// fetch downloads one piece and checks it.
func (p *meshPeer) fetch(ctx context.Context, i piece.Index, from *meshPeer, buf []byte) error {
	begin, n := p.m.layout.Offset(i), p.m.layout.Size(i)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.url, nil)
	if err != nil {
		return err
	}
	req.Header["Range"] = []string{fmt.Sprintf("bytes=%d-%d", begin, begin+n-1)}
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent || resp.ContentLength != n {
		return fmt.Errorf("it answers %s with %d bytes", resp.Status, resp.ContentLength)
	}
	h := sha256.New()
	for at := begin; at < begin+n; {
		b := buf[:min(int64(len(buf)), begin+n-at)]
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			return err
		}
		h.Write(b)
		if _, err := p.file.WriteAt(b, at); err != nil {
			return err
		}
		at += int64(len(b))
	}
	if piece.Digest(h.Sum(nil)) != p.m.digests[i] {
		return errors.New("wrong bytes")
	}
	// The end of the body, so that the connection is used again.
	_, err = resp.Body.Read(buf[:1])
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the body: %w", err)
	}
	return nil
}
