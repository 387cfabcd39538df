"""The hub, against a small one on loopback. No test here reaches the real network unasked."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import huggingface_hub.utils._http as hub_http
import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints.foreign import (
    SMALL,
    assert_same_weights,
    hf_tensors,
    weights_of,
    write_hf,
    write_json,
    write_timm,
)
from tests.checkpoints.hub_server import Hub, served
from tests.checkpoints.test_open_clip import written as write_open_clip
from vit_edge import hub as hub_client
from vit_edge.checkpoints import Request, load_checkpoint
from vit_edge.errors import CheckpointError, HubError

requires = ("torch", "safetensors", "huggingface_hub")

ID = "gardens/vit-tulips"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A served model, and huggingface_hub pointed at it with an empty cache and no waiting."""
    write_hf(tmp_path / "served", SMALL, weights_of(SMALL))
    with served(Hub(ID, tmp_path / "served")) as running:
        for name in ("ENDPOINT", "_HF_DEFAULT_ENDPOINT"):
            monkeypatch.setattr(constants, name, running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(hub_http.time, "sleep", lambda seconds: None)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running
        hub_http.close_session()


def refused(source: str = f"hf:{ID}", revision: str | None = None) -> str:
    with pytest.raises(HubError) as caught:
        load_checkpoint(source, Request(revision=revision))
    return str(caught.value)


def test_a_model_of_the_hub_is_loaded_and_its_commit_recorded(hub: Hub) -> None:
    loaded = load_checkpoint(f"hf:{ID}", Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert (loaded.record.source, loaded.record.revision) == (f"hf:{ID}", hub.commit)
    assert loaded.variant == "vit-tulips"
    assert loaded.record.sha256.keys() == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }


def test_only_what_is_needed_is_downloaded(hub: Hub) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (hub.folder / name).write_bytes(b"not for us")
    load_checkpoint(f"hf:{ID}", Request())
    got = sorted(request for request in hub.requests if request.startswith("GET"))
    assert got == ["GET config.json", "GET model.safetensors", "GET preprocessor_config.json"]


def test_a_second_name_of_the_processor_is_asked_for_where_the_first_is_absent(hub: Hub) -> None:
    (hub.folder / "preprocessor_config.json").rename(hub.folder / "processor_config.json")
    load_checkpoint(f"hf:{ID}", Request())
    assert "GET processor_config.json" in hub.requests


def test_open_clips_own_files_are_downloaded(hub: Hub) -> None:
    for file in hub.folder.iterdir():
        file.unlink()
    write_open_clip(hub.folder)
    loaded = load_checkpoint(f"open_clip:{ID}", Request())
    assert (loaded.record.source, loaded.record.revision) == (f"open_clip:{ID}", hub.commit)
    got = sorted(request for request in hub.requests if request.startswith("GET"))
    assert got == ["GET open_clip_config.json", "GET open_clip_model.safetensors"]


def test_a_repository_without_open_clips_files_is_refused_by_their_names(hub: Hub) -> None:
    write_open_clip(hub.folder)
    (hub.folder / "open_clip_model.safetensors").unlink()
    assert "none of open_clip_model.safetensors, open_clip_pytorch" in refused(f"open_clip:{ID}")


def test_a_revision_is_asked_for(hub: Hub) -> None:
    assert load_checkpoint(f"hf:{ID}", Request(revision="v1")).record.revision == hub.commit


def test_shards_are_downloaded_by_their_index(hub: Hub) -> None:
    tensors = load_file(hub.folder / "model.safetensors")
    (hub.folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for file, part in (("a.safetensors", names[:9]), ("b.safetensors", names[9:])):
        save_file({name: tensors[name] for name in part}, hub.folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(hub.folder / "model.safetensors.index.json", {"weight_map": weight_map})
    assert_same_weights(load_checkpoint(f"hf:{ID}", Request()), weights_of(SMALL))


def test_pickled_weights_are_downloaded_where_there_is_nothing_else(hub: Hub) -> None:
    import torch

    (hub.folder / "model.safetensors").unlink()
    torch.save(hf_tensors(weights_of(SMALL)), hub.folder / "pytorch_model.bin")
    assert_same_weights(load_checkpoint(f"hf:{ID}", Request()), weights_of(SMALL))


def test_a_timm_model_is_loaded_by_its_name(hub: Hub, tmp_path: Path) -> None:
    hub.repository = "timm/vit_tulip.seed_in1k"
    hub.folder = write_timm(tmp_path / "timm", SMALL, weights_of(SMALL))
    loaded = load_checkpoint("timm:vit_tulip.seed_in1k", Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert loaded.record.source == "timm:vit_tulip.seed_in1k"
    assert loaded.record.revision == hub.commit


def test_the_cache_is_enough_when_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load_checkpoint(f"hf:{ID}", Request())
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load_checkpoint(f"hf:{ID}", Request())
    assert_same_weights(loaded, weights_of(SMALL))
    assert loaded.record.revision == hub.commit
    assert len(hub.requests) == asked


def test_the_cache_is_enough_when_the_hub_is_down(hub: Hub) -> None:
    load_checkpoint(f"hf:{ID}", Request())
    hub.status = 503
    assert_same_weights(load_checkpoint(f"hf:{ID}", Request()), weights_of(SMALL))


def test_offline_without_a_cache_says_the_three_ways_on(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(revision="v1")
    for part in (
        f"{ID} at revision v1: cannot get config.json",
        "HF_HUB_OFFLINE is set",
        hub.url,
        constants.HF_HUB_CACHE,
        "--checkpoint hf:DIR",
        f"hf download {ID}",
        "HF_ENDPOINT",
        "seeded:0",
    ):
        assert part in message
    assert hub.requests == []


def test_offline_with_half_a_cache_names_the_missing_weights(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.folder / "model.safetensors").unlink()
    refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no weights: none of model.safetensors" in refused()


def test_a_hub_that_cannot_be_reached_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # discard: refused
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refused()
    assert "the hub does not answer" in message
    assert "refused" in message
    assert "--checkpoint hf:DIR" in message


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Nobody answers; returns the addresses that were tried."""
    tried: list[object] = []

    def refuse(address: object, timeout: float | None = None, *_: object) -> None:
        tried.append(address)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", refuse)
    return tried


def test_without_a_network_the_cache_serves_and_no_request_is_made(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (hub.folder / "preprocessor_config.json").unlink()  # the cache remembers that there is none
    load_checkpoint(f"hf:{ID}", Request())
    asked = len(hub.requests)
    tried = request.getfixturevalue("no_network")
    assert_same_weights(load_checkpoint(f"hf:{ID}", Request()), weights_of(SMALL))
    assert (len(hub.requests), len(tried)) == (asked, 1)


def test_without_a_network_what_is_not_known_to_be_absent_is_an_error(
    hub: Hub, request: pytest.FixtureRequest
) -> None:
    load_checkpoint(f"hf:{ID}", Request())
    for cached in Path(constants.HF_HUB_CACHE).rglob("preprocessor_config.json"):
        cached.unlink()
    request.getfixturevalue("no_network")
    assert "cannot get preprocessor_config.json: the hub does not answer" in refused()


def test_without_a_network_there_is_our_error_at_once_and_no_other_line(
    hub: Hub, no_network: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        message = refused("timm:vit_tulip")
    assert "the hub does not answer ([Errno 101] Network is unreachable)" in message
    assert "--checkpoint timm:DIR" in message
    assert "--checkpoint seeded:0 --variant NAME, or --checkpoint embedded" in message
    assert {record.name for record in caplog.records} == {"vit_edge.checkpoints.hub"}
    assert hub.requests == []


def test_a_name_server_that_is_silent_is_not_waited_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = threading.Event()

    def wait(*_: object) -> None:
        silent.wait()
        raise OSError

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.create_connection", wait)
    monkeypatch.setattr(hub_client, "_PROBE_TIMEOUT_S", 0.05)
    assert "the hub does not answer (nothing within" in refused()
    silent.set()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://", "nonsense"])
def test_an_endpoint_that_is_no_address_is_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    message = refused()
    assert "the hub does not answer" in message
    assert f"Looked at {endpoint} " in message


def test_behind_a_proxy_the_hub_is_not_tried_directly(
    hub: Hub, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy.example:3128"})
    assert hub_client.silence() is None
    assert no_network == []


def test_retries_of_the_library_stay_off_the_log(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.status = 503
    level = logging.getLogger("huggingface_hub").level
    refused()
    assert "503" not in caplog.text
    assert logging.getLogger("huggingface_hub").level == level


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "(401); log in"),
        (403, "access refused (403)"),
        (429, "too many requests (429)"),
        (500, "500"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(hub: Hub, status: int, message: str) -> None:
    hub.status = status
    text = refused()
    assert message in text
    assert "cannot get config.json" in text


def test_a_refusal_after_the_first_file_is_no_absent_file(hub: Hub) -> None:
    """A rate limit on preprocessor_config.json must not end in default preprocessing."""
    answer = hub.answer

    def limited(path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        return answer(path, token) if path.endswith("/config.json") else (429, {}, b"slow down")

    hub.answer = limited  # type: ignore[method-assign]
    text = refused()
    assert "cannot get preprocessor_config.json" in text
    assert "429" in text


def test_a_model_that_does_not_exist_is_said(hub: Hub) -> None:
    assert "there is no such model, or it is private" in refused("hf:gardens/roses")


def test_a_revision_that_does_not_exist_is_said(hub: Hub) -> None:
    message = refused(revision="v9")
    assert "at revision v9" in message
    assert "no such revision (404)" in message


def test_a_gated_model_needs_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    assert "gated (401); accept its terms" in refused()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert_same_weights(load_checkpoint(f"hf:{ID}", Request()), weights_of(SMALL))


def test_a_model_without_weights_is_said(hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    assert "no weights: none of model.safetensors" in refused()


def test_an_adapter_alone_is_said_to_be_one(hub: Hub) -> None:
    (hub.folder / "config.json").unlink()
    assert "the model has no such file" in refused()
    write_json(hub.folder / "adapter_config.json", {"base_model_name_or_path": "google/vit-x"})
    with pytest.raises(CheckpointError, match=f"{ID}: an adapter of PEFT alone.*google/vit-x"):
        load_checkpoint(f"hf:{ID}", Request())


def test_an_index_that_points_outside_downloads_nothing(hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    write_json(hub.folder / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match="plain file names"):
        load_checkpoint(f"hf:{ID}", Request())
    assert not any("evil" in request for request in hub.requests)


def test_what_can_be_no_model_id_is_not_asked_for(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="no model id"):
        load_checkpoint("hf:a/b/c", Request())
    assert hub.requests == []


def test_the_endpoint_variable_is_honoured(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME are read when huggingface_hub is imported: in another process."""
    code = (
        "from vit_edge.checkpoints import load_checkpoint, Request\n"
        f"print(load_checkpoint('hf:{ID}', Request()).record.revision)"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == hub.commit


@pytest.mark.hub
@pytest.mark.skipif(
    os.environ.get("VIT_EDGE_HUB_TESTS") != "1",
    reason="reaches the Hugging Face hub; set VIT_EDGE_HUB_TESTS=1 to run it",
)
def test_google_vit_gives_the_logits_that_transformers_expects(shared_data: Path) -> None:
    """The numbers are those of transformers' own integration test (test_modeling_vit.py)."""
    import numpy as np
    import torch
    from PIL import Image

    from vit_edge.models.vit import vit_from_weights

    loaded = load_checkpoint("hf:google/vit-base-patch16-224", Request())
    image = Image.open(shared_data / "images" / "coco" / "000000039769.png").convert("RGB")
    resized = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    pixels = torch.from_numpy((resized / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    logits = vit_from_weights(loaded.architecture, dict(loaded.weights))(pixels).logits
    assert logits is not None
    expected = torch.tensor([-0.2744, 0.8215, -0.0836])
    torch.testing.assert_close(logits[0, :3], expected, rtol=1e-4, atol=1e-4)
    assert loaded.labels[int(logits.argmax())] == "Egyptian cat"
    assert json.dumps(loaded.record.sha256)
