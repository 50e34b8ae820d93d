"""Families of language models: what their configurations say, and how their files name the tensors. Needs no torch.

`evalsvc.spec.catalog` has one line for each `model_type`. `reading` finds and reads the configurations of all families.
"""
