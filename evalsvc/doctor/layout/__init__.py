"""Finding the vocabulary layout that a checkpoint was trained with, by asking the checkpoint itself.

    candidates → score each → read markers off the model → exchange special rows → reorder codes → verdict

Begin with `checkup.py`. Nothing here needs torch until a checkpoint is opened.
"""
