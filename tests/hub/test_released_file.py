import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vjepa_hub.hub import released_file
from vjepa_hub.hub.released_file import ConversionError, read_released_file

# A pickle of half a kilobyte whose one key is a tuple of tuples of tuples: its hash is the work of 2 ** 49 steps
TUPLE_BOMB = b"".join(
    (
        *(pickle.PROTO, b"\2", pickle.EMPTY_DICT, pickle.EMPTY_TUPLE),
        *(pickle.BINPUT, b"\0", pickle.BINGET, b"\0", pickle.TUPLE2) * 49,
        *(pickle.BININT1, b"\1", pickle.SETITEM, pickle.STOP),
    )
)
# bytearray(10 ** 18), which torch.load(weights_only=True) makes
BYTEARRAY_BOMB = b"".join(
    (
        *(pickle.PROTO, b"\2", pickle.GLOBAL, b"__builtin__\nbytearray\n"),
        *(pickle.LONG1, b"\x08", (10**18).to_bytes(8, "little"), pickle.TUPLE1, pickle.REDUCE, pickle.STOP),
    )
)
# Magic number, version and machine of torch before 1.6
OLD_BEGINNING = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "file.pth.tar"


def _change_records(file: Path, change: Callable[[dict[str, bytes]], list[tuple[str, bytes]]]) -> None:
    """Write an archive anew with other records."""
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in change(records):
            archive.writestr(name, content)


def _assert_refused(file: Path, *words: str) -> None:
    with pytest.raises(ConversionError) as caught:
        read_released_file(file)
    for word in (str(file), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("is_archive", [True, False])
def test_content_equals_what_torch_reads(file, is_archive):
    numbers = torch.randn(6, 4)
    content = {
        "encoder": torch.nn.Linear(3, 2).state_dict(),
        "views": [numbers, numbers[2:, 1:3], numbers.T, torch.zeros(0, 3), torch.ones(1).expand(5)],
        "kinds": {str(dtype): torch.ones(3, dtype=dtype) for dtype in DTYPES},
        "opt": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"betas": (0.9, 0.999), "foreach": None}]},
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "epoch": 300,
        "large": 2**40,
        "scaler": None,
        "is_last": True,
    }
    torch.save(content, file, _use_new_zipfile_serialization=is_archive)
    found, expected = read_released_file(file), torch.load(file, weights_only=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found["views"][1].stride() == expected["views"][1].stride()
    assert found["views"][0].untyped_storage().data_ptr() + 4 * 9 == found["views"][1].data_ptr()


def test_record_that_is_shorter_than_its_tensor_is_refused(file):
    torch.save({"a": torch.ones(12), "b": torch.ones(12)}, file)
    _change_records(file, lambda found: [(n, c[:24] if n.endswith("data/1") else c) for n, c in found.items()])
    _assert_refused(file, "data/1 has 24 bytes", "need 48")


@pytest.mark.parametrize("other_name", [str.lower, str.upper])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(file, other_name):
    torch.save({"a": torch.ones(12)}, file)
    _change_records(
        file, lambda found: [*found.items(), *((other_name(n), bytes(48)) for n in found if "data/0" in n)]
    )
    _assert_refused(file, "one name")


@pytest.mark.parametrize(("bomb", "words"), [(TUPLE_BOMB, "key of type tuple"), (BYTEARRAY_BOMB, "bytearray")])
def test_description_that_would_take_all_memory_or_time_is_refused(file, bomb, words):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
    _assert_refused(file, words)
    file.write_bytes(OLD_BEGINNING + bomb)
    _assert_refused(file, words)


def test_long_description_is_not_read(file, monkeypatch):
    monkeypatch.setattr(released_file, "MAX_DESCRIPTION_BYTES", 100)
    torch.save({"a": torch.ones(12)}, file)
    _assert_refused(file, "more than 100 bytes")


def test_compressed_records_are_refused(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    _assert_refused(file, "compressed")


@pytest.mark.parametrize("size", [(13,), (4, 4), (2**40,)])
def test_tensor_that_reads_beyond_its_storage_is_refused(file, size, monkeypatch):
    tensor = torch.ones(12)
    monkeypatch.setattr(torch.Tensor, "size", lambda *dim: torch.Size(size))
    monkeypatch.setattr(torch.Tensor, "stride", lambda *dim: (1,) * len(size) if len(size) == 1 else (4, 1))
    torch.save({"a": tensor}, file)
    monkeypatch.undo()
    _assert_refused(file, f"shape {size} reads beyond its storage of 12")


def test_storage_of_the_old_format_that_ends_with_the_file_is_refused(file):
    torch.save({"a": torch.ones(12)}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:-4])
    _assert_refused(file, "ends within its storage")


@pytest.mark.filterwarnings("ignore:.*[Ss]parse", "ignore:.*nested")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.eye(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "sparse rows", "meta", "nested"],
)
def test_tensors_that_are_not_dense_are_refused(file, make):
    torch.save({"a": make()}, file)
    _assert_refused(file, "torch._utils._rebuild_")
