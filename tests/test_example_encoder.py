"""The bundled example's encoder: its download with pip, its general student, and the outputs of both."""

from pathlib import Path

import pytest
import torch
from tiny import run_main

from formats.features import Features
from formats.pairs import read_pairs
from modeling.model_files import load_ranker

pytestmark = pytest.mark.example

FEW_QUERIES = ("--packages", "--num_train_queries", 20, "--num_dev_queries", 5, "--num_test_queries", 5)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("example")
    steps = (
        ("experiments/python_docs/build_collection.py", "--output_dir", home / "data", *FEW_QUERIES),
        ("experiments/python_docs/fetch_encoder.py", "--output_dir", home / "encoder"),
        (
            "model_tools/make_general_student.py", "--model_dir", home / "encoder", "--layers", "2,4,6",
            "--output_dir", home / "student",
        ),
    )  # fmt: skip
    for step in steps:
        done = run_main(*step)
        assert done.status == 0, done
    return home


def test_the_encoder_is_not_downloaded_twice(home: Path) -> None:
    done = run_main("experiments/python_docs/fetch_encoder.py", "--output_dir", home / "encoder")
    assert done.status == 0 and "exists already" in done.stdout


def test_token_ids_are_those_of_transformers(home: Path) -> None:
    from transformers import AutoTokenizer

    done = run_main(
        "tokenize_to_features.py", "--set_name", "test", "--raw_data_file", home / "data" / "test_pairs.tsv",
        "--output_features_file", home / "features", "--bert_model_dir", home / "encoder", "--max_seq_length", 512,
    )  # fmt: skip
    assert done.status == 0, done
    tokenizer = AutoTokenizer.from_pretrained(home / "encoder")
    features = Features(home / "features")
    pairs = list(read_pairs(home / "data" / "test_pairs.tsv", labelled=False))
    expected = tokenizer([pair.query for pair in pairs], [pair.passage for pair in pairs], padding=False)["input_ids"]
    assert len(features) == len(pairs) > 50
    for i, ids in enumerate(expected):
        assert features.batch([i])["input_ids"][0].tolist() == ids


def test_encoder_and_student_compute_what_transformers_does(home: Path) -> None:
    from transformers import BertModel

    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_ids": torch.randint(1000, 30000, (3, 40), generator=generator),
        "attention_mask": (torch.arange(40) < torch.tensor([[40], [17], [5]])).long(),
        "token_type_ids": (torch.arange(40) > 4).long().repeat(3, 1),
    }
    with torch.no_grad():
        expected = BertModel.from_pretrained(home / "encoder", attn_implementation="eager")(
            **batch, output_hidden_states=True
        ).hidden_states
        encoder, _ = load_ranker(home / "encoder", initialise_missing_with_seed=1)
        found_states = encoder(**batch, hidden_states_of=range(len(expected))).hidden_states.values()
        for found, wanted in zip(found_states, expected, strict=True):
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(found[real], wanted[real], rtol=1e-4, atol=1e-5)
        student, _ = load_ranker(home / "student", initialise_missing_with_seed=1)
    assert student.config.num_hidden_layers == 3
    for layer, taken in enumerate((2, 4, 6)):
        for name, weight in student.bert.encoder.layer[layer].state_dict().items():
            assert torch.equal(weight, encoder.bert.encoder.layer[taken - 1].state_dict()[name])
