"""Bundles on a hub, against a small one on loopback: pushed with a card, opened by their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import huggingface_hub.utils._http as hub_http
import numpy as np
import pytest

import vit_edge
from tests.checkpoints.hub_server import Hub, served
from vit_edge import Bundle, HubError, IntegrityError, Predictor, UsageError, cli
from vit_edge.bench.run.plan import Sampling
from vit_edge.bundle import hub as bundle_hub
from vit_edge.bundle.bundle import hashes_below, write_manifest
from vit_edge.bundle.manifest import manifest_from_json
from vit_edge.push import base_model, model_card

requires = ("huggingface_hub", "onnxruntime")

ID = "gardens/vit-tulips-fp32"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty repository, and huggingface_hub pointed at it with an empty cache."""
    (tmp_path / "served").mkdir()
    with served(Hub(ID, tmp_path / "served", commit=COMMIT)) as running:
        for name in ("ENDPOINT", "_HF_DEFAULT_ENDPOINT"):
            monkeypatch.setattr(constants, name, running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(hub_http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield running
        hub_http.close_session()


@pytest.fixture
def pushed(hub: Hub, testing_bundle: Bundle) -> Hub:
    """The hub with the testing bundle on it."""
    vit_edge.push(testing_bundle, ID)
    return hub


def test_a_pushed_bundle_is_opened_by_its_name_and_answers_alike(
    pushed: Hub, testing_bundle: Bundle, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with Predictor(testing_bundle) as here, Predictor(f"hf:{ID}@v1") as there:
        assert there.predict(image).logits.tobytes() == here.predict(image).logits.tobytes()
        folder = there.bundle.path
    assert folder == tmp_path / "cache/vit_edge/hub" / f"gardens--vit-tulips-fp32@{COMMIT}" / (
        "vit-tulips-fp32"
    )
    names = {file.name for file in folder.iterdir()}
    assert names == {*testing_bundle.manifest.files, "manifest.json"}
    assert not any(file.is_symlink() or file.stat().st_nlink > 1 for file in folder.iterdir())


def test_the_second_time_nothing_but_the_revision_is_asked(pushed: Hub) -> None:
    first = Bundle.read(f"hf:{ID}")
    pushed.requests.clear()
    assert Bundle.read(Path(f"hf:{ID}")).path == first.path
    assert set(pushed.requests) == {"HEAD manifest.json"}


def test_offline_the_cache_is_enough(pushed: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = Bundle.read(f"hf:{ID}")
    pushed.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Bundle.read(f"hf:{ID}").path == online.path
    shutil.rmtree(online.path.parent)  # the hub's own cache has it still
    assert Bundle.read(f"hf:{ID}@main").path == online.path
    assert pushed.requests == []
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and the file is not in the cache"):
        Bundle.read("hf:gardens/other")


def test_what_a_killed_process_left_is_swept(pushed: Hub, tmp_path: Path) -> None:
    parent = tmp_path / "cache/vit_edge/hub" / f"gardens--vit-tulips-fp32@{COMMIT}"
    (parent / ".vit-tulips-fp32.partial-0123").mkdir(parents=True)
    Bundle.read(f"hf:{ID}")
    assert [folder.name for folder in parent.iterdir()] == ["vit-tulips-fp32"]


def test_the_folder_of_a_process_that_was_faster_stays(
    pushed: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be hashing its files, which must not be exchanged under it."""
    copied, faster = bundle_hub._copied, []

    def while_another_works(source: Path, target: Path) -> str:
        if not faster:
            faster.append(0)
            path = Bundle.read(f"hf:{ID}").path
            faster.append((path / "model.onnx").stat().st_ino)
        return copied(source, target)

    monkeypatch.setattr(bundle_hub, "_copied", while_another_works)
    opened = Bundle.read(f"hf:{ID}")
    assert opened.model_path.stat().st_ino == faster[1]
    assert [folder.name for folder in opened.path.parent.iterdir()] == ["vit-tulips-fp32"]


def test_every_verb_takes_the_name(pushed: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert vit_edge.verify(f"hf:{ID}").path.name == "vit-tulips-fp32"
    assert cli.main(["inspect", f"hf:{ID}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["variant"] == "testing"
    sampling = Sampling(processes=1, at_least_s=0.02)
    run = vit_edge.bench(f"hf:{ID}@v1", backend="ort", sampling=sampling)
    assert run.configurations[0].failed is None
    assert run.configurations[0].name.startswith("vit-tulips-fp32 ort")


@pytest.mark.parametrize(
    ("status", "token", "message"),
    [(None, "other", "gated"), (503, None, "503"), (429, None, "too many requests")],
)
def test_a_hub_that_refuses_is_a_typed_error(
    pushed: Hub, status: int | None, token: str | None, message: str
) -> None:
    pushed.status, pushed.token = status, token
    with pytest.raises(HubError, match=message) as caught:
        Predictor(f"hf:{ID}")
    assert pushed.url in str(caught.value)
    with pytest.raises(HubError, match="nothing was pushed"):
        vit_edge.push(Bundle.read(Path(pushed.folder)), ID)


def test_what_is_not_there_is_said(pushed: Hub) -> None:
    with pytest.raises(HubError, match="there is no such revision"):
        Predictor(f"hf:{ID}@v9")
    (pushed.folder / "manifest.json").unlink()
    with pytest.raises(HubError, match=r"cannot get manifest\.json: the model has no such file"):
        Predictor(f"hf:{ID}@v1")
    for reference in ("hf:", "hf:tulips", "hf:a/b/c", "hf:../..@x y", "hf:a/b@"):
        with pytest.raises(UsageError, match="written hf:ORG/NAME@REVISION"):
            Predictor(reference)


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt"])
def test_a_file_that_is_not_the_manifests_is_refused_and_nothing_kept(
    pushed: Hub, name: str, tmp_path: Path
) -> None:
    content = bytearray((pushed.folder / name).read_bytes())
    content[-2] ^= 1
    (pushed.folder / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=f"{name}: sha256"):
        Predictor(f"hf:{ID}")
    assert not [*(tmp_path / "cache/vit_edge/hub").rglob("*.*")]


def test_a_manifest_cannot_name_a_file_elsewhere(pushed: Hub, tmp_path: Path) -> None:
    text = (pushed.folder / "manifest.json").read_text()
    (pushed.folder / "manifest.json").write_text(text.replace('"labels.txt"', '"../labels.txt"'))
    with pytest.raises(vit_edge.BundleError):
        Predictor(f"hf:{ID}")
    assert not [*(tmp_path / "cache/vit_edge/hub").rglob("labels.txt")]


def test_engines_stay_here_and_a_branch_and_privacy_are_asked_for(
    hub: Hub, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    vit_edge.build(bundle)
    (bundle.path / "notes.txt").write_text("mine")
    arguments = ["push", str(bundle.path), ID, "--private", "--revision", "int8", "--json"]
    assert cli.main([*arguments, "--license", "mit"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["reference"] == f"hf:{ID}@{COMMIT}"
    assert printed["url"] == f"{hub.url}/{ID}"
    made = hub.made[0]  # as the version of huggingface_hub says it
    assert made.get("private") is True or made.get("visibility") == "private"
    assert "int8" in hub.revisions
    names = {file.name for file in hub.folder.iterdir()}
    assert names == {*bundle.manifest.files, "manifest.json", "README.md"}
    manifest_from_json((hub.folder / "manifest.json").read_text(), "pushed")


def add_layout(bundle: Bundle) -> Path:
    """A folder for transformers.js, as an export writes and records it."""
    folder = bundle.path / "transformers.js"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model.onnx").write_bytes(b"graph")
    (folder / "config.json").write_text("{}")
    parity = bundle.parity() | {"layout": hashes_below(folder)}
    (bundle.path / "parity.json").write_text(json.dumps(parity))
    write_manifest(bundle.path, bundle.manifest)
    return folder


def test_the_layout_of_transformers_js_is_at_the_root(hub: Hub, bundle: Bundle) -> None:
    add_layout(bundle)
    vit_edge.push(bundle.path, ID)
    assert (hub.folder / "onnx/model.onnx").read_bytes() == b"graph"
    assert (hub.folder / "config.json").is_file()
    assert (hub.folder / "model.onnx").read_bytes() == bundle.model_path.read_bytes()


def test_a_layout_that_was_changed_is_neither_pushed_nor_verified(hub: Hub, bundle: Bundle) -> None:
    folder = add_layout(bundle)
    vit_edge.verify(bundle.path)
    for name, content in (("onnx/model.onnx", b"grapH"), ("notes.txt", b"mine"), ("a", b"")):
        before = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).write_bytes(content)
        for refuse in (vit_edge.verify, lambda path: vit_edge.push(path, ID)):
            with pytest.raises(IntegrityError, match=f"not as it was written: {name}"):
                refuse(bundle.path)
        (folder / name).unlink() if before is None else (folder / name).write_bytes(before)
    (folder / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"not as it was written: config\.json"):
        vit_edge.push(bundle.path, ID)
    shutil.rmtree(folder)  # as in a copy that came from a hub
    vit_edge.verify(bundle.path)


def test_a_layout_of_an_earlier_version_is_not_pushed_unseen(hub: Hub, bundle: Bundle) -> None:
    """0.2.0 recorded none of its hashes."""
    (bundle.path / "transformers.js").mkdir()
    (bundle.path / "transformers.js/config.json").write_text("{}")
    vit_edge.verify(bundle)
    with pytest.raises(IntegrityError, match="recorded no hashes. Export the bundle again"):
        vit_edge.push(bundle, ID)


def test_what_was_changed_is_not_pushed(hub: Hub, bundle: Bundle) -> None:
    content = bytearray(bundle.model_path.read_bytes())
    content[-2] ^= 1
    bundle.model_path.write_bytes(content)
    with pytest.raises(IntegrityError):
        vit_edge.push(bundle, ID)
    for repository in ("tulips", "a/b/c", "../x", ""):
        with pytest.raises(UsageError, match="no repository of the hub"):
            vit_edge.push(bundle, repository)
    assert [*hub.folder.iterdir()] == []


def test_the_card_says_what_the_bundle_is(testing_bundle: Bundle) -> None:
    import dataclasses

    yaml = pytest.importorskip("yaml", reason="needs pyyaml")
    record = dataclasses.replace(
        testing_bundle.manifest.checkpoint, source="hf:google/vit-tiny", revision=COMMIT
    )
    manifest = dataclasses.replace(testing_bundle.manifest, checkpoint=record)
    labels = ("a|b", "<script>", *testing_bundle.labels[2:])
    bundle = Bundle(testing_bundle.path, manifest, labels)
    card = model_card(bundle, ID, "apache-2.0")
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    fields = yaml.safe_load(front)
    assert fields["license"] == "apache-2.0"
    assert fields["base_model"] == "google/vit-tiny"
    assert fields["pipeline_tag"] == "image-classification"
    assert {"onnx", "vit_edge", "fp32"} <= set(fields["tags"])
    assert f'Predictor("hf:{ID}")' in body
    assert "Parity with the reference in float64 holds" in body
    rows = [line for line in body.splitlines() if line.startswith("| logits")]
    assert len(rows) == len(
        [row for row in bundle.parity()["comparisons"] if row["output"] == "logits"]
    )
    assert "<script>" not in body
    assert "a\\|b" in body


@pytest.mark.parametrize(
    ("source", "revision", "expected"),
    [
        ("hf:google/vit", COMMIT, "google/vit"),
        ("timm:vit_tiny.augreg", COMMIT, "timm/vit_tiny.augreg"),
        ("hf:folder/vit", None, None),
        ("live:transformers.ViT", None, None),
        ("seeded:0", None, None),
    ],
)
def test_the_base_model_is_named_where_it_is_known(
    testing_bundle: Bundle, source: str, revision: str | None, expected: str | None
) -> None:
    import dataclasses

    record = dataclasses.replace(
        testing_bundle.manifest.checkpoint, source=source, revision=revision
    )
    manifest = dataclasses.replace(testing_bundle.manifest, checkpoint=record)
    bundle = Bundle(testing_bundle.path, manifest, testing_bundle.labels)
    assert base_model(bundle) == expected
    assert "license" not in model_card(bundle, ID).split("---")[1]
