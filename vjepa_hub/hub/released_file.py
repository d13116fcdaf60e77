"""Reader of torch archives that may come from anyone.

A released file holds dictionaries, lists, numbers, texts and dense tensors. This reader knows nothing else: it calls
no function that a file names, and whatever else stands there is refused before memory or time is spent on it. Tensors
are views of the mapped file.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

# The release's own need less than a tenth: one entry for each tensor of the model and of its optimiser
MAX_DESCRIPTION_BYTES = 8 * 2**20

_ZIP_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_DOWNLOAD_AGAIN = "Delete it and download it again"
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Those that torch.save writes
_OPERATIONS = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BUILD, pickle.BINPERSID),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.BINFLOAT, pickle.BINUNICODE, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
)
# What damaged files lead to, found by cutting small ones and changing their bytes
_READING_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError),
)

# The one in Python, whose operations can be chosen
_PythonUnpickler: Any = pickle._Unpickler


class ConversionError(ValueError):
    """A file is not what the conversion needs; the message names the file, the cause and the remedy."""


class _ForeignObjectError(Exception):
    """The file names a function or class that no released file has."""


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _View(NamedTuple):
    """A tensor without its numbers yet, and where these are."""

    tensor: torch.Tensor
    storage: _Storage
    layout: tuple[int, tuple[int, ...], tuple[int, ...]]


def read_released_file(file: Path) -> object:
    """The content of a torch archive, its tensors mapped.

    Args:
        file: As torch.save writes it, a zip archive or of torch before 1.6, little-endian.

    Returns:
        Dictionaries with texts and small integers for keys, lists, tuples, numbers, texts, and tensors.

    Raises:
        ConversionError: It is damaged, or holds what no released file does.
        FileNotFoundError: There is no such file.
    """
    with file.open("rb") as stream:
        beginning = stream.read(64)
        _refuse_web_page(file, beginning)
        try:
            read = _read_archive if beginning.startswith(_ZIP_MAGIC) else _read_old_format
            return read(file, stream)
        except _ForeignObjectError as error:
            raise ConversionError(
                f"{file} holds the Python object {error}. Dense tensors need none, and reading it could run code of "
                "the file, so nothing was read. Do not load it by other means: download the file from its authors"
            ) from error
        except _READING_ERRORS as error:
            cause = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise ConversionError(
                f"{file} is damaged, incomplete or no checkpoint of torch ({cause}). {_DOWNLOAD_AGAIN}"
            ) from error


def _refuse_web_page(file: Path, beginning: bytes) -> None:
    if not beginning:
        raise ConversionError(f"{file} is empty. {_DOWNLOAD_AGAIN}")
    if beginning.lstrip().startswith((b"<", b"{")):
        raise ConversionError(
            f"{file} is no checkpoint: it begins with {beginning[:32]!r}, as a web page or an error message of a "
            f"server does. {_DOWNLOAD_AGAIN}"
        )


class _Description(_PythonUnpickler):
    """Reader of the pickle that describes a file. Of its functions and classes these have the meaning of torch's."""

    dispatch: ClassVar[dict[int, Callable]] = {code[0]: _PythonUnpickler.dispatch[code[0]] for code in _OPERATIONS}

    def __init__(self, stream: io.BytesIO):
        super().__init__(stream)
        self.views: list[_View] = []
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): lambda: OrderedDict(),
            ("torch._utils", "_rebuild_tensor_v2"): self._view,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, requires_grad, hooks: tensor,
        }
        if (module, name) not in known:
            raise _ForeignObjectError(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numel, *view = pid
        storage = _Storage(key, dtype, numel)
        is_whole = kind == "storage" and not any(part is not None for part in view)
        if not (is_whole and isinstance(dtype, torch.dtype) and isinstance(key, str) and _are_counts((numel,))):
            raise ValueError("a storage is described in another way than torch does")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key} is described twice, as {storage.numel} numbers and otherwise")
        return storage

    def _view(
        self, storage: _Storage, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: dict
    ) -> torch.Tensor:
        if not (isinstance(storage, _Storage) and _are_counts((offset, *size, *stride)) and len(size) == len(stride)):
            raise ValueError("a tensor is described in another way than torch does")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.numel:
            raise ValueError(f"a tensor of shape {size} reads beyond its storage of {storage.numel} numbers")
        tensor = torch.empty(0, dtype=storage.dtype)
        self.views.append(_View(tensor, storage, (offset, size, stride)))
        return tensor

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _set_items(self, items: list) -> None:
        # Of other keys the hash can take for ever: tuples of tuples
        wrong = [k for k in items[::2] if not (isinstance(k, str) or (isinstance(k, int) and k.bit_length() < 32))]
        if wrong or not isinstance(self.stack[-1], dict):
            raise ValueError(f"a dictionary has a key of type {type(wrong[0]).__name__}" if wrong else "no dictionary")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        """Leave out the attributes of a dictionary: versions of a model's modules."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):
            raise ValueError(f"attributes are given to a {type(self.stack[-1]).__name__}")

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.BUILD[0]] = load_build


def _are_counts(values: tuple) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _read_archive(file: Path, stream: io.BufferedReader) -> object:
    with zipfile.ZipFile(stream) as archive:
        records = archive.infolist()
        root = records[0].filename.partition("/")[0]
        # Readers of zip archives differ in which of two records they take, and whether capital letters matter
        names = {record.filename.lower() for record in records}
        if len(names) < len(records):
            raise ValueError("two of its records have one name")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed, which torch's are not")
        if sum(record.file_size for record in records) > file.stat().st_size:
            raise ValueError("its records are larger than the file")
        if archive.getinfo(f"{root}/data.pkl").file_size > MAX_DESCRIPTION_BYTES:
            raise ValueError(f"its description has more than {MAX_DESCRIPTION_BYTES} bytes")
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        description = _Description(io.BytesIO(archive.read(f"{root}/data.pkl")))
        content = description.load()
        places = {}
        for key, storage in description.storages.items():
            record = archive.getinfo(f"{root}/data/{key}")
            if record.file_size != storage.num_bytes:
                raise ValueError(
                    f"its record {record.filename} has {record.file_size} bytes, but its tensors need "
                    f"{storage.num_bytes}"
                )
            places[key] = _find_content(stream, record)
        if damaged := archive.testzip():  # nobody else does: a mapped file with a wrong byte would load in silence
            raise ValueError(f"the checksum of its record '{damaged}' is wrong")
    _fill_views(file, description, places)
    return content


def _find_content(stream: io.BufferedReader, record: zipfile.ZipInfo) -> int:
    """Place of a record's bytes: behind its own header, whose name and extra field end it."""
    stream.seek(record.header_offset + 26)
    return record.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))


