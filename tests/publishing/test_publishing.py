import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file

from tests.hub_server import OWNER_TOKEN, READ_ONLY_TOKEN, READER_TOKEN, StoredFile
from vjepa_hub import VJEPAForPreTraining, VJEPAForVideoClassification, VJEPAModel, VJEPAVideoProcessor
from vjepa_hub.core.run_files import DataFacts, ModelFacts, Result, RunFile, RunRecord
from vjepa_hub.hub.default_processor import default_processor
from vjepa_hub.publishing import publishing
from vjepa_hub.publishing.card import is_ours, read_card
from vjepa_hub.publishing.hub_errors import HubAccessError
from vjepa_hub.publishing.publishing import CardOptions, UnpublishableError, plan_publication, publish

MODEL = {
    "config.json",
    "configuration_vjepa.py",
    "model.safetensors",
    "modeling_vjepa.py",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "video_processing_vjepa.py",
    "README.md",
}
APACHE = CardOptions(license="apache-2.0")


@pytest.fixture
def features(small_config, tmp_path) -> Path:
    """A features folder, as `convert` writes it."""
    torch.manual_seed(0)
    small_config.weights_origin = "made for a test"
    folder = tmp_path / "features"
    VJEPAModel(small_config).save_pretrained(folder)
    VJEPAVideoProcessor(crop_size=small_config.crop_size).save_pretrained(folder)
    return folder


