"""The coordinator, which gives shards to the cluster and stores what comes back, and what helps it."""
