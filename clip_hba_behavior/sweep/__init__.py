"""Many forks of one baseline: planned, run on this machine or on a cluster, aggregated into one table."""
