package cli

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/darter-io/darter/pkg/api"
	"github.com/darter-io/darter/pkg/apiclient"
	"github.com/darter-io/darter/pkg/config"
	"github.com/darter-io/darter/pkg/oci"
	"github.com/darter-io/darter/pkg/preheat"
	"github.com/darter-io/darter/pkg/preheat/jobs"
)

// The exit codes of preheat in addition to 0, 1 and 2.
const (
	exitPartial   = 3 // too few hosts have it
	exitFailed    = 4 // no node has it
	exitCancelled = 5
)

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	error
}

func (e exitError) Unwrap() error { return e.error }

// preheatPoll is the time between two looks at a job.
const preheatPoll = time.Second

// preheatFlags are the flags of preheat.
type preheatFlags struct {
	zones, labels, platforms        []string
	wave, deadline, min, scope      string
	percent                         float64
	count                           int
	referrers, wait                 bool
	output, webhook                 string
	authorizationFile, dockerConfig string
}

// PreheatCommand has hosts fetch an image before somebody needs it, by the supernode that runs at an address of this
// machine.
func PreheatCommand(at *config.Address, flag string) Command {
	f := new(preheatFlags)
	return Command{
		Use: "preheat IMAGE | list | status JOB | wait JOB | pause JOB | resume JOB | cancel JOB", Keep: []string{flag},
		Short: "Have nodes fetch an image before somebody needs it, and tell who has it",
		Long: `Preheat has the nodes fetch an image, or another object of a registry, by way of the swarm: the
registry sends each byte once. It prints the job's ID. With --wait it shows the progress until the job
ends, by the deadline at the latest, and then who does not have it and why.

"status JOB" tells who has it at this moment: also of a job that has ended, because a node may have
lost its copy since. Any supernode answers for any job, and takes it over if another one dies.

Exit codes: 0 enough nodes have it (without --wait: the job has begun); 1 no supernode answers, or it
refuses the job; 2 a flag is wrong; 3 the job ended or, with status, runs, and only some nodes have it;
4 no node has it, or the job failed; 5 the job was cancelled.`,
		Args: cobra.RangeArgs(1, 2), Flags: f.add,
		Run: func(ctx context.Context, args []string, stdout io.Writer) error {
			return f.run(ctx, apiclient.Local(string(*at)), args, stdout)
		},
	}
}

func (f *preheatFlags) add(set *pflag.FlagSet) {
	set.StringSliceVar(&f.zones, "zone", nil, "only nodes of these `ZONES`, as a,b")
	set.StringSliceVar(&f.labels, "label", nil, "only nodes with this label, `KEY=VALUE` (node.labels)")
	set.StringSliceVar(&f.platforms, "platform", nil, "only these `PLATFORMS` of an index, as linux/amd64; default all")
	set.BoolVar(&f.referrers, "referrers", false, "also what refers to the image: signatures, SBOMs")
	set.StringVar(&f.scope, "scope", string(preheat.AllNodes), "`WHO` fetches: all-nodes, all-seeds or one-seed")
	set.Float64Var(&f.percent, "percent", 0, "only this part of the nodes of each zone, in percent")
	set.IntVar(&f.count, "count", 0, "only so many nodes of each zone")
	set.StringVar(&f.wave, "wave", "", "fetch in waves of these parts of the nodes, as 5%,25%,100%")
	set.StringVar(&f.deadline, "deadline", "", "end by this `TIME`: 18:00, a duration as 30m, or RFC 3339; default 30m")
	set.StringVar(&f.min, "min", "", "this part of the nodes is enough, as 99%; default all")
	set.StringVar(&f.webhook, "webhook", "", "POST the result as JSON to this `URL` at the end")
	set.BoolVar(&f.wait, "wait", false, "wait until the job ends")
	set.StringVarP(&f.output, "output", "o", "text", "print `FORMAT`: text or json")
	set.StringVar(&f.authorizationFile, "authorization-file", "",
		"`FILE` with the Authorization header for the registry; the supernodes keep it in memory alone")
	set.StringVar(&f.dockerConfig, "docker-config", "", "`FILE` of docker login with the password for the registry")
}

