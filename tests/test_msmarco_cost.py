"""What MS MARCO takes: the committed page is what the script computes; its figures by hand; the measured rates."""

import json
from types import SimpleNamespace

import pytest
from tiny import ROOT, run_main

from benchmarks import msmarco_cost, preparation_rates
from runtime.errors import InputError

SCRIPT = "benchmarks/msmarco_cost.py"
RATES = json.loads((ROOT / "benchmarks" / "msmarco_rates.json").read_text())


def test_the_page_is_what_the_script_prints() -> None:
    done = run_main(SCRIPT)
    assert done.status == 0, done.stderr
    assert done.stdout == (ROOT / "docs" / "msmarco_cost.md").read_text()


def test_figures_by_hand() -> None:
    rows = {row[0]: row for row in msmarco_cost.time_table(RATES)}
    # 367,013 relevant documents, 4 negatives each, 2 epochs
    examples = 367_013 * 5 * 2
    assert rows["distil Simplified TinyBERT, 3/384"][1:5] == [
        "at most 3.7 M examples", f"at most {examples / 5 / 86_400:.1f} days",
        f"at most {examples / 2462 / 60:.1f} min", f"about {examples / 2462 / 60 / 8:.1f} min",
    ]  # fmt: skip
    # 5,593 queries, 100 candidates, 14.08 passages; the rate of 6/768 on a GPU is a lower bound
    passages = 5_593 * 100 * 14.08
    assert rows["re-rank with a student of 3/384"][1:3] == ["7.9 M passages", f"{passages / 105 / 3600:.1f} h"]
    assert rows["re-rank with a student of 3/384"][3] == f"{passages / 80_645 / 60:.1f} min"
    assert rows["re-rank with a student of 6/768"][3] == f"at most {passages / 7_449 / 60:.1f} min"
    # data preparation uses no GPU
    assert len(set(rows["tokenize"][2:5])) == 1
    assert rows["distil Simplified TinyBERT, 6/768"][2] == "not measured"
    *sizes, total = msmarco_cost.disk_table()[1:]
    assert abs(sum(float(size) for _, size in sizes) - float(total[1])) < 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (59, "59 s"), (90, "1.5 min"), (7200, "2.0 h"), (216_000, "2.5 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert msmarco_cost.duration(seconds) == text


def test_every_rate_says_where_it_was_measured() -> None:
    for part in msmarco_cost.parts():
        assert part.rate in RATES["cpu"] | RATES["gpu"]
    for of_machine in RATES.values():
        for rate in of_machine.values():
            assert rate["per_second"] > 0 and len(rate["where"]) > 20


def test_rates_are_measured_on_synthetic_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        done = run_main(command[1].removeprefix(f"{ROOT}/"), *command[2:])
        return SimpleNamespace(returncode=done.status)

    monkeypatch.setattr(preparation_rates.subprocess, "run", run)
    rates = preparation_rates.measure_rates(documents=300, words=200, queries=2, pairs=30)
    assert rates.keys() == {name for name in RATES["cpu"] if "_" not in name}
    assert all(rate["per_second"] > 0 and "preparation_rates.py: " in rate["where"] for rate in rates.values())
    monkeypatch.setattr(preparation_rates.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3))
    with pytest.raises(InputError, match=r"make_rerank_pairs.py ended with exit status 3"):
        preparation_rates.measure_rates(documents=300, words=200, queries=2, pairs=30)
