"""A file that the paper's authors released, as downloaded, in; a model, pairs, text or runs out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.signals import quiet_interrupt

if __name__ == "__main__":
    quiet_interrupt()  # Ctrl-C during the imports below

import argparse
import shutil
from itertools import islice

from formats.atomic import atomic_directory, atomic_write
from formats.downloads import files_of, find_download
from formats.lines import RejectedLines, read_lines
from formats.pairs import write_pairs
from formats.released_pairs import read_released_pairs
from formats.trec import read_qrels_with_note, read_run
from runtime.errors import InputError
from runtime.flags import Parser
from runtime.script import refuse_existing, report, run_script

CONFIGS = {"config.json", "bert_config.json"}
WEIGHTS = {"pytorch_model.bin", "model.safetensors"}
TO_A_DIRECTORY = ("model", "runs")


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="""Takes a file that the paper's authors released, as it was downloaded.

  python data_preparation/take_released.py --kind train_pairs --source released/train_examples.zip \\
      --output data/released/train_pairs.tsv

In:  a file, a folder, or a zip or tar archive; what is looked for can be in a folder of it, or in an archive in it.
     model: the only directory with a config and weights. text: the only file. runs: all files in the layout of TREC.
     train_pairs: the only file; index, query_text, passage_text, label_id. test_pairs: the only file; example_id
     (query_id#passage_id), query_text, passage_text. Both separated by tabs or commas, with or without a header.
Out: a model directory; a file of text; a directory with NAME.run for each run; pairs, tab-separated.
All of it was tried on synthetic files in this layout, not on the released files.""",
    )
    parser.add_argument(
        "--kind", required=True, choices=["model", "train_pairs", "test_pairs", "text", "runs"], help="what to take"
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="the download; its suffix, such as .zip, can be left out"
    )
    parser.add_argument("--output", type=Path, required=True, help="the file to write; of model and runs a directory")
    parser.add_argument("--qrels", type=Path, help="of runs: take only those that share a query with these judgments")
    parser.add_argument(
        "--skip_malformed",
        action="store_true",
        help="of pairs: skip malformed lines and list them in OUTPUT.rejected.tsv; default: the first one is an error",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    return parser.parse(check_args)


def check_args(args: argparse.Namespace) -> None:
    """Completes `--source`. Raises InputError for flags that have no use, and for an output that exists."""
    if args.qrels and args.kind != "runs":
        raise InputError(f"--qrels: has no use with --kind {args.kind}; leave it out")
    if args.skip_malformed and not args.kind.endswith("_pairs"):
        raise InputError(f"--skip_malformed: has no use with --kind {args.kind}; leave it out")
    try:
        args.source = find_download(args.source)
    except InputError as error:
        raise InputError(f"--source: {error}") from None
    if args.kind not in TO_A_DIRECTORY:
        inputs = [args.source, *args.source.rglob("*")]  # of a file, the file alone
        refuse_existing(args.output, "--output", args.overwrite, inputs, beside=[".log", ".rejected.tsv"])
    elif args.overwrite:
        raise InputError(f"--overwrite: has no use with --kind {args.kind}; remove the directory {args.output}")
    elif args.output.exists():
        raise InputError(f"--output: {args.output} exists already; remove it, or name another directory")
    elif not args.output.parent.is_dir():
        raise InputError(f"--output: the directory {args.output.parent} does not exist; make it first")


def only_file(files: list[Path], source: Path) -> Path:
    """Raises InputError unless there is one file."""
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "none"
        raise InputError(f"--source: {source} has {len(files)} files ({names}), one is needed; name that file")
    return files[0]


def take_model(files: list[Path], source: Path, output: Path) -> str:
    """Copies the files of the only model directory. Returns what was copied."""
    folders = {file.parent for file in files if file.name in CONFIGS}
    folders &= {file.parent for file in files if file.name in WEIGHTS}
    if len(folders) != 1:
        raise InputError(
            f"--source: {source} has {len(folders)} directories with a config ({' or '.join(sorted(CONFIGS))}) and "
            f"weights ({' or '.join(sorted(WEIGHTS))}), one is needed; name that directory"
        )
    of_model = [file for file in files if file.parent in folders]
    with atomic_directory(output, next(file.name for file in of_model if file.name in CONFIGS)) as partial:
        for file in of_model:
            shutil.copyfile(file, partial / file.name)
    return ", ".join(file.name for file in of_model)


def take_pairs(path: Path, labelled: bool, output: Path, skip_malformed: bool) -> str:
    """Writes the pairs of a file. Returns how many there are."""
    with RejectedLines(output) as rejected:
        written = write_pairs(output, read_released_pairs(path, labelled, rejected if skip_malformed else None))
    skipped = f", skipped {rejected.count} lines (listed in {rejected.path})" if rejected.count else ""
    return f"{written} pairs{skipped}"


def is_run(path: Path) -> bool:
    """Whether the first line has the columns of a run, `query_id Q0 doc_id rank score run_name`."""
    try:
        fields = next(islice(read_lines(path), 1))[1].split()
    except InputError:  # of binary files, and of empty ones
        return False
    return len(fields) == 6 and fields[3].isdigit()


def take_runs(files: list[Path], source: Path, output: Path, qrels_file: Path | None) -> str:
    """Copies the runs as NAME.run. Returns their names, and how many files were left out."""
    runs = [file for file in files if is_run(file)]
    if not runs:
        raise InputError(f"--source: {source} has no run; a line of a run is: query_id Q0 doc_id rank score run_name")
    others = len(files) - len(runs)
    if qrels_file:
        judged = read_qrels_with_note(qrels_file).keys()
        runs = [file for file in runs if not judged.isdisjoint(read_run(file))]
        if not runs:
            raise InputError(f"--qrels: no run of {source} shares a query with {qrels_file}; name other judgments")
    names: dict[str, Path] = {}
    for file in runs:
        stem = file.name.removesuffix(".gz").removesuffix(".txt").removesuffix(".run")
        name = f"{stem}.run" if f"{stem}.run" not in names else f"{file.parent.name}.{stem}.run"
        if name in names:
            raise InputError(f"--source: {source} has two runs of the name {name}; rename one of them")
        names[name] = file
    with atomic_directory(output, next(iter(names))) as partial:
        for name, file in names.items():
            with atomic_write(partial / name) as target:
                target.writelines(f"{line}\n" for _, line in read_lines(file))
    left_out = len(files) - len(runs) - others
    return f"{', '.join(names)}; left out {left_out} runs of other queries and {others} files that are no runs"


def main(args: argparse.Namespace) -> None:
    with files_of(args.source, args.output.parent) as files:
        if args.kind == "model":
            what = take_model(files, args.source, args.output)
        elif args.kind == "runs":
            what = take_runs(files, args.source, args.output, args.qrels)
        else:
            file = only_file(files, args.source)
            if args.kind == "text":
                with atomic_write(args.output) as target:
                    target.writelines(f"{line}\n" for _, line in read_lines(file, web_text=True))
                what = "text"
            else:
                what = take_pairs(file, args.kind == "train_pairs", args.output, args.skip_malformed)
    report(f"wrote {args.output} from {args.source}: {what}", args.output)


if __name__ == "__main__":
    run_script(main, parse_args())
