"""Arrays by name in a .npz file, as numpy.savez and numpy.savez_compressed write it; nothing is unpickled."""

import io
import math
import zipfile

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError

MOST = 4 << 30
"""Bytes of all arrays together; a packed file may claim a thousand times its size."""
SUFFIX = ".npy"


def fits(data: bytes) -> bool:
    """A zip file with arrays in it; PyTorch's files are zip files too."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return any(name.endswith(SUFFIX) for name in file.namelist())
    except Exception:  # zipfile raises several kinds for what is broken
        return False


def read(data: bytes, where: str) -> dict[str, Tensor]:
    """Every array as a tensor; UserError where the file is damaged or an array holds anything but numbers."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [info for info in file.infolist() if info.filename.endswith(SUFFIX)]
            if sum(info.file_size for info in members) > min(MOST, 1040 * len(data)):  # deflate packs 1032 to 1
                raise ValueError("it claims more than it can hold")
            return {info.filename.removesuffix(SUFFIX): _array(file.read(info), info) for info in members}
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for what is broken
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is not a readable .npz file of numbers ({said}); make or copy it again") from None


def _array(data: bytes, info: zipfile.ZipInfo) -> Tensor:
    """The numbers behind a header whose shape accounts for every byte."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = header(stream, max_header_size=1000)
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise ValueError(f"{info.filename!r} holds {dtype}")
    at = stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - at:
        raise ValueError(f"{info.filename!r} is not of its shape")
    array = np.frombuffer(data, dtype, offset=at).reshape(shape, order="F" if columns_first else "C")
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))