@pytest.fixture
def send(hub_server, monkeypatch):
    """`send(source, repo_id="tester/model", token=..., **options)`: publish to the server."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server has no Xet
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")  # of whoever runs the tests
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run(source, repo_id="tester/model", *, token=OWNER_TOKEN, card_options=APACHE, **options):
        api = HfApi(endpoint=hub_server.endpoint, token=token)
        return publish(source, repo_id, api=api, card_options=card_options, **options)

    return run


def repository(hub_server, repo_id="tester/model"):
    return hub_server.repositories[repo_id]


def tree(hub_server, repo_id="tester/model", revision="main") -> dict[str, StoredFile]:
    files = dict(repository(hub_server, repo_id).files(revision))
    del files[".gitattributes"]
    return files


def num_commits(hub_server, repo_id="tester/model") -> int:
    """Beside the one that makes the repository."""
    return len(list(repository(hub_server, repo_id).history("main"))) - 1


def content(hub_server, name, repo_id="tester/model") -> bytes:
    stored = tree(hub_server, repo_id)[name]
    return hub_server.lfs_objects[stored.sha256] if stored.sha256 else stored.data


def write_online(hub_server, name: str, text: str) -> None:
    """A commit that a person makes in the repository."""
    found = repository(hub_server)
    found.add_commit("main", found.files() | {name: StoredFile.regular(text.encode())}, "by hand")


# ------------------------------------------------------------------------------------------------ what is sent


def test_all_of_a_features_folder_goes_in_one_commit_and_loads(features, hub_server, send):
    result = send(features)
    assert set(tree(hub_server)) == MODEL == set(result.sent)
    assert num_commits(hub_server) == 1
    assert result.commit == repository(hub_server).resolve("main").oid
    assert content(hub_server, "model.safetensors") == (features / "model.safetensors").read_bytes()
    card = content(hub_server, "README.md").decode()
    assert is_ours(card)
    assert read_card(card).data.license == "apache-2.0"
    assert 'from_pretrained("tester/model", trust_remote_code=True)' in card


def test_checkpoints_videos_and_pickles_stay_at_home(features, hub_server, send):
    shutil.copytree(features, features / "checkpoint-10")
    for name in ("training_args.bin", "optimizer.pt", "videos/a.mp4", "notes.txt", ".env"):
        (features / name).parent.mkdir(exist_ok=True)
        (features / name).write_bytes(b"private")
    send(features)
    assert set(tree(hub_server)) == MODEL


@pytest.fixture
def pretraining_run(features) -> Path:
    (features / "recipe.yaml").write_text(
        "name: mine\ninitial: null\ndata:\n- path: /home/me/secret/cats.csv\n- path: s3://me:word@bucket/a.tar?key=1\n"
    )
    record = RunRecord(
        kind="pretrain",
        command=("pretrain", "/home/me/mine.yaml", "--data", "/home/me/secret/cats.csv"),
        settings={"name": "mine", "training": {"learning_rate": 0.001}},
        data=(
            DataFacts(
                role="videos", source="/home/me/secret/cats.csv", is_local=True, num_videos=12, sha256="ab" * 32
            ),
        ),
        steps=2,
    )
    RunFile(features, record).update()
    (features / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.4\n")
    (features / "report.png").write_bytes(b"\x89PNG")
    return features


def test_a_pretraining_run_sends_its_recipe_and_log_and_plots_only_if_wanted(pretraining_run, hub_server, send):
    send(pretraining_run)
    assert set(tree(hub_server)) == MODEL | {"run.json", "recipe.yaml", "metrics.csv"}
    card = content(hub_server, "README.md").decode()
    assert "| steps | 2 |" in card
    assert "| data | VIDEOS, 12 videos (sha256 abababababab) |" in card
    assert "vjepa-hub pretrain recipe.yaml --data VIDEOS" in card
    assert send(pretraining_run, with_plots=True).sent == ["report.png"]


def test_paths_of_this_machine_are_shortened_in_what_is_sent_and_kept_here(pretraining_run, hub_server, send):
    config = json.loads((pretraining_run / "config.json").read_text())
    config["weights_origin"] = "from the folder /home/me/secret/run-1 (untouched)"
    (pretraining_run / "config.json").write_text(json.dumps(config))
    result = send(pretraining_run)
    for name in tree(hub_server):
        assert not re.search(rb"/home/me|me:word|key=1", content(hub_server, name)), name
    assert json.loads(content(hub_server, "config.json"))["weights_origin"] == "from the folder run-1 (untouched)"
    assert "/home/me" in (pretraining_run / "recipe.yaml").read_text()
    assert any("shortened in recipe.yaml" in note for note in result.notes)


def record_of_a_probe(folder: Path, **changes) -> None:
    """`run.json` of a probe whose average pooling was better than the attentive head of the saved classifier."""
    common = {"task": "video-classification", "dataset": "val.csv", "metric": "top-1 accuracy (%)"}
    record = RunRecord(
        kind="probe",
        state="complete",
        command=(
            "probe",
            "/home/me/run",
            "--train",
            "/home/me/train.csv",
            "--val",
            "https://me:secret@host/v.csv?key=1",
        ),
        changed={"num_epochs": 3},
        model=ModelFacts(name="/home/me/run", is_local=True, weights="V-JEPA", sha256="ab" * 32),
        data=(
            DataFacts(
                role="train", source="/home/me/train.csv", is_local=True, num_videos=9, num_classes=3, share=0.5
            ),
            DataFacts(role="validation", source="https://me:secret@host/v.csv?key=1", num_videos=6, num_classes=3),
        ),
        results=(
            Result(**common, value=90, protocol="average probe", pooling="average"),
            Result(**common, value=50, protocol="attentive probe", pooling="attentive", is_selected=False),
        ),
        **changes,
    )
    RunFile(folder, record).update()


def test_a_probe_states_the_results_of_the_head_that_is_sent_with_protocol_and_command(
    features, small_config, hub_server, send, tmp_path
):
    run = tmp_path / "probe"
    VJEPAForVideoClassification(small_config).save_pretrained(run / "classifier")
    VJEPAVideoProcessor(crop_size=32).save_pretrained(run / "classifier")
    record_of_a_probe(run)
    send(run)
    assert set(tree(hub_server)) == MODEL | {"run.json"}
    data = read_card(content(hub_server, "README.md").decode()).data
    assert data.pipeline_tag == "video-classification"
    (result,) = data.eval_results
    assert result.metric_value == 50.0  # not the 90 of the average pooling, which was selected
    for part in ("attentive probe", "50 % of the training labels", "num_epochs=3"):
        assert part in result.metric_args["protocol"]
    command = "vjepa-hub probe MODEL --train TRAIN_LABELS.csv --val https://host/v.csv"
    assert result.metric_args["command"] == command
    for name in tree(hub_server):
        assert not {b"/home/me", b"secret", b"key=1"} & set(
            re.findall(rb"/home/me|secret|key=1", content(hub_server, name))
        )


def test_results_of_an_evaluation_are_stated_for_features_and_sent(features, hub_server, send, tmp_path):
    record_of_a_probe(tmp_path / "k400")
    options = CardOptions(license="apache-2.0", results=[tmp_path / "k400" / "results.json"])
    send(features, card_options=options)
    assert "evaluation-1.json" in tree(hub_server)
    assert "| val.csv | top-1 accuracy (%) | 90 |" in content(hub_server, "README.md").decode()


def test_a_model_gives_what_its_folder_gives(small_config, hub_server, send, tmp_path):
    model = VJEPAForPreTraining(small_config)
    model.save_pretrained(tmp_path / "saved")
    default_processor(small_config).save_pretrained(tmp_path / "saved")
    send(model, "tester/one")
    send(tmp_path / "saved", "tester/two")
    one, two = tree(hub_server, "tester/one"), tree(hub_server, "tester/two")
    assert one.keys() == two.keys() == MODEL
    assert [name for name in one if one[name] != two[name]] == ["README.md"]  # which has the name


def test_shards_are_sent_and_a_single_file_takes_their_place_later(features, small_config, hub_server, send, tmp_path):
    model = VJEPAModel.from_pretrained(features)
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    send(tmp_path / "shards")
    shards = {name for name in tree(hub_server) if name.startswith("model")} - {"modeling_vjepa.py"}
    assert len(shards) >= 3
    assert "model.safetensors.index.json" in shards
    result = send(features)
    assert set(result.removed) == shards
    assert set(tree(hub_server)) == MODEL


def test_what_an_old_folder_lacks_is_added(features, hub_server, send):
    for name in ("modeling_vjepa.py", "video_preprocessor_config.json"):
        (features / name).unlink()
    config = json.loads((features / "config.json").read_text())
    del config["auto_map"]
    (features / "config.json").write_text(json.dumps(config))
    result = send(features)
    assert set(tree(hub_server)) == MODEL
    assert json.loads(content(hub_server, "config.json"))["auto_map"]["AutoModel"] == "modeling_vjepa.VJEPAModel"
    assert any("no video_preprocessor_config.json" in note for note in result.notes)


# ------------------------------------------------------------------------------------------------ again


def test_a_second_run_sends_only_what_changed_and_a_third_nothing(pretraining_run, hub_server, send):
    send(pretraining_run)
    (pretraining_run / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.3\n")
    result = send(pretraining_run)
    assert result.sent == ["metrics.csv"]
    assert set(result.unchanged) == MODEL | {"run.json", "recipe.yaml"}
    assert send(pretraining_run).commit is None
    assert num_commits(hub_server) == 2
    assert hub_server.num_requests("lfs-upload") == 1


def test_a_dry_run_tells_all_and_changes_nothing(features, hub_server, send):
    result = send(features, dry_run=True)
    assert set(result.sent) == MODEL
    assert result.commit is None
    assert not hub_server.repositories
    assert {record.method for record in hub_server.requests} == {"GET"}


def test_a_dry_run_needs_neither_token_nor_network(features):
    api = HfApi(endpoint="http://127.0.0.1:9", token=OWNER_TOKEN)
    result = publish(features, "me/model", api=api, card_options=APACHE, dry_run=True)
    assert set(result.sent) == MODEL
    assert "cannot be reached" in result.notes[0]


def test_a_card_that_was_edited_online_keeps_its_prose(features, hub_server, send):
    send(features)
    write_online(hub_server, "demo.gif", "GIF89a")
    write_online(hub_server, "README.md", "---\nlicense: mit\n---\n# By hand\n\n![a demo](demo.gif)\n")
    result = send(features)
    card = content(hub_server, "README.md").decode()
    assert "# By hand" in card
    assert read_card(card).data.license == "mit"
    assert read_card(card).data.library_name == "transformers"
    assert any("edited in the repository" in note for note in result.notes)
    assert send(features).commit is None
    send(features, replace_card=True)
    assert is_ours(content(hub_server, "README.md").decode())


def test_the_empty_form_that_transformers_pushes_is_replaced(features, hub_server, send):
    hub_server.add_repository("tester/model")
    form = "---\nlibrary_name: transformers\ntags: []\n---\n\n# Model Card for Model ID\n\n[More Information Needed]\n"
    write_online(hub_server, "README.md", form)
    send(features)
    assert is_ours(content(hub_server, "README.md").decode())


def test_a_card_that_a_person_wrote_into_the_folder_is_sent_with_its_prose(features, hub_server, send):
    (features / "README.md").write_text("# My own words\n")
    send(features)
    card = content(hub_server, "README.md").decode()
    assert "# My own words" in card
    assert "pipeline_tag: feature-extraction" in card


# ------------------------------------------------------------------------------------------------ refusals


def test_a_damaged_model_is_refused_before_anything_is_made(features, hub_server, send):
    weights = (features / "model.safetensors").read_bytes()
    (features / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UnpublishableError, match="incomplete"):
        send(features)
    (features / "model.safetensors").write_bytes(weights)
    config = json.loads((features / "config.json").read_text())
    (features / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(UnpublishableError, match=r"encoder\.layer\.1\S+ is left over"):
        send(features)
    assert not hub_server.repositories


def test_weights_that_are_pickles_are_refused_with_the_remedy(features, send):
    (features / "model.safetensors").rename(features / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickles, which can run code"):
        send(features)


def test_a_card_without_a_licence_is_refused(features, hub_server, send):
    with pytest.raises(UnpublishableError, match="no license"):
        send(features, card_options=CardOptions())
    assert not hub_server.repositories


def test_the_licence_of_released_weights_holds_for_what_comes_from_them(features, hub_server, send):
    config = json.loads((features / "config.json").read_text())
    config["weights_origin"] = "fine-tuned (full) from: target encoder of the released file vitl16.pth.tar"
    (features / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnpublishableError, match="the weights go back to vjepa-vitl16"):
        send(features)
    send(features, card_options=CardOptions())
    assert read_card(content(hub_server, "README.md").decode()).data.license == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("extra.pkl", "", "extra.pkl can run code"),
        ("config.json", "{}", "has the name of a file of the model"),
        ("list.csv", "/home/me/a.mp4 0\n", "list.csv names paths of this machine"),
    ],
)
def test_extra_files_are_checked(features, hub_server, send, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UnpublishableError, match=message):
        send(features, extra_files=[tmp_path / name])
    assert not hub_server.repositories


@pytest.mark.parametrize(
    ("repo_id", "options", "message"),
    [
        ("a/b/c", {}, "is no name of a repository"),
        ("bad name", {}, "is no name of a repository"),
        ("tester/model", {"token": "hf_wrong"}, "the token is not accepted"),
        ("tester/model", {"token": False}, "no token of the Hub was found"),
        ("tester/model", {"token": None}, "no token of the Hub was found"),
        ("tester/model", {"token": READ_ONLY_TOKEN}, "may only read"),
        ("tester/model", {"token": READER_TOKEN}, "belongs to reader, who may write to reader/..."),
        ("tester/model", {"revision": "0" * 40}, "is a commit"),
        ("tester/data", {}, "is a dataset on the Hub"),
        ("tester/public", {"private": True}, "is there and public"),
    ],
)
def test_what_the_hub_would_refuse_is_told_before_anything_is_sent(
    features, hub_server, send, repo_id, options, message
):
    hub_server.add_repository("tester/data", repo_type="dataset")
    hub_server.add_repository("tester/public")
    with pytest.raises(HubAccessError, match=message):
        send(features, repo_id, **options)
    if options.get("token", OWNER_TOKEN):  # without one, a dry run shows what it can
        with pytest.raises(HubAccessError, match=message):
            send(features, repo_id, dry_run=True, **options)
    assert len(hub_server.repositories) == 2
    assert hub_server.num_requests("commit") == 0


def test_no_network_is_told(features):
    api = HfApi(endpoint="http://127.0.0.1:9", token=OWNER_TOKEN)
    with pytest.raises(HubAccessError, match="the Hub cannot be reached"):
        publish(features, "me/model", api=api, card_options=APACHE)


# ------------------------------------------------------------------------------------------------ the server fails


@pytest.mark.parametrize("fault", [{"status": 500}, {"after_bytes": 100}, {"status": 403}])
def test_a_failed_commit_leaves_nothing_and_the_same_call_goes_on(features, hub_server, send, fault):
    hub_server.fail_next("commit", **fault)
    with pytest.raises(HubAccessError, match="as a whole or not at all"):
        send(features)
    assert num_commits(hub_server) == 0
    assert set(send(features).sent) == MODEL
    assert num_commits(hub_server) == 1
    assert hub_server.num_requests("lfs-upload") == 1


def test_weights_that_do_not_arrive_leave_nothing(features, hub_server, send):
    hub_server.fail_next("lfs-upload", status=403)
    with pytest.raises(HubAccessError, match="run the same command again"):
        send(features)
    assert num_commits(hub_server) == 0
    send(features)
    assert num_commits(hub_server) == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(features, hub_server, send):
    hub_server.fail_next("commit", is_applied=True)
    with pytest.raises(HubAccessError, match="broke off"):
        send(features)
    assert send(features).commit is None
    assert num_commits(hub_server) == 1


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(features, hub_server, send, monkeypatch):
    send(features)

    def plan_while_somebody_writes(*args, **kwargs):
        write_online(hub_server, "other.txt", "theirs")
        return plan_publication(*args, **kwargs)

    VJEPAModel.from_pretrained(features).half().save_pretrained(features)
    monkeypatch.setattr(publishing, "plan_publication", plan_while_somebody_writes)
    with pytest.raises(HubAccessError, match="somebody else wrote to it"):
        send(features)
    assert "other.txt" in tree(hub_server)


# ------------------------------------------------------------------------------------------------ where it goes


def test_a_branch_is_made_and_main_stays(features, hub_server, send):
    send(features)
    before = tree(hub_server)
    VJEPAModel.from_pretrained(features).half().save_pretrained(features)
    result = send(features, revision="half")
    assert tree(hub_server) == before
    assert tree(hub_server, revision="half")["model.safetensors"] != before["model.safetensors"]
    assert result.url.endswith("/tester/model/tree/half")
    assert send(features, revision="half").commit is None


def test_a_new_repository_may_be_private_and_a_name_alone_is_the_accounts(features, hub_server, send):
    result = send(features, "model", private=True)
    assert result.repo_id == "tester/model"
    assert repository(hub_server).is_private


def test_half_precision_weights_are_what_arrives(features, hub_server, send, tmp_path):
    send(VJEPAModel.from_pretrained(features).bfloat16())
    (tmp_path / "got.safetensors").write_bytes(content(hub_server, "model.safetensors"))
    got, sent = load_file(tmp_path / "got.safetensors"), load_file(features / "model.safetensors")
    assert all(torch.equal(got[key], sent[key].bfloat16()) for key in sent if "position" not in key)
