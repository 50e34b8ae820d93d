"""Families of language models: what their configurations say, and how their files name the tensors. Needs no torch.

One file for each family, and one line for each `model_type` in `evalsvc.spec.catalog`. `reading` finds and reads a
configuration, whatever its family.
"""
