"""How training scales with the data: Parquet files of 1,000, 100,000 and 1,000,000 pairs, each trained on for three steps with a
tiny model. Prints, cold (nothing in the cache) and warm, the seconds until the first step is done, the peak of memory, and the size of
the tokens on disk.

    python scripts/bench/data_scale.py target/release/seakeep [--rows 1000 100000 1000000] [--work DIR]

Needs pyarrow.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
import time

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not".split()


def write_pairs(path: pathlib.Path, rows: int) -> None:
    """Pairs of about 1,200 characters, in row groups of 10,000."""
    rng = random.Random(0)
    text = lambda words: " ".join(rng.choices(WORDS, k=words))
    pool = [text(rng.randint(20, 120)) for _ in range(2000)]
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 10_000):
            n = min(10_000, rows - start)
            column = lambda tag: [f"{tag}{start + i} {rng.choice(pool)}" for i in range(n)]
            prompts = [p + "\n" for p in column("p")]
            writer.write_table(pa.table([prompts, column(""), column("no ")], schema=schema))


def train(program: str, model: pathlib.Path, data: pathlib.Path, work: pathlib.Path) -> dict:
    """Three steps: when the first is logged, and the peak that /proc tells."""
    out = work / "out"
    command = [program, "train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", out, "--overwrite_output_dir", "true"]
    command += ["--max_steps", "3", "--per_device_train_batch_size", "4", "--save_strategy", "no", "--report_to", "none", "--max_length", "none"]
    env = os.environ | {"SEAKEEP_CACHE": str(work / "cache")}
    start = time.time()
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    metrics = out / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    found = {}
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            found["peak_mb"] = max(found.get("peak_mb", 0), *(int(l.split()[1]) // 1024 for l in status.splitlines() if l.startswith("VmHWM")))
        except (OSError, TypeError, ValueError):
            pass
        if "first_step_s" not in found and metrics.exists() and metrics.stat().st_size:
            found["first_step_s"] = round(time.time() - start, 2)
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(process.stderr.read())
    found.setdefault("first_step_s", round(time.time() - start, 2))
    found["told"] = process.stdout.read().strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    work = arguments.work or pathlib.Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    (work / "texts.txt").write_text("\n".join(" ".join(random.Random(i).choices(WORDS, k=50)) for i in range(200)))
    config = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "max_position_embeddings": 4096}
    (work / "config.json").write_text(json.dumps(config))
    model = work / "model"
    if not model.exists():
        subprocess.run([arguments.program, "init", "--config_json", work / "config.json", "--train_tokenizer", "300", "--dataset_name",
                        work / "texts.txt", "--output_dir", model], check=True, stdout=subprocess.DEVNULL)
    for rows in arguments.rows:
        data = work / f"pairs-{rows}.parquet"
        if not data.exists():
            write_pairs(data, rows)
        shutil.rmtree(work / "cache", ignore_errors=True)
        for state in ("cold", "warm", "warm"):
            found = train(arguments.program, model, data, work)
            tokens = sum(file.stat().st_size for file in (work / "cache").glob("tokens-*")) // 2**20
            print(json.dumps({"rows": rows, "cache": state, **found, "tokens_on_disk_mb": tokens}), flush=True)


if __name__ == "__main__":
    main()
