import gzip
import io
import json
import tarfile
from itertools import pairwise

import pytest
from prepare.shards import ShardFile, equal_parts, gzipped, manifest


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 8_193])
@pytest.mark.parametrize("most", [1, 4, 8, 8_192])
def test_shards_are_few_and_about_equal(count: int, most: int) -> None:
    starts = equal_parts(count, most)
    sizes = [stop - start for start, stop in pairwise(starts)]
    assert (starts[0], starts[-1], sum(sizes)) == (0, count, count)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // most)


def test_gzip_members_are_read_by_others_and_have_no_time() -> None:
    content = json.dumps([66_822] * 1_153).encode()
    packed = gzipped(content)
    assert gzip.decompress(packed) == content
    assert packed[4:8] == bytes(4)
    assert packed == gzipped(content)
    assert len(packed) < 100


def test_the_manifest_is_open_lms() -> None:
    """open_lm drops what follows the last line break."""
    shards = [ShardFile(f"0000000{number}", 5, 10, "0" * 64) for number in (1, 2)]
    lines = manifest(shards).decode().split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [
        {"shard": "00000001", "num_sequences": 5},
        {"shard": "00000002", "num_sequences": 5},
    ]


def test_tars_are_plain(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No extended headers, no times, no owners: `tar tf | wc -l` is the number of sequences."""
    from training_pairs import prepared, write_folder

    folder = tmp_path_factory.mktemp("plain")
    prepared(write_folder(folder / "images", 3), folder / "out")
    content = (folder / "out" / "00000001.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        members = tar.getmembers()
    assert len(members) == 3
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    assert {content[member.offset + 257 : member.offset + 263] for member in members} == {b"ustar\0"}
    assert all(member.offset_data == member.offset + 512 for member in members)
    assert all(member.name.count(".") == 2 and len(member.name) == 40 for member in members)
