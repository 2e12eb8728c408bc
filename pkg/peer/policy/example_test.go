package policy_test

import (
	"fmt"
	"time"

	"github.com/darter-io/darter/pkg/peer/policy"
)

// A reader opens a task of which nothing is known yet. The owner replies that this host is the seed.
func Example() {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := policy.New(policy.Config{Neighbours: 16, ProgressInterval: time.Second, Linger: 10 * time.Second,
		Origin: true})
	v := policy.View{Interest: policy.Ranges, Phase: policy.Unknown, Ranges: 1, LastUse: now,
		Rank: func() int { return 0 }}

	fmt.Println("origin:", p.Origin(now, v))
	if a, ok := p.Announce(now, v); ok {
		fmt.Println(a)
	}

	now = now.Add(5 * time.Millisecond)
	p.Replied()
	p.Assigned(now, v, true, false, false)
	fmt.Println("origin:", p.Origin(now, v))
	// Output:
	// origin: leave
	// announce started need=10 spec
	// origin: ask
}
