"""Running a program in a process of its own, and what it used: time, peak memory, what it said.

Only the standard library: this side runs before there is a virtual environment.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Unavailable(Exception):
    """The program says that it does not do what a case asks for."""


class Failed(Exception):
    """A case began and did not end well."""


@dataclass
class Finished:
    """A child process that exited with 0."""

    seconds: float
    """Wall clock of the whole process."""
    peak_bytes: int
    """Largest resident set, files that it maps included."""
    stdout: str
    stderr: str


# ---------------------------------------------------------------------------------------------
# One process
# ---------------------------------------------------------------------------------------------


def available_bytes():
    """Memory that the machine can still give, as Linux sees it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise Failed("/proc/meminfo has no MemAvailable: this needs Linux")


def finished(words, environment, most_bytes=None):
    """Runs a program to its end. `most_bytes` of its own memory (maps of files not counted) are the most it gets; without
    it nine tenths of what is free, so that a benchmark cannot take the machine down."""
    limit = int(min(0.9 * available_bytes(), most_bytes or sys.maxsize))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        child = subprocess.Popen(
            [str(word) for word in words],
            stdout=out,
            stderr=err,
            env={**os.environ, **environment},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
        try:
            # Not `wait`: this one says what this child alone has used.
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begun
        out.seek(0), err.seek(0)
        said, told = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    if child.returncode != 0:
        raise ended(words, child.returncode, told, limit)
    return Finished(seconds, usage.ru_maxrss * 1024, said, told)


def ended(words, code, told, limit):
    """What an exit code other than 0 means."""
    lines = [line for line in told.strip().splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "memory" in line] or lines or [f"exit code {code}"]
    if code == 2 and Path(words[0]).name.startswith("seakeep"):
        return Unavailable(errors[0][:100])
    if code < 0 and ("memory allocation" in told or code == -9):
        return Failed(f"needs more than {limit / 1e9:.1f} GB")
    return Failed(f"{Path(words[0]).name} exit code {code}: {errors[-1][:200]}")


# ---------------------------------------------------------------------------------------------
# Seakeep and its rivals
# ---------------------------------------------------------------------------------------------


class Bench:
    """Where everything is, and how both sides are run."""

    def __init__(self, seakeep, python, folder, threads):
        self.seakeep = seakeep
        self.python = python
        self.folder = folder
        self.threads = threads
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, name):
        """A file or folder of the benchmark's own."""
        return self.folder / name

    def program(self, *words, most_bytes=None):
        """Runs Seakeep."""
        words = [self.seakeep, *words]
        return finished(words, {"RAYON_NUM_THREADS": str(self.threads)}, most_bytes)

    def rival(self, command, **settings):
        """Runs `rivals.py COMMAND` in the virtual environment: (what it found, the process)."""
        with tempfile.TemporaryDirectory(prefix="rival-", dir=self.folder) as scratch:
            environment = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
            environment |= {
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_CACHE": scratch,
                "TOKENIZERS_PARALLELISM": "true",
                "TQDM_DISABLE": "1",
            }
            settings = {**settings, "folder": str(self.folder), "scratch": scratch, "threads": self.threads}
            done = finished([self.python, HERE / "rivals.py", command, json.dumps(settings)], environment)
        results = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not results:
            raise Failed(f"rivals.py {command} printed no result: {done.stderr[-300:]}")
        return json.loads(results[-1]), done

    def train(self, *flags, references=None, most_bytes=None):
        """`seakeep train` with an output directory and, unless one is given, a reference cache of its own; what it took."""
        with tempfile.TemporaryDirectory(prefix="seakeep-", dir=self.folder) as scratch:
            out = Path(scratch) / "out"
            done = self.program(
                "train", "--output_dir", out, "--reference_cache_dir", references or Path(scratch) / "references",
                "--shuffle_dataset", "false", "--save_strategy", "no", "--report_to", "none",
                "--lr_scheduler_type", "linear", *flags, most_bytes=most_bytes,
            )
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        logged = [line for line in lines if "loss" in line]
        return {
            "reference_seconds": told_seconds(done.stderr, "reference log-probabilities"),
            "train_seconds": told_seconds(done.stderr, "training"),
            "process_seconds": done.seconds,
            "peak_bytes": done.peak_bytes,
            "num_tokens": logged[-1]["num_tokens"],
            "losses": [line["loss"] for line in logged],
        }


def told_seconds(stderr, work):
    """Seconds of a piece of work by the last of its progress lines, `training: 4/4 (12.3 s)`."""
    pattern = rf"^{re.escape(work)}: (\d+)/(\d+) \(([0-9.]+) s\)"
    found = re.findall(pattern, stderr, re.MULTILINE)
    if not found:
        raise Failed(f"`{work}` told no time")
    done, total, seconds = found[-1]
    if done != total:
        raise Failed(f"`{work}` ended at {done} of {total}")
    return float(seconds)


# ---------------------------------------------------------------------------------------------
# The virtual environment
# ---------------------------------------------------------------------------------------------

PACKAGES = (
    "torch==2.15.0",
    "transformers==5.23.0",
    "trl==1.16.0",
    "peft==0.21.2",
    "datasets==5.2.0",
    "gguf==0.19.0",
    "safetensors==0.8.0",
)
"""The rivals. PyPI's torch for Linux brings CUDA libraries along, without which it cannot be imported: 3 GB to download, 6 on
disk. An index of CPU builds in PIP_EXTRA_INDEX_URL makes it small."""


def ensure_venv(folder):
    """The environment's python, made first if it is not there or is for other packages."""
    python, mark = folder / "bin/python", folder / "seakeep-bench-packages"
    wanted = "\n".join(PACKAGES)
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"making {folder} (torch, transformers, trl; some minutes) ...", file=sys.stderr, flush=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PACKAGES], check=True)
    mark.write_text(wanted)
    return python
