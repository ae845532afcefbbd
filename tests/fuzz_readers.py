"""Fuzzes the readers of features and pairs, which read files from strangers. Needs atheris:

  pip install atheris
  python tests/fuzz_readers.py -max_total_time=600 [CORPUS_DIRECTORY]

The flags are those of libFuzzer (`-help=1` lists them). It stops at the first input that makes a reader raise an error
other than InputError, or that changes when it is written and read again, and saves the input as `crash-...`.
`test_fuzz_readers.py` runs the same functions without atheris.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = Path(tempfile.gettempdir()) / f"fuzz_readers.{os.getpid()}"


def check_features(content: bytes, directory: Path) -> bool:
    """Whether `content` is accepted as features. Raises AssertionError if it changes when written and read again."""
    from formats.features import Example, Features, read_blocks, read_header, write_features
    from runtime.errors import InputError

    def read(path: Path) -> tuple[object, list[Example]]:
        return read_header(path), [
            Example(
                example_id,
                tuple(block.input_ids[block.offsets[i] : block.offsets[i + 1]].tolist()),
                int(block.first_segment_lengths[i]),
                int(block.labels[i]),
            )
            for block in read_blocks(path)
            for i, example_id in enumerate(block.example_ids)
        ]

    path, again = directory / "features", directory / "again"
    path.write_bytes(content)
    try:
        header, examples = read(path)
    except InputError as error:
        assert str(error).startswith(str(path)), error
        return False
    write_features(again, header, examples)
    assert read(again) == (header, examples)
    features = Features(path)
    assert len(features) == len(examples)
    for i, example in enumerate(examples):
        assert tuple(features.batch([i])["input_ids"][0].tolist()) == example.input_ids
    return True


def check_pairs(content: bytes, directory: Path) -> bool:
    """Whether `content` is accepted as pairs, with or without labels. Raises AssertionError like `check_features`."""
    from formats.pairs import read_pairs, write_pairs
    from runtime.errors import InputError

    path, again = directory / "pairs", directory / "again"
    path.write_bytes(content)
    accepted = False
    for labelled in (False, True):
        try:
            pairs = list(read_pairs(path, labelled))
        except InputError as error:
            assert str(error).startswith((f"{path} line ", f"{path} is empty")), error
            continue
        accepted = True
        assert len(pairs) == content.count(b"\n") + (not content.endswith(b"\n"))
        # after the first byte-order mark, a second one is part of the first id; written again, it would be the first
        pairs[0] = pairs[0]._replace(example_id=pairs[0].example_id.lstrip("\ufeff") or "e")
        write_pairs(again, pairs)
        expected = [
            pair._replace(query=" ".join(pair.query.split()), passage=" ".join(pair.passage.split())) for pair in pairs
        ]
        if labelled or "#" in pairs[0].example_id[1:]:
            assert list(read_pairs(again, labelled)) == expected
    return accepted


def seeds() -> dict[str, bytes]:
    """A valid file of each kind, from which fuzzing starts."""
    from formats.features import Example, FeaturesHeader, write_features

    header = FeaturesHeader(9, 300, True, "train", "")
    path = DIRECTORY / "seed"
    write_features(path, header, [Example("q#d_1", [2, 7, 3, 9, 3], 3, 1), Example("é", [2, 299, 3], 2, -1)])
    pairs = "q#d_0\tthe cat\tsat\nq#d_1\t猫\tdog [SEP]\r\n"
    return {"features": path.read_bytes(), "pairs": pairs.encode(), "labelled": b"a\tthe\tcat\t1\nb\tdog\tran\t0\n"}


def main() -> None:
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["formats"]):
        import formats.features
        import formats.pairs  # noqa: F401

    DIRECTORY.mkdir()
    corpus = DIRECTORY / "corpus"
    corpus.mkdir()
    for name, content in seeds().items():
        (corpus / name).write_bytes(content)

    def one_input(content: bytes) -> None:
        check_features(content, DIRECTORY)
        check_pairs(content, DIRECTORY)

    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    atheris.Setup([*sys.argv, *([] if given else [str(corpus)])], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
