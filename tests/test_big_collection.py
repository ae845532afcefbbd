"""The benchmark of the data scripts at a small size."""

from tiny import assert_refused, run_main, run_script

from benchmarks.big_collection import document, make_chunks, text_bytes

SCRIPT = "benchmarks/big_collection.py"


def test_documents_are_the_same_every_time():
    chunks = make_chunks(seed=1)
    assert document(7, chunks, 430) == document(7, make_chunks(seed=1), 430) != document(8, chunks, 430)
    assert document(1999, chunks, 430) == ("Title of document 1999", "")
    words = [len(document(number, chunks, 430)[1].split()) for number in range(999)]
    assert 400 < sum(words) / len(words) < 470 and max(words) < 900
    assert text_bytes({7, 1999}, 430) == sum(len(part.encode()) for part in document(7, chunks, 430)) + 22


def test_small_run(tmp_path):
    # A process of its own: the benchmark measures memory, and the tests before this one have used some.
    done = run_script(SCRIPT, "--documents=300", "--words=90", "--queries=2", "--work_dir", tmp_path)
    assert done.status == 0, done.stderr
    first, _, *rows, last = done.stdout.splitlines()
    assert first.startswith("300 documents: 0.00 GB")
    assert [row.split()[:-6] for row in rows] == [
        [*script.split(), file]
        for file in ("docs.tsv", "docs.tsv.gz")
        for script in ("make_train_pairs.py", "make_rerank_pairs.py", "reading alone")
    ]
    assert all(float(number) >= 0 for row in rows for number in row.split()[-6:])
    assert last == "memory beside the text needed: under 1 GB"
    assert (tmp_path / "docs.tsv").read_text().count("\n") == 300


def test_refusals(tmp_path):
    assert_refused(run_main(SCRIPT, "--documents=100"), "--documents", "need at least 200")
    assert_refused(run_main(SCRIPT, "--work_dir", tmp_path / "none"), "--work_dir")
    assert_refused(run_main(SCRIPT, "--documents=1000000000000"), "--work_dir", "no room")
