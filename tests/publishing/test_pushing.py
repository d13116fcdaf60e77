"""`push_to_hub` of models, `save_pretrained(push_to_hub=True)` and the Trainer's give what `publish` gives."""

import logging

import pytest
import torch
from huggingface_hub import HfApi, constants

from tests.hub_server import OWNER_TOKEN
from tests.pretraining.conftest import blobs, make_trainer  # noqa: F401  (fixtures)
from vjepa_hub import VJEPAModel
from vjepa_hub.publishing import publishing
from vjepa_hub.publishing.publishing import CardOptions, publish


@pytest.fixture
def on_loopback(hub_server, monkeypatch):
    """Every client that publishing makes itself talks to the server."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has no Xet
    monkeypatch.setattr(publishing, "HfApi", lambda **options: HfApi(endpoint=hub_server.endpoint, token=OWNER_TOKEN))
    return hub_server


def files_of(server, name):
    """What differs between repositories on purpose is their name, in the card."""
    files = server.repositories[f"tester/{name}"].files()
    return {
        path: file.sha256 if hasattr(file, "sha256") else file for path, file in files.items() if path != "README.md"
    }


def card_of(server, name):
    return server.repositories[f"tester/{name}"].files()["README.md"].data.decode()


def test_all_ways_to_push_a_model_give_the_repository_of_publish(small_config, on_loopback, tmp_path, caplog):
    torch.manual_seed(0)
    model = VJEPAModel(small_config)
    publish(model, "tester/one", card_options=CardOptions(requires_license=False))
    with caplog.at_level(logging.WARNING):
        info = model.push_to_hub("tester/two", commit_message="First")
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="tester/six")
    expected = files_of(on_loopback, "one")
    assert {"config.json", "model.safetensors", "modeling_vjepa.py", "video_preprocessor_config.json"} <= set(expected)
    assert files_of(on_loopback, "two") == expected
    assert files_of(on_loopback, "six") == expected
    cards = [card_of(on_loopback, name).replace(f"tester/{name}", "tester/one") for name in ("one", "two", "six")]
    assert len({card.rpartition("<!--")[0] for card in cards}) == 1  # the rest is a checksum
    assert info.oid == on_loopback.repositories["tester/two"].branches["main"]
    assert "published without a licence" in caplog.text


def test_a_second_push_of_the_same_model_makes_no_commit(small_config, on_loopback):
    model = VJEPAModel(small_config)
    first = model.push_to_hub("tester/model", tags=["mine"])
    again = model.push_to_hub("tester/model", tags=["mine"])
    assert again.oid == first.oid
    assert on_loopback.num_requests("commit") == 1
    assert "mine" in card_of(on_loopback, "model")


def test_a_pull_request_is_refused_before_anything_is_sent(small_config, on_loopback):
    with pytest.raises(ValueError, match="create_pr is True"):
        VJEPAModel(small_config).push_to_hub("tester/model", create_pr=True)
    assert not on_loopback.requests


@pytest.mark.parametrize("blocking", [True, False])
def test_trainer_pushes_the_published_form_and_nothing_else(blobs, make_trainer, on_loopback, blocking):  # noqa: F811
    trainer = make_trainer(blobs(), max_steps=1, hub_model_id="tester/run")
    trainer.train()
    (trainer.output_dir / "videos").mkdir(parents=True)
    (trainer.output_dir / "videos" / "0.mp4").write_bytes(b"no part of a model")
    trainer.push_to_hub(blocking=blocking)
    trainer._finish_current_push()
    files = on_loopback.repositories["tester/run"].files()
    assert {"config.json", "model.safetensors", "video_preprocessor_config.json", "README.md"} <= set(files)
    assert not [path for path in files if path.startswith(("videos", "checkpoint"))]
    assert "tester/run" in card_of(on_loopback, "run")


def test_a_push_in_the_background_that_fails_is_not_swallowed(blobs, make_trainer, on_loopback):  # noqa: F811
    trainer = make_trainer(blobs(), max_steps=1, hub_model_id="tester/run")
    trainer.train()
    on_loopback.fail_next("commit", status=403)
    trainer.push_to_hub(blocking=False)
    with pytest.raises(OSError, match="tester/run"):
        trainer._finish_current_push()
