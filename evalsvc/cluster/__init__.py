"""Everything that uses Dask: the connection to workers, worker processes and their nannies, devices, certificates."""
