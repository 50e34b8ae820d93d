"""Checkpoints that lie elsewhere: in object stores, on the Hugging Face hub, behind http."""
