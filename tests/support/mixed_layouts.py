"""Layouts with image and special rows inside the block of text."""

from evalsvc.spec.layout import ImageBlock, TextBlock, VocabularyLayout


def mixed_layout(rows: int, text: range, image: range, **special: int) -> VocabularyLayout:
    """Return a resolved layout; the blocks are not checked against each other."""
    return VocabularyLayout.model_construct(
        rows=rows,
        text=TextBlock(offset=text.start, size=len(text)),
        image=ImageBlock(offset=image.start, size=len(image)),
        special=special,
        template=("doc", "TEXT", "IMAGE"),
    )
