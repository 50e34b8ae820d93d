"""Assets: weights of other networks that suites and examples need, with their sources and digests.

`evalsvc assets pull NAME` downloads an asset to a folder; evalsvc downloads nothing otherwise. Next to each asset is a
record with the digest that the asset had when it was pulled.
"""

from __future__ import annotations

from evalsvc.assets.catalog import ASSETS, Asset, Record, Source, find_asset, locate_asset, read_record
from evalsvc.assets.pulling import pull

__all__ = ["ASSETS", "Asset", "Record", "Source", "find_asset", "locate_asset", "pull", "read_record"]
