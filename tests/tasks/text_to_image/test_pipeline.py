"""What follows sampling, without the tasks around it."""

import pytest
import torch
from recorded_cuda import RecordedStream, recorded_cuda

from evalsvc.errors import InvalidData
from evalsvc.tasks.text_to_image.pipeline import Background


def test_the_background_has_one_stream_on_the_device_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread starts on the first GPU, and a stream made for every shard takes 32 MiB each time."""
    second = torch.device("cuda", 1)
    found: list[tuple[torch.device, RecordedStream | None]] = []
    with recorded_cuda(monkeypatch) as cuda:
        for _ in range(2):
            with Background(second, overlap=True) as background:
                background.submit(lambda: found.append((cuda.current.device, cuda.current.stream)))
    assert found == [(second, cuda.streams[0])] * 2
    assert len(cuda.streams) == 1


def test_what_fails_in_the_background_is_raised() -> None:
    def fail() -> None:
        raise InvalidData("a.png is no image")

    with (
        pytest.raises(InvalidData, match=r"a\.png"),
        Background(torch.device("cpu"), overlap=True) as background,
    ):
        background.submit(fail)