func (f *preheatFlags) run(ctx context.Context, c apiclient.Client, args []string, stdout io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return Usage(fmt.Errorf("--output is %q; write text or json", f.output))
	}
	verb := args[0]
	if len(args) == 1 && slices.Contains([]string{"status", "wait", "pause", "resume", "cancel"}, verb) {
		return Usage(fmt.Errorf("%s needs a job; supernode preheat list names the jobs", verb))
	}
	if len(args) == 1 && verb != "list" {
		return f.begin(ctx, c, verb, stdout)
	}
	if len(args) == 1 {
		list, err := c.Preheats(ctx)
		if err != nil {
			return asked(c, err)
		}
		return f.printList(list, stdout)
	}
	id := args[1]
	var job preheat.Job
	var err error
	switch verb {
	case "status":
		g, err := c.PreheatGate(ctx, id)
		if err != nil {
			return asked(c, err)
		}
		return f.result(g, stdout)
	case "wait":
		return f.await(ctx, c, id, stdout)
	case "cancel":
		job, err = c.CancelPreheat(ctx, id)
	case "pause", "resume":
		job, err = c.PausePreheat(ctx, id, verb == "pause")
	default:
		return Usage(fmt.Errorf("preheat takes one image, or list, or a verb and a job; %q is no verb: "+
			"write status, wait, pause, resume or cancel", verb))
	}
	if err != nil {
		return asked(c, err)
	}
	if f.output == "json" {
		return printJSON(stdout, job)
	}
	_, err = fmt.Fprintf(stdout, "%s %s\n", job.ID, job.State)
	return err
}

// begin begins a job.
func (f *preheatFlags) begin(ctx context.Context, c apiclient.Client, image string, stdout io.Writer) error {
	q, err := f.request(image, time.Now())
	if err != nil {
		return Usage(err)
	}
	job, err := c.CreatePreheat(ctx, q)
	if err != nil {
		return asked(c, err)
	}
	if f.wait {
		if f.output == "text" {
			fmt.Fprintf(stdout, "job %s\n", job.ID)
		}
		return f.await(ctx, c, job.ID, stdout)
	}
	if f.output == "json" {
		return printJSON(stdout, job)
	}
	_, err = fmt.Fprintf(stdout, "%s\n", job.ID)
	return err
}

// request makes the job of the flags.
func (f *preheatFlags) request(image string, now time.Time) (q jobs.Request, err error) {
	q.Spec = preheat.Spec{Kind: preheat.Image, Reference: image, Platforms: f.platforms, Referrers: f.referrers,
		Webhook: f.webhook, Scope: preheat.Scope{Kind: preheat.ScopeKind(f.scope), Zones: f.zones, Count: f.count,
			Percent: f.percent}}
	for _, l := range f.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return q, fmt.Errorf("--label %q: write KEY=VALUE", l)
		}
		if q.Scope.Labels == nil {
			q.Scope.Labels = map[string]string{}
		}
		q.Scope.Labels[k] = v
	}
	if f.wave != "" {
		for _, w := range strings.Split(f.wave, ",") {
			p, err := percent(w)
			if err != nil {
				return q, fmt.Errorf("--wave: %w", err)
			}
			q.Waves = append(q.Waves, p)
		}
	}
	if f.min != "" {
		if q.Min, err = percent(f.min); err != nil {
			return q, fmt.Errorf("--min: %w", err)
		}
	}
	if f.deadline != "" {
		if q.Deadline, err = deadline(f.deadline, now); err != nil {
			return q, err
		}
	}
	if err := q.ValidateAt(now); err != nil {
		return q, err
	}
	authorization, err := f.authorization(q.Spec)
	if err == nil && authorization != "" {
		q.Headers = map[string]string{"Authorization": authorization}
	}
	return q, err
}

// percent reads "25%" or "25".
func percent(text string) (float64, error) {
	p, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(text), "%"), 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no part; write 25%%", text)
	}
	return p, nil
}

// deadline reads a duration, a time of the next 24 hours, or a date with time.
func deadline(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(d), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	clock, err := time.Parse("15:04", text)
	if err != nil {
		return now, fmt.Errorf("--deadline %q: write 18:00, a duration as 30m, or 2026-08-01T18:00:00+02:00", text)
	}
	at := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), 0, 0, now.Location())
	if !at.After(now) {
		at = at.AddDate(0, 0, 1)
	}
	return at, nil
}

