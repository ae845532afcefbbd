"""Features that were made from other pairs or with other settings are made again, whatever their time stamps say."""

import gzip
import hashlib
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bash_runner import Ran, only_record, run_bash, run_python
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    TOKENS,
    Finished,
    assert_refused,
    run_main,
    student_weights,
    teacher_weights,
    write_published,
)

from formats.features import Features, read_blocks, read_header

PAIRS = b"q#d_0\tthe cat\tsat on a mat\nq#d_1\tdog\tran fast\n"
OTHER = b"q#d_0\tthe cat\tsat on a mat\nq#d_1\tdog\tran .\n"


def tokenize(pairs: Path, model_dir: Path, *more: object, set_name: str = "test") -> Finished:
    """Makes `out` beside the pairs if it is stale."""
    flags = ["--set_name", set_name, "--raw_data_file", pairs, "--bert_model_dir", model_dir, "--max_seq_length", 17]
    return run_main(
        "tokenize_to_features.py", *flags, "--output_features_file", pairs.with_name("out"), "--overwrite", *more
    )


def as_version_1(features: Path) -> None:
    """Writes a file of version 2 as the programs before wrote it."""
    with open(features, "rb") as file:
        header, rest = pickle.load(file), file.read()
    del header["raw_data_name"], header["raw_data_sha256"]
    features.write_bytes(pickle.dumps(header | {"version": 1}, protocol=4) + rest)


# tokenize_to_features.py --if_stale and --if_missing.


def test_the_header_has_the_name_and_the_hash_of_the_input(tmp_path: Path, model_dir: Path) -> None:
    for name, content in (("a b.tsv", PAIRS), ("é\n.tsv", PAIRS), ("x.gz", gzip.compress(PAIRS))):
        path = tmp_path / name
        path.write_bytes(content)
        assert tokenize(path, model_dir).status == 0
        header = read_header(tmp_path / "out")
        assert (header.raw_data_name, header.raw_data_sha256) == (name, hashlib.sha256(content).hexdigest())
        assert header.raw_data_sha256 in header.origin() and header.origin().isprintable()
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tsv"))  # not UTF-8
    path.write_bytes(PAIRS)
    assert tokenize(path, model_dir).status == 0
    assert read_header(tmp_path / "out").raw_data_name == "\ufffd.tsv"
    assert len(header._replace(raw_data_name="\x1b" * 999_999).origin()) < 300


def test_a_pipe_has_neither_name_nor_hash_and_its_features_are_made_again(tmp_path: Path, model_dir: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for content in (PAIRS, OTHER, OTHER):
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        done = tokenize(pipe, model_dir, "--if_stale")
        writer.join()
        assert (done.status, done.stderr) == (0, "")
        assert "wrote" in done.stdout
        assert read_header(tmp_path / "out")[-2:] == (None, None)
    command = [sys.executable, "tokenize_to_features.py", "--set_name", "test", "--bert_model_dir", model_dir]
    command += ["--output_features_file", tmp_path / "out", "--overwrite", "--raw_data_file", "/dev/stdin"]
    (tmp_path / "pairs.tsv").write_bytes(PAIRS)
    with open(tmp_path / "pairs.tsv", "rb") as file:
        for stdin in (subprocess.PIPE, file):
            child = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdin=stdin, stdout=subprocess.DEVNULL)
            child.communicate(PAIRS if stdin == subprocess.PIPE else None)
            assert child.returncode == 0
            assert read_header(tmp_path / "out")[-2:] == (None, None)


def test_fresh_features_are_kept_without_a_word(tmp_path: Path, model_dir: Path) -> None:
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out"
    pairs.write_bytes(PAIRS)
    assert "wrote" in tokenize(pairs, model_dir, "--if_stale").stdout  # missing
    made, log = out.stat(), (tmp_path / "out.log").read_bytes()
    for path in (pairs, tmp_path / "moved.tsv"):  # time stamps do not count, nor does the name
        pairs = pairs.rename(path)
        os.utime(pairs, (made.st_mtime + 999,) * 2)
        assert tokenize(pairs, model_dir, "--if_stale") == (0, "", "")
    assert (out.stat().st_mtime_ns, (tmp_path / "out.log").read_bytes()) == (made.st_mtime_ns, log)


