"""Golden values for crates/seakeep/src/formats/gguf/dequant.rs.

    python scripts/parity/gguf_dequant.py > crates/seakeep/tests/data/gguf_dequant.json

Random blocks of every quantised type, with scales that are finite, and what the `gguf` package
(llama.cpp's reference in Python) makes of them, as the hexadecimal bytes of little-endian f32.
"""

import json

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

# Where each type keeps its f16 scales (byte offsets within a block).
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
BLOCKS = 2

rng = np.random.default_rng(20261123)
cases = []
for kind, offsets in SCALES.items():
    _, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(BLOCKS, size), dtype=np.uint8)
    for block in blocks:
        for offset in offsets:
            scale = np.float16(rng.normal() * 0.02)
            block[offset : offset + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    values = gguf.quants.dequantize(blocks, kind).astype("<f4")
    cases.append({"type": kind.name, "id": int(kind), "blocks": blocks.tobytes().hex(), "values": values.tobytes().hex()})

numbers = (rng.normal(size=16) * 3).astype(np.float32)
for kind, packed in [
    (T.F32, numbers.astype("<f4").tobytes()),
    (T.F16, numbers.astype("<f2").tobytes()),
    (T.BF16, gguf.quants.quantize(numbers.reshape(1, -1), T.BF16).tobytes()),
]:
    raw = np.frombuffer(packed, np.uint8).reshape(1, -1)
    values = gguf.quants.dequantize(raw, kind).astype("<f4")
    cases.append({"type": kind.name, "id": int(kind), "blocks": packed.hex(), "values": values.tobytes().hex()})

# The package has no dequantiser for these two; the definition is one line each.
doubles = rng.normal(size=16).astype("<f8")
cases.append({"type": "F64", "id": int(T.F64), "blocks": doubles.tobytes().hex(), "values": doubles.astype("<f4").tobytes().hex()})
scale, quants = np.float32(0.0173), rng.integers(-128, 128, size=256).astype(np.int8)
packed = scale.tobytes() + quants.tobytes() + bytes(32)
values = (scale * quants.astype(np.float32)).astype("<f4")
cases.append({"type": "Q8_K", "id": int(T.Q8_K), "blocks": packed.hex(), "values": values.tobytes().hex()})

print(json.dumps({"made_by": "scripts/parity/gguf_dequant.py", "cases": cases}, indent=0))