def _read_old_format(file: Path, stream: io.BufferedReader) -> object:
    """Pickles in a row (a number, a version, the machine, the description, the storages' order), then the storages."""
    stream.seek(0)
    pickles = io.BytesIO(stream.read(MAX_DESCRIPTION_BYTES))
    magic, _, machine = (_Description(pickles).load() for _ in range(3))
    if magic != _OLD_MAGIC or not machine["little_endian"]:
        raise ValueError("it does not begin as torch begins a file")
    description = _Description(pickles)
    content, order = description.load(), _Description(pickles).load()
    if not all(isinstance(key, str) for key in order):
        raise ValueError("the order of its storages is no list of names")
    place, places = pickles.tell(), {}
    for key in order:
        storage = description.storages[key]
        stream.seek(place)
        if struct.unpack("<q", stream.read(8)) != (storage.numel,):
            raise ValueError(f"its storage {key} is not as long as its tensors need")
        places[key] = place + 8
        place += 8 + storage.num_bytes
    _fill_views(file, description, places)
    return content


def _fill_views(file: Path, description: _Description, places: dict[str, int]) -> None:
    """Point the tensors to their numbers in the mapped file."""
    num_bytes = file.stat().st_size
    mapped = torch.UntypedStorage.from_file(str(file), False, num_bytes)
    for tensor, storage, layout in description.views:
        begin = places[storage.key]
        if begin + storage.num_bytes > num_bytes:
            raise ValueError(f"it ends within its storage {storage.key}")
        tensor.set_(mapped[begin : begin + storage.num_bytes], *layout)