// authorization reads the credentials that the flags name.
func (f *preheatFlags) authorization(s preheat.Spec) (string, error) {
	switch {
	case f.authorizationFile != "" && f.dockerConfig != "":
		return "", errors.New("--authorization-file and --docker-config exclude each other")
	case f.authorizationFile != "":
		b, err := os.ReadFile(f.authorizationFile)
		return strings.TrimSpace(string(b)), err
	case f.dockerConfig == "":
		return "", nil
	}
	b, err := os.ReadFile(f.dockerConfig)
	if err != nil {
		return "", err
	}
	var file struct {
		Auths map[string]struct {
			Auth, Username, Password string
		} `json:"auths"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return "", fmt.Errorf("%s is no file of docker login", f.dockerConfig) // its words may be secret
	}
	t, err := s.Target()
	if err != nil {
		return "", err
	}
	for name, a := range file.Auths {
		bare := strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://")
		bare, _, _ = strings.Cut(bare, "/")
		if host, err := oci.ParseHost(bare); err != nil || host != t.Upstream {
			continue
		}
		if a.Auth == "" && a.Username != "" {
			a.Auth = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
		}
		if a.Auth != "" {
			return "Basic " + a.Auth, nil
		}
	}
	return "", fmt.Errorf("%s has no password for %s; one that a credential helper keeps is not read", f.dockerConfig,
		t.Upstream)
}

// await shows the progress of a job until it ends.
func (f *preheatFlags) await(ctx context.Context, c apiclient.Client, id string, stdout io.Writer) error {
	last, failures := "", 0
	for {
		g, err := c.PreheatGate(ctx, id)
		var status *apiclient.StatusError
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &status) && status.Code < 500:
			return asked(c, err)
		default:
			// The supernode may be restarted meanwhile.
			if failures++; failures > 30 {
				return asked(c, err)
			}
		}
		if err == nil {
			if g.State.Ended() {
				return f.result(g, stdout)
			}
			if line := progressLine(g); f.output == "text" && line != last {
				fmt.Fprintln(stdout, line)
				last = line
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(preheatPoll):
		}
	}
}

// progressLine sums up a job that runs.
func progressLine(g preheat.Gate) string {
	line := fmt.Sprintf("%s: %d of %d nodes have it, %s of %s", g.State, g.Has, g.Of, humanize.IBytes(uint64(g.Bytes)),
		humanize.IBytes(uint64(g.Total)))
	if g.Waves > 1 {
		line += fmt.Sprintf(", wave %d of %d", g.Wave, g.Waves)
	}
	if g.LeftSeconds > 0 {
		line += fmt.Sprintf(", about %s left", time.Duration(g.LeftSeconds*float64(time.Second)).Round(time.Second))
	}
	return line
}

// result prints who has it, and ends with the exit code of that.
func (f *preheatFlags) result(g preheat.Gate, stdout io.Writer) error {
	if f.output == "json" {
		if err := printJSON(stdout, g); err != nil {
			return err
		}
	} else if err := printGate(stdout, g); err != nil {
		return err
	}
	code := exitFailed
	switch {
	case g.Ready && (g.State == preheat.Success || !g.State.Ended()):
		return nil
	case g.State == preheat.Cancelled:
		code = exitCancelled
	case g.Has > 0:
		code = exitPartial
	}
	return exitError{code, fmt.Errorf("%d of %d nodes have %s, and %.4g%% are demanded%s", g.Has, g.Of, g.Name, g.Min,
		suffix(g.Error))}
}

func suffix(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func printGate(w io.Writer, g preheat.Gate) error {
	fmt.Fprintf(w, "%s\n", progressLine(g))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tZONE\tWAVE\tHAS IT\tWHY NOT")
	for _, h := range g.Hosts {
		has := "no"
		if h.State == preheat.Success {
			has = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", api.OneLine(h.Host), api.OneLine(cmp.Or(h.Zone, "-")), h.Wave, has,
			api.OneLine(h.Why))
	}
	if g.Omitted > 0 {
		fmt.Fprintf(t, "and %d more\n", g.Omitted)
	}
	return t.Flush()
}

func (f *preheatFlags) printList(list []preheat.Job, stdout io.Writer) error {
	if f.output == "json" {
		return printJSON(stdout, list)
	}
	t := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "JOB\tSTATE\tCREATED\tIMAGE")
	for _, j := range slices.Clip(list) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", j.ID, j.State, j.Created.Format(time.RFC3339), api.OneLine(j.Spec.Name()))
	}
	return t.Flush()
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// asked explains why a supernode did not answer, or what it refused.
func asked(c apiclient.Client, err error) error {
	at := strings.TrimPrefix(c.Base, "http://")
	var status *apiclient.StatusError
	if errors.As(err, &status) {
		var body struct{ Error string }
		if json.Unmarshal([]byte(status.Text), &body) == nil && body.Error != "" {
			return fmt.Errorf("supernode at %s: %s", at, body.Error)
		}
		return fmt.Errorf("supernode at %s: %w", at, err)
	}
	return fmt.Errorf("no supernode answers at %s (%w); is it running, and is this its admin.listen?", at, err)
}
