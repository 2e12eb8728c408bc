package access

// SetMost sets how many lookups of one address run at once.
func (o *Owner) SetMost(n int) { o.most = n }
