"""Which vocabulary layout a checkpoint was trained with, asked of the checkpoint itself, and when not to say.

    candidates → score each → read markers off the model → exchange special rows → reorder codes → verdict

`checkup.py` is where to begin. Nothing here needs torch until a checkpoint is opened.
"""
