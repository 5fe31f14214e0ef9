"""The Parquet files of crates/seakeep/tests/data, as pyarrow (and so `datasets`) writes them.

    python scripts/parity/parquet.py crates/seakeep/tests/data
"""

import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

out = pathlib.Path(sys.argv[1])
plain = [
    {"prompt": "Say héllo.", "chosen": "héllo", "rejected": "no", "score": 0.5},
    {"prompt": "Again.", "chosen": "hello again", "rejected": "never", "score": None},
]
pq.write_table(pa.Table.from_pylist(plain), out / "standard.parquet", compression="zstd")
turn = lambda role, text, **more: {"role": role, "content": text, **more}
chat = [
    {"prompt": [turn("user", "hi")], "chosen": [turn("assistant", "hello", name=None)], "rejected": [turn("assistant", "go")]},
    {"prompt": [turn("system", "be"), turn("user", "ho")], "chosen": [turn("assistant", "x", name="bo")], "rejected": [turn("assistant", "y")]},
]
pq.write_table(pa.Table.from_pylist(chat), out / "chat.parquet", compression="snappy")