@pytest.mark.parametrize("kind", ["pairs", "length", "case", "set", "vocabulary", "version 1", "damaged"])
def test_stale_features_are_made_again_and_the_reason_is_told(tmp_path: Path, model_dir: Path, kind: str) -> None:
    pairs, out, more, set_name = tmp_path / "pairs.tsv", tmp_path / "out", [], "test"
    pairs.write_bytes(PAIRS)
    assert tokenize(pairs, model_dir).status == 0
    before = hashlib.sha256(PAIRS).hexdigest()
    if kind == "pairs":
        pairs.write_bytes(OTHER)  # of the same size
        reason = f"it was made from 'pairs.tsv' (SHA-256 {before})"
    elif kind == "length":
        more, reason = ["--max_seq_length", 18], "it has max_seq_length 17, not 18"
    elif kind == "case":
        more, reason = ["--no-do_lower_case"], "it has do_lower_case True, not False"
    elif kind == "set":
        set_name, reason = "dev", "it has set_name test, not dev"
    elif kind == "vocabulary":
        (model_dir / "vocab.txt").write_text("".join(f"{token}\n" for token in [*TOKENS[:-2], "s", "'"]))
        reason = "it was made with another vocabulary"
    elif kind == "version 1":
        as_version_1(out)
        reason = "it is of unknown origin"
    else:
        out.write_bytes(out.read_bytes()[:50])
        reason = f"{out} header: cut off at byte 50"
    os.utime(pairs, (1, 1))  # old pairs, as `mv`, `cp -p` and `rsync -a` leave them
    done = tokenize(pairs, model_dir, "--if_stale", *more, set_name=set_name)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out} is made again: {reason}")
    assert reason in (tmp_path / "out.log").read_text()
    found = out.read_bytes()
    assert tokenize(pairs, model_dir, "--if_stale", *more, set_name=set_name).stdout == ""
    out.unlink()
    tokenize(pairs, model_dir, *more, set_name=set_name)
    assert out.read_bytes() == found


def test_features_are_never_stale_over_random_changes(tmp_path: Path, model_dir: Path) -> None:
    """150 random changes of pairs, time stamps, settings and features. The result is that of tokenizing anew."""
    chance = random.Random(4)
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out"
    contents = [PAIRS, OTHER, PAIRS + OTHER.replace(b"#", b"2#"), PAIRS[:-1]]
    pairs.write_bytes(PAIRS)
    kept = 0
    for _ in range(150):
        if chance.random() < 0.5:
            pairs.write_bytes(chance.choice(contents))
        os.utime(pairs, (chance.randrange(2_000_000_000),) * 2)
        if out.exists():
            os.utime(out, (chance.randrange(2_000_000_000),) * 2)
            if chance.random() < 0.1:
                as_version_1(out)
        more = ["--max_seq_length", chance.choice([17, 17, 6])]
        done = tokenize(pairs, model_dir, "--if_stale", *more)
        assert (done.status, done.stderr) == (0, "")
        kept += done.stdout == ""
        found = out.read_bytes()
        assert tokenize(pairs, model_dir, *more).status == 0
        assert out.read_bytes() == found
    assert 30 < kept < 120


