"""The plain text of a collection."""

import gzip

import pytest
from tiny import assert_refused, run_main

from data_preparation.make_text import paragraph
from formats.documents import Document

SCRIPT = "data_preparation/make_text.py"


@pytest.mark.parametrize(
    ("body", "sentences"),
    [
        ("One. Two? Three! four", ["One.", "Two?", "Three! four"]),
        ("It cost 1.5 or 2. 3 is more.", ["It cost 1.5 or 2.", "3 is more."]),
        ('He said "Go." (She went.) “Why?” Nobody knows.', ['He said "Go."', "(She went.)", "“Why?”", "Nobody knows."]),
        ("Dr. Who met J. R. Doe et al. 2020, see Fig. 3, i.e. The third.", None),
        ("The mural. Then more.", ["The mural.", "Then more."]),
        ("a.b.C and so on...  And\tmore\u00a0words", ["a.b.C and so on...", "And more words"]),
        ("  one\n line ", ["one line"]),
        ("What?! Yes.", ["What?!", "Yes."]),
        ("", []),
    ],
)
def test_sentences(body, sentences):
    assert paragraph(Document("D1", "", body)) == ([body] if sentences is None else sentences)


def test_title_is_the_first_line():
    assert paragraph(Document("D1", " A  title. Of two ", "Body. More.")) == ["A title. Of two", "Body.", "More."]
    assert paragraph(Document("D1", "Title", " ")) == ["Title"]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "docs.tsv"
    path.write_text("D1\tu\tFirst\tOne. Two.\nD2\tu\t\t \nD3\tu\t\tThree words here.\nD4\tu\tLast\t\n")
    return path


def test_script(tmp_path, documents):
    out = tmp_path / "text.txt"
    done = run_main(SCRIPT, "--collection", documents, "--output_text_file", out)
    assert done.status == 0, done.stderr
    assert out.read_text() == "First\nOne.\nTwo.\n\nThree words here.\n\nLast\n"
    assert "3 documents, 5 lines, 7 words; skipped 1 documents without text" in done.stdout
    assert done.stdout.strip() in (tmp_path / "text.txt.log").read_text()


def test_script_packs_and_stops(tmp_path, documents):
    out = tmp_path / "text.txt.gz"
    flags = ("--collection", documents, "--output_text_file", out)
    assert run_main(SCRIPT, *flags, "--max_documents=3").status == 0
    assert gzip.decompress(out.read_bytes()).decode() == "First\nOne.\nTwo.\n\nThree words here.\n"
    assert_refused(run_main(SCRIPT, *flags), "--output_text_file", "--overwrite")
    assert run_main(SCRIPT, *flags, "--overwrite", "--max_documents=1").status == 0
    assert gzip.decompress(out.read_bytes()).decode() == "First\nOne.\nTwo.\n"


def test_script_refuses(tmp_path, documents):
    out = tmp_path / "text.txt"
    flags = ("--collection", documents, "--output_text_file", out)
    assert_refused(run_main(SCRIPT, *flags, "--max_documents=0"), "--max_documents")
    assert_refused(run_main(SCRIPT, *flags[:3], documents, "--overwrite"), "also an input")
    documents.write_text("D1\tu\t\t\nD2\tu\tTitle\n")
    assert_refused(run_main(SCRIPT, *flags), "docs.tsv line 2", "3 columns where 4")
    documents.write_text("D1\tu\t\t\n")
    assert_refused(run_main(SCRIPT, *flags), "no document with text")
    assert not out.exists()
