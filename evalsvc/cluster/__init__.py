"""All that knows Dask: the way to the workers, a worker process and its nanny, devices, certificates."""