def test_the_question_is_answered_without_torch(tmp_path: Path, model_dir: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_bytes(PAIRS)
    assert tokenize(pairs, model_dir).status == 0
    flags = ["--set_name", "test", "--raw_data_file", pairs, "--output_features_file", tmp_path / "out"]
    program = "import runpy, sys; runpy.run_path('tokenize_to_features.py', run_name='__main__'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *flags, "--bert_model_dir", model_dir, "--max_seq_length", "17", "--if_stale"],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = done.stdout.split()
    assert "formats.features" in modules and not {"torch", "transformers", "wrote"} & set(modules)


def test_another_file_is_not_replaced_without_overwrite(tmp_path: Path, model_dir: Path) -> None:
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out"
    pairs.write_bytes(PAIRS)
    out.write_text("mine")
    flags = ["--set_name", "test", "--raw_data_file", pairs, "--output_features_file", out]
    done = run_main("tokenize_to_features.py", *flags, "--bert_model_dir", model_dir, "--if_stale")
    assert_refused(done, "--output_features_file", "exists already")
    flags[-1] = pairs
    done = run_main("tokenize_to_features.py", *flags, "--bert_model_dir", model_dir, "--if_stale", "--overwrite")
    assert_refused(done, "--output_features_file", "is also an input")
    assert (out.read_text(), pairs.read_bytes()) == ("mine", PAIRS)


def test_a_seed_cannot_be_compared(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat\n")
    done = tokenize(tmp_path / "text.txt", model_dir, "--if_stale", "--seed", 3, set_name="general")
    assert_refused(done, "--seed: features do not record it")
    assert_refused(tokenize(tmp_path / "text.txt", model_dir, "--if_stale", "--if_missing"), "--if_missing")


def test_features_that_exist_are_kept_with_a_warning_if_missing(tmp_path: Path, model_dir: Path) -> None:
    pairs, out = tmp_path / "pairs.tsv", tmp_path / "out"
    pairs.write_bytes(PAIRS)
    assert "wrote" in tokenize(pairs, model_dir, "--if_missing").stdout
    made = out.read_bytes()
    assert tokenize(pairs, model_dir, "--if_missing") == (0, "", "")
    other = tmp_path / "other.tsv"
    other.write_bytes(OTHER)
    done = tokenize(other, model_dir, "--if_missing")
    (line,) = done.stderr.splitlines()
    assert (done.status, done.stdout) == (0, "")
    sums = [hashlib.sha256(content).hexdigest() for content in (PAIRS, OTHER)]
    for part in ("warning: ", str(out), f"'pairs.tsv' (SHA-256 {sums[0]})", f"'other.tsv' (SHA-256 {sums[1]})"):
        assert part in line
    assert tokenize(tmp_path / "missing.tsv", tmp_path / "no model", "--if_missing") == (0, "", "")
    assert out.read_bytes() == made
    as_version_1(out)  # of unknown origin, so there is nothing to compare
    assert tokenize(other, model_dir, "--if_missing") == (0, "", "")


def test_pairs_that_change_while_they_are_read_are_refused(tmp_path: Path, model_dir: Path, monkeypatch) -> None:
    """The hash is computed first. So it could be that of other pairs."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_bytes(PAIRS)
    from formats import checksums

    hash_of = checksums.file_sha256

    def then_replace(path: Path) -> str:
        found = hash_of(path)
        (tmp_path / "new").write_bytes(OTHER)
        os.replace(tmp_path / "new", pairs)
        return found

    monkeypatch.setattr(checksums, "file_sha256", then_replace)
    assert_refused(tokenize(pairs, model_dir), f"{pairs} was changed while it was read")
    assert not (tmp_path / "out").exists()


# The shell scripts.


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    """Runs distill.sh with pairs and models in `tmp_path`."""
    write_published(tmp_path / "teacher", TEACHER, teacher_weights())
    write_published(tmp_path / "general", STUDENT, student_weights())
    own = {
        "collection": "mine", "train_pairs": f"{tmp_path}/st.tsv", "teacher_model": f"{tmp_path}/teacher",
        "general_student_model": f"{tmp_path}/general", "output_student_dir": f"{tmp_path}/student",
        "max_seq_length": "17", "train_batch_size": "2", "num_train_epochs": "1", "device": "cpu", "precision": "fp32",
        "distill_model_type": "hard", "overwrite": "yes",
    }  # fmt: skip

    def run_script(answer: Callable[..., Finished] = only_tokenize, **more: str) -> Ran:
        done = run_bash(ROOT / "distill.sh", own | more, tmp_path, answer)
        assert done.returncode == 0, done.stderr
        return done

    return run_script


def only_tokenize(*arguments: str) -> Finished:
    return run_python(*arguments) if arguments[0] == "tokenize_to_features.py" else only_record()


def labelled(count: int) -> str:
    return "".join(f"e{i}\tthe cat\tdog ran {i}\t{i % 2}\n" for i in range(count))


@pytest.mark.parametrize("command", ["mv", "cp -p", "cat"])
def test_older_pairs_that_are_moved_over_are_tokenized(run: Callable, tmp_path: Path, command: str) -> None:
    pairs, other, features = tmp_path / "st.tsv", tmp_path / "other.tsv", tmp_path / "st.17.features"
    pairs.write_text(labelled(4))
    run()
    other.write_text(labelled(7))
    os.utime(other, (1, 1))
    subprocess.run(
        f"{command} other.tsv {'> ' if command == 'cat' else ''}st.tsv", cwd=tmp_path, shell=True, check=True
    )
    assert command == "cat" or pairs.stat().st_mtime < features.stat().st_mtime
    assert "is made again: it was made from 'st.tsv'" in run().stdout
    assert len(Features(features)) == 7
    assert "is made again" not in run().stdout


def test_pairs_of_the_same_stem_have_features_of_their_own(run: Callable, tmp_path: Path) -> None:
    for i, name in enumerate(("st.tsv", "st.txt", "st.csv", "st.tsx"), start=3):
        (tmp_path / name).write_text(labelled(i))
    found = {}
    for name in ("st.tsv", "st.txt", "st.csv", "st.tsx"):
        done = run(train_pairs=f"{tmp_path}/{name}")
        (call,) = [call for call in done.calls if call[0] == "distill.py"]
        (features,) = [flag.partition("=")[2] for flag in call if flag.startswith("--features_file=")]
        assert read_header(features).raw_data_name == name
        found[name] = Path(features).name
    assert found == {
        "st.tsv": "st.17.features", "st.txt": "st.txt.17.features", "st.csv": "st.csv.17.features",
        "st.tsx": "st.tsx.17.features",
    }  # fmt: skip
    general = {"set_name": "general", "distill_model_type": "intermediate"}
    for name, features in (("st.txt", "st.17.general.features"), ("st.tsv", "st.tsv.17.general.features")):
        run(train_pairs=f"{tmp_path}/{name}", **general)
        assert read_header(tmp_path / features).raw_data_name == name
    # packed pairs share their name, and are told apart by content
    (tmp_path / "st.tsv.gz").write_bytes(gzip.compress(labelled(9).encode()))
    for name, count in (("st.tsv.gz", 9), ("st.tsv", 3)):
        run(train_pairs=f"{tmp_path}/{name}")
        assert len(Features(tmp_path / "st.17.features")) == count


def test_other_settings_make_the_features_again(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "st.tsv").write_text(labelled(4))
    run()
    vocabulary = tmp_path / "general" / "vocab.txt"
    vocabulary.write_text("".join(f"{token}\n" for token in [*TOKENS[:-2], "s", "'"]))
    assert "is made again: it was made with another vocabulary" in run().stdout
    as_version_1(tmp_path / "st.17.features")
    assert "is made again: it is of unknown origin" in run().stdout


def test_named_features_of_other_pairs_give_a_warning(run: Callable, tmp_path: Path) -> None:
    named = {"features_file": f"{tmp_path}/my.features"}
    (tmp_path / "st.tsv").write_text(labelled(4))
    assert "wrote" in run(**named).stdout
    made = (tmp_path / "my.features").read_bytes()
    assert run(**named).stderr == ""
    (tmp_path / "st.tsv").write_text(labelled(5))
    (line,) = run(**named).stderr.splitlines()
    assert "warning: " in line and f"{tmp_path}/my.features was made from 'st.tsv' (SHA-256 " in line
    (tmp_path / "st.tsv").unlink()  # the pairs are not needed
    done = run(**named)
    assert done.stderr == "" and [call[0] for call in done.calls] == ["distill.py"]
    assert (tmp_path / "my.features").read_bytes() == made


def test_a_run_with_features_of_version_1_resumes_when_they_are_made_again(run: Callable, tmp_path: Path) -> None:
    """The examples are the same, so the run continues to the same bytes."""
    own = {"answer": run_python, "save_model_step": "1"}
    (tmp_path / "st.tsv").write_text(labelled(8))
    run(**own)
    student = tmp_path / "student"
    weights = (student / "model.safetensors").read_bytes()
    for _ in range(2):
        as_version_1(tmp_path / "st.17.features")
        for name in ("config.json", "model.safetensors"):
            (student / name).unlink()
        (student / "training.json").write_text((student / "training.json").read_text().replace("true", "false"))
        done = run(**own, overwrite="no")
        assert "is made again: it is of unknown origin" in done.stdout
        assert f"resuming from {student}/checkpoint-" in done.stderr
        assert (student / "model.safetensors").read_bytes() == weights


# What reads features tells what they were made from.


def test_training_and_re_ranking_log_the_origin_of_their_features(tmp_path: Path, model_dir: Path) -> None:
    model = write_published(tmp_path / "student", STUDENT, student_weights())
    (tmp_path / "test.tsv").write_bytes(PAIRS)
    assert tokenize(tmp_path / "test.tsv", model).status == 0
    flags = ["--model_dir", model, "--features_file", tmp_path / "out", "--device", "cpu"]
    done = run_main("rerank.py", *flags, "--output_scores_file", tmp_path / "scores")
    origin = f"made from 'test.tsv' (SHA-256 {hashlib.sha256(PAIRS).hexdigest()})"
    assert done.status == 0 and f", features {origin}, " in (tmp_path / "scores.log").read_text()
    assert sum(len(block.example_ids) for block in read_blocks(tmp_path / "out")) == 2

    (tmp_path / "train.tsv").write_text(labelled(4))
    assert tokenize(tmp_path / "train.tsv", model, set_name="train").status == 0
    flags = ["--features_file", tmp_path / "out", "--general_student_model", model, "--distill_model", "hard"]
    flags += ["--output_student_dir", tmp_path / "trained", "--train_batch_size", 2, "--device", "cpu"]
    origin = f"made from 'train.tsv' (SHA-256 {hashlib.sha256(labelled(4).encode()).hexdigest()})"
    assert run_main("distill.py", *flags).status == 0
    assert f"features: {tmp_path / 'out'}, {origin}" in (tmp_path / "trained" / "distill.log").read_text()
    as_version_1(tmp_path / "out")
    assert run_main("distill.py", *flags, "--overwrite").status == 0
    assert f"features: {tmp_path / 'out'}, of unknown origin" in (tmp_path / "trained" / "distill.log").read_text()
