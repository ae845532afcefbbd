"""Small collections in files, and a reference implementation of passages."""

import json
import random
from pathlib import Path
from typing import NamedTuple

from tiny import Finished


class SmallCollection(NamedTuple):
    """Documents as `{doc_id: (title, body)}`; queries and qrels as their readers return them; a run, best first."""

    documents: dict[str, tuple[str, str]]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    run: dict[str, list[str]]


def write_collection(
    directory: Path, collection: SmallCollection, order: random.Random | None = None
) -> dict[str, Path]:
    """Writes files in MS MARCO's layout; `order` shuffles their lines. Returns `{flag: path}`."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = {
        "collection": [
            f"{doc_id}\thttp://{doc_id}\t{title}\t{body}" for doc_id, (title, body) in collection.documents.items()
        ],
        "queries": [f"{query_id}\t{text}" for query_id, text in collection.queries.items()],
        "qrels": [
            f"{query_id} 0 {doc_id} {relevance}"
            for query_id, grades in collection.qrels.items()
            for doc_id, relevance in grades.items()
        ],
        "candidates": [
            f"{query_id} Q0 {doc_id} {rank} {1 / rank} tiny"
            for query_id, doc_ids in collection.run.items()
            for rank, doc_id in enumerate(doc_ids, start=1)
        ],
    }
    for name, lines in rows.items():
        if order:
            order.shuffle(lines)
        directory.joinpath(f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {name: directory / f"{name}.tsv" for name in rows}


def random_collection(seed: int) -> SmallCollection:
    """Some documents are empty or missing; some queries have no text, qrels or candidates; grades are -1 to 2."""
    rng = random.Random(seed)
    doc_ids = [f"D_{i}" for i in range(rng.randint(8, 40))]
    documents = {
        doc_id: (
            " ".join(rng.choices(["red", "Green", "blue"], k=rng.randint(0, 2))),
            " ".join(f"w{i}" for i in range(rng.choice([0, *range(1, 40)]))),
        )
        for doc_id in doc_ids
        if rng.random() < 0.9
    }
    query_ids = [str(i) for i in range(13)]
    return SmallCollection(
        documents,
        {query_id: f"what is {query_id} ?" for query_id in query_ids if rng.random() < 0.9},
        {
            query_id: {doc_id: rng.choice([-1, 0, 1, 2]) for doc_id in rng.sample(doc_ids, rng.randint(1, 5))}
            for query_id in query_ids
            if rng.random() < 0.9
        },
        {query_id: rng.sample(doc_ids, rng.randint(1, len(doc_ids))) for query_id in query_ids if rng.random() < 0.9},
    )


def reference_passages(title: str, body: str, window: int, stride: int) -> list[str]:
    """One window after another, until a window reaches the end."""
    words = body.split()
    passages = []
    start = 0
    while words:
        passages.append(" ".join([*title.split(), *words[start : start + window]]))
        if start + window >= len(words):
            break
        start += stride
    return passages


def flags(paths: dict[str, Path]) -> list[object]:
    return [part for name, path in paths.items() for part in (f"--{name}", path)]


def closing_figures(done: Finished, output: Path, **settings: object) -> dict:
    """The report beside an output, without times and settings. Checks times and settings, and the printed line."""
    assert len(done.stdout.splitlines()) == 1
    assert output.with_name(f"{output.name}.log").read_text().endswith(done.stdout)
    report = json.loads(output.with_name(f"{output.name}.report.json").read_text())
    assert report.pop("seconds") >= 0 and report.pop("passages_per_second") > 0
    assert settings.items() <= report.pop("settings").items()
    return report
