"""The coordinator, which dispatches shards to the cluster and stores their results, and its helpers."""
