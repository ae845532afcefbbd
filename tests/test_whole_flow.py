"""The whole flow, from pairs to measures, by running the scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    TEACHER,
    copy_project,
    random_weights,
    run_main,
    some_pairs,
    student_weights,
    teacher_weights,
    write_published,
)

from formats.scores import read_scores
from formats.trec import read_run

QUERIES, DOCUMENTS, PASSAGES = 3, 4, 2


def test_pairs_become_measures(tmp_path: Path) -> None:
    write_published(tmp_path / "teacher", TEACHER, teacher_weights())
    write_published(tmp_path / "general", STUDENT, student_weights())
    texts = some_pairs(QUERIES * DOCUMENTS * PASSAGES)
    ids = [
        f"{query}#D{query}{document}_{passage}"
        for query in range(QUERIES)
        for document in range(DOCUMENTS)
        for passage in range(PASSAGES)
    ]
    rows = [(example_id, *text) for example_id, text in zip(ids, texts, strict=True)]
    (tmp_path / "test.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "train.tsv").write_text("".join("\t".join((*row, str(i % 2))) + "\n" for i, row in enumerate(rows)))
    (tmp_path / "qrels").write_text("".join(f"{query} 0 D{query}1 1\n" for query in range(QUERIES)))

    def run(script: str, *args: object) -> str:
        done = run_main(script, *args)
        assert done.status == 0, done
        return done.stdout

    for set_name in ("train", "test"):
        run(
            "tokenize_to_features.py", "--set_name", set_name, "--raw_data_file", tmp_path / f"{set_name}.tsv",
            "--output_features_file", tmp_path / f"{set_name}.features", "--bert_model_dir", tmp_path / "teacher",
            "--max_seq_length", 19,
        )  # fmt: skip
    run(
        "distill.py", "--features_file", tmp_path / "train.features", "--teacher_model", tmp_path / "teacher",
        "--general_student_model", tmp_path / "general", "--output_student_dir", tmp_path / "student",
        "--train_batch_size", 8, "--num_train_epochs", 1, "--learning_rate", 1e-3, "--device", "cpu",
    )  # fmt: skip
    run(
        "rerank.py", "--model_dir", tmp_path / "student", "--features_file", tmp_path / "test.features",
        "--output_scores_file", tmp_path / "scores", "--device", "cpu",
    )  # fmt: skip
    scores = {f"{row.query_id}#{row.passage_id}": row.score for row in read_scores(tmp_path / "scores")}
    assert list(scores) == ids

    run(
        "convert_to_trec_results.py", "--scores_file", tmp_path / "scores", "--output_results_file", tmp_path / "run",
        "--aggregation", "MaxP",
    )  # fmt: skip
    run_of = read_run(tmp_path / "run")
    reciprocal_ranks = []
    for query in range(QUERIES):
        best = {
            f"D{query}{document}": max(scores[f"{query}#D{query}{document}_{passage}"] for passage in range(PASSAGES))
            for document in range(DOCUMENTS)
        }
        ranked = sorted(best, key=best.__getitem__, reverse=True)
        assert list(run_of[str(query)]) == ranked
        reciprocal_ranks.append(1 / (ranked.index(f"D{query}1") + 1))
    measured = run("msmarco_mrr_eval.py", tmp_path / "qrels", tmp_path / "run")
    mean = sum(reciprocal_ranks) / QUERIES
    assert measured == f"query_num: {QUERIES}\nMRR: {mean!r}\nMRR@10: {mean!r}\n"


def test_the_steps_by_hand_run_as_printed(tmp_path: Path) -> None:
    """The scripts, and the export after them, with tiny files in place of the bundled example."""
    project = copy_project(tmp_path / "project")
    data, models = project / "data" / "python_docs", project / "models" / "python_docs"
    for directory in (data, models, project / "runs"):
        directory.mkdir(parents=True, exist_ok=True)
    long = STUDENT._replace(positions=128)
    write_published(models / "encoder", long, random_weights(long, 1))
    write_published(models / "teacher", long, random_weights(long, 2))
    write_published(models / "general_student", long, random_weights(long, 3))
    rows = [f"{i % 4}#D{i}_0\t{query}\t{passage}" for i, (query, passage) in enumerate(some_pairs(24))]
    (data / "train_pairs.tsv").write_text("".join(f"{row}\t{i % 2}\n" for i, row in enumerate(rows)))
    (data / "test_pairs.tsv").write_text("".join(f"{row}\n" for row in rows))
    (data / "qrels.test.tsv").write_text("0 0 D4 1\n1 0 D5 1\n2 0 D6 1\n3 0 D7 1\n")
    page = (ROOT / "docs" / "scripts.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, flags=re.S)
    assert "msmarco_mrr_eval.py" in blocks[0] and "export_student.py" in blocks[1]
    (tmp_path / "python").symlink_to(sys.executable)
    environment = {**ONE_THREAD, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-e"],
        input="".join(blocks),
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "query_num: 4\n" in done.stdout
    assert (project / "models" / "my_export" / "model.safetensors").is_file()
