"""Numbers for the page: named arrays and plain values, compressed, as base64 text.

A block is gzip over: length of the header (4 bytes, little endian), the header (JSON, padded so that both fill a
multiple of 8), then the arrays, each from a multiple of 8. ``assets/data.js`` is the reader.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

ALIGNMENT = 8


def pack(plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """A block; ``plain`` must be fit for JSON, arrays of a dtype that JavaScript has as a typed array."""
    directory, body = {}, bytearray()
    for name, array in arrays.items():
        # JavaScript's typed arrays are little endian on every machine that runs a browser.
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        directory[name] = [array.dtype.name, len(body), array.size]
        body += data + bytes(-len(data) % ALIGNMENT)
    # ASCII throughout: lone surrogates in a token have no UTF-8.
    header = json.dumps({"plain": plain, "arrays": directory}, ensure_ascii=True, allow_nan=False).encode("ascii")
    header += b" " * (-(len(header) + 4) % ALIGNMENT)
    raw = len(header).to_bytes(4, "little") + header + bytes(body)
    return base64.b64encode(gzip.compress(raw, compresslevel=9, mtime=0)).decode("ascii")
