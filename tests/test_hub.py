"""Models named by their id: from huggingface_hub's cache, and from a Hub that the test serves."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import (
    ONE_THREAD,
    ROOT,
    STUDENT,
    Finished,
    assert_refused,
    run_main,
    student_weights,
    write_published,
    write_tiny_features,
    write_transformers,
)

from modeling.model_files import missing_heads
from runtime.hub import HubError, model_directory

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(home: Path, *args: object, endpoint: str | None = None) -> Finished:
    """Runs a script as a user does, with the Hub's cache in `home`. Without an `endpoint` it is offline."""
    online = {"HF_HUB_OFFLINE": "1"} if endpoint is None else {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    variables = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"} | online
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, env=ONE_THREAD | variables, capture_output=True, text=True, timeout=300, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def cached(home: Path, name: str) -> Path:
    """The directory of a model in huggingface_hub's cache."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    repository.joinpath("refs").mkdir(parents=True)
    repository.joinpath("refs", "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def look_up(home: Path, name: str, weights: bool = True, endpoint: str | None = None) -> Finished:
    """Prints `model_directory(name, weights)` in a separate process, without torch."""
    code = (
        "import sys; from runtime.script import run_script; from runtime.hub import *; "
        f"run_script(lambda: print(model_directory(sys.argv[1], {weights})))"
    )
    return run(home, "-c", code, name, endpoint=endpoint)


def rerank_flags(tmp_path: Path, model: object) -> list[object]:
    features = write_tiny_features(tmp_path / "features", count=5, set_name="test")
    flags = ["--model_dir", model, "--features_file", features, "--output_scores_file", tmp_path / "scores"]
    return ["rerank.py", *flags, "--device", "cpu", "--overwrite"]


def tokenize_flags(tmp_path: Path, model: object) -> list[object]:
    (tmp_path / "pairs").write_text("q#D_0\tthe cat\ta dog ran\n")
    flags = ["--set_name", "test", "--raw_data_file", tmp_path / "pairs", "--bert_model_dir", model]
    return ["tokenize_to_features.py", *flags, "--output_features_file", tmp_path / "tokenized", "--overwrite"]


def output(done: Finished, path: Path) -> bytes:
    assert (done.status, done.stderr) == (0, ""), done
    return path.read_bytes()


def test_scripts_find_a_model_in_the_cache_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cross-encoder/ms-marco-Tiny_L3.v2"
    write_transformers(cached(tmp_path / "home", name), STUDENT, student_weights())
    local = write_transformers(tmp_path / "local", STUDENT, student_weights())
    # the settings of `run`, for this process
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for flags, path in ((rerank_flags, tmp_path / "scores"), (tokenize_flags, tmp_path / "tokenized")):
        expected = output(run_main(*flags(tmp_path, local)), path)
        path.unlink()
        assert output(run_main(*flags(tmp_path, name)), path) == expected
    (tmp_path / "tokenized").unlink()
    assert output(run(tmp_path / "home", *tokenize_flags(tmp_path, name)), tmp_path / "tokenized") == expected
    done = run_main(
        "model_tools/make_general_student.py", "--model_dir", name, "--layers", "3,1",
        "--output_dir", tmp_path / "student",
    )  # fmt: skip
    assert done.status == 0 and missing_heads(tmp_path / "student") == [], done


def test_an_id_without_owner_and_a_model_with_pytorch_weights(tmp_path: Path) -> None:
    directory = write_published(cached(tmp_path / "home", "bert-tiny"), STUDENT, student_weights())
    (directory / "bert_config.json").rename(directory / "config.json")
    assert look_up(tmp_path / "home", "bert-tiny") == Finished(0, f"{directory}\n", "")


def test_offline_a_model_that_is_not_in_the_cache_is_refused(tmp_path: Path) -> None:
    for name in ("cross-encoder/ms-marco-none", "techer"):
        done = run(tmp_path / "home", *tokenize_flags(tmp_path, name))
        assert_refused(done, f"{name} is neither a directory nor a model", "offline mode is enabled")
        assert not (tmp_path / "tokenized").exists()


def test_a_directory_is_returned_and_a_path_is_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("models/teacher", "models/", "./models", str(tmp_path), Path("models")):
        assert model_directory(name) == Path(name)
    for name in (
        "models/techer", "models/python_docs/teacher", "a/b/c", "./techer", "../techer", "/techer", "~/techer",
        str(tmp_path / "techer"), tmp_path / "techer", "techer/", "file", "file/techer", "a b", "a//b", "é", "a\n",
    ):  # fmt: skip
        with pytest.raises(HubError) as caught:
            model_directory(name)
        assert str(caught.value) == f"{name} is not a directory; name a model directory"
    for name in ("techer", "no-such/techer"):
        with pytest.raises(ImportError):
            model_directory(name)


class Hub(http.server.ThreadingHTTPServer):
    """A Hugging Face Hub with one model, `org/model`."""

    daemon_threads = True

    def __init__(self, files: Path):
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.files = {path.name: path.read_bytes() for path in files.iterdir()}
        self.downloaded: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"


class HubRequest(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = self.server.files
        if path in ("/api/models/org/model", "/api/models/org/model/revision/main"):
            self.answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/org/model/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith(f"/org/model/resolve/{COMMIT}/") and (name := path.rpartition("/")[2]) in files:
            if self.command == "GET":
                self.server.downloaded.append(name)
            self.answer(200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit=COMMIT)
        else:
            self.answer(404, b"", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hub]:
    files = request.param(tmp_path / "files", STUDENT, student_weights())
    for name in ("README.md", "tf_model.h5"):
        (files / name).write_text("not needed")
    if request.param is write_transformers:
        (files / "pytorch_model.bin").write_text("not needed")
    else:
        (files / "bert_config.json").rename(files / "config.json")
    server = Hub(files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("hub", [write_transformers, write_published], indirect=True)
def test_a_model_is_downloaded_once_and_only_the_files_that_are_read(tmp_path: Path, hub: Hub) -> None:
    def downloaded(weights: bool, endpoint: str | None) -> Path:
        done = look_up(tmp_path / "home", "org/model", weights, endpoint)
        assert done.status == 0, done
        return Path(done.stdout.rstrip("\n"))

    weights_file = "model.safetensors" if "model.safetensors" in hub.files else "pytorch_model.bin"
    downloaded(False, hub.endpoint)
    assert sorted(hub.downloaded) == ["config.json", "vocab.txt"]
    directory = downloaded(True, hub.endpoint)
    assert sorted(hub.downloaded) == sorted(["config.json", "vocab.txt", weights_file])
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        name: hub.files[name] for name in hub.downloaded
    }
    assert downloaded(True, hub.endpoint) == directory
    assert len(hub.downloaded) == 3
    assert downloaded(True, None) == directory  # from now on without the network


@pytest.mark.parametrize("hub", [write_transformers], indirect=True)
def test_a_model_that_the_hub_does_not_have_is_refused(tmp_path: Path, hub: Hub) -> None:
    done = look_up(tmp_path / "home", "org/modle", endpoint=hub.endpoint)
    assert_refused(done, "org/modle is neither a directory nor a model", "Repository Not Found")


def test_a_hub_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), HubRequest) as closed:
        endpoint = f"http://127.0.0.1:{closed.server_port}"
    done = look_up(tmp_path / "home", "org/model", endpoint=endpoint)
    assert_refused(done, "org/model is neither a directory nor a model", "refused")
