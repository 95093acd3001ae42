"""What an explorer page holds, without a browser."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import torch


def blocks_of(path: Path) -> dict[str, Any]:
    found = {}
    for name, text in re.findall(
        r'<script type="text/plain" id="block-([\w-]+)">([\w+/=]*)</script>', path.read_text()
    ):
        raw = gzip.decompress(base64.b64decode(text))
        length = int.from_bytes(raw[:4], "little")
        found[name] = (json.loads(raw[4 : 4 + length]), raw[4 + length :])
    return found


def array_of(block: tuple[Any, bytes], name: str) -> torch.Tensor:
    header, body = block
    kind, offset, size = header["arrays"][name]
    if not size:
        return torch.zeros(0, dtype=getattr(torch, kind))
    return torch.frombuffer(bytearray(body), dtype=getattr(torch, kind), offset=offset, count=size)
