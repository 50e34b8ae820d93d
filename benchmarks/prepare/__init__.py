"""Training data: pairs of captions and images become sequences of ids in the shards that open_lm's loader reads.

Read `preparation.py` first: it has the two stages in order.
"""
