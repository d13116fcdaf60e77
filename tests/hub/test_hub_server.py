"""The fixture against the real huggingface_hub client: what it must do so that the publishing tests mean something."""

import base64
import hashlib
import http.client
import json
import secrets
import textwrap
from dataclasses import dataclass

import pytest

from tests.child_process import run_python
from tests.hub_server import OWNER_TOKEN, READ_ONLY_TOKEN, READER_TOKEN, HubServer, Repository, StoredFile

REPO = "tester/model"
CLIENT = """
import os
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError,
)
api = HfApi()
repo = "tester/model"


def error_of(action):
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was refused")


def status_of(action):
    return error_of(action).response.status_code


"""


def run_client(server: HubServer, code: str, *, token: str | None = OWNER_TOKEN) -> str:
    return run_python(CLIENT + textwrap.dedent(code), server.environment(token=token))


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    content: bytes


def ask(
    server: HubServer, method: str, path: str, *, token: str | None = None, body: bytes = b"", **headers: str
) -> Answer:
    """One plain request, whose redirect is not followed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


def put_lfs_file(server: HubServer, repository: Repository, path: str, data: bytes) -> str:
    """Commit an LFS file without a client; its sha256."""
    oid = hashlib.sha256(data).hexdigest()
    server.lfs_objects[oid] = data
    repository.add_commit("main", repository.files() | {path: StoredFile.in_lfs(oid, len(data))}, "one file")
    return oid


def commit_lines(*operations: tuple[str, dict]) -> bytes:
    header = ("header", {"summary": "by hand"})
    return b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in (header, *operations))


def test_files_are_read_back_as_they_were_committed(hub_server):
    code = """
    assert api.whoami()["name"] == "tester"
    api.create_repo(repo)
    api.create_repo(repo, exist_ok=True)
    assert status_of(lambda: api.create_repo(repo)) == 409
    weights = os.urandom(300_000)
    files = {"config.json": b"{}", "deep/er/model.safetensors": weights, "README.md": b"---\\nlicense: mit\\n---\\nHi"}
    commit = api.create_commit(
        repo, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="three files"
    )
    assert api.model_info(repo).sha == commit.oid
    assert set(api.list_repo_files(repo)) == {*files, ".gitattributes"}
    assert {"config.json", "deep"} < {entry.path for entry in api.list_repo_tree(repo)}
    [known] = api.get_paths_info(repo, ["deep/er/model.safetensors", "absent.txt"])
    assert (known.size, known.lfs.size) == (300_000, 300_000)
    for path, data in files.items():
        assert Path(hf_hub_download(repo, path)).read_bytes() == data
    folder = Path(api.snapshot_download(repo))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} >= set(files)
    assert isinstance(error_of(lambda: hf_hub_download(repo, "absent.txt")), EntryNotFoundError)
    """
    run_client(hub_server, code)
    assert hub_server.num_requests("lfs-upload") == 1
    assert not [record for record in hub_server.requests if record.kind == "lfs-download" and record.has_token]


def test_what_is_unchanged_is_not_sent_again(hub_server):
    code = """
    api.create_repo(repo)
    (folder := Path(os.environ["HF_HOME"]) / "work").mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(1000))
    (folder / "config.json").write_text("{}")
    first = api.upload_folder(repo_id=repo, folder_path=folder)
    again = api.upload_folder(repo_id=repo, folder_path=folder)
    assert again.oid == first.oid
    (folder / "config.json").write_text("{ }")
    third = api.upload_folder(repo_id=repo, folder_path=folder)
    assert third.oid != first.oid
    """
    run_client(hub_server, code)
    assert hub_server.num_requests("lfs-upload") == 1
    assert hub_server.repositories[REPO].files()["config.json"].data == b"{ }"


def test_deleting_and_branching_leave_older_revisions_alone(hub_server):
    code = """
    api.create_repo(repo)
    add = [CommitOperationAdd("a/one.txt", b"1"), CommitOperationAdd("a/two.txt", b"2"), CommitOperationAdd("b", b"3")]
    first = api.create_commit(repo, add, commit_message="add").oid
    api.create_branch(repo, branch="trial/long")
    api.create_tag(repo, tag="v1")
    api.upload_file(repo_id=repo, path_or_fileobj=b"new", path_in_repo="b", revision="trial/long")
    delete = [CommitOperationDelete("a/"), CommitOperationAdd("c", b"4")]
    api.create_commit(repo, delete, commit_message="delete and add at once")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "b", "c"}
    assert Path(hf_hub_download(repo, "b")).read_text() == "3"
    assert Path(hf_hub_download(repo, "b", revision="trial/long")).read_text() == "new"
    assert Path(hf_hub_download(repo, "a/one.txt", revision=first)).read_text() == "1"
    assert Path(hf_hub_download(repo, "a/two.txt", revision="v1")).read_text() == "2"
    refs = api.list_repo_refs(repo)
    assert {branch.name for branch in refs.branches} == {"main", "trial/long"}
    assert [commit.title for commit in api.list_repo_commits(repo)] == [
        "delete and add at once", "add", "initial commit"
    ]
    assert isinstance(error_of(lambda: hf_hub_download(repo, "b", revision="absent")), RevisionNotFoundError)
    late = [CommitOperationAdd("b", b"late")]
    stale = lambda: api.create_commit(repo, late, commit_message="late", parent_commit=first)
    assert status_of(stale) == 412
    api.delete_branch(repo, branch="trial/long")
    api.delete_tag(repo, tag="v1")
    assert len(api.list_repo_refs(repo).branches) == 1
    api.delete_repo(repo)
    assert isinstance(error_of(lambda: api.model_info(repo)), RepositoryNotFoundError)
    """
    run_client(hub_server, code)
    assert REPO not in hub_server.repositories


def test_private_repository_is_there_only_for_its_owner(hub_server):
    code = f"""
    api.create_repo(repo, private=True)
    def write(token=None):
        add = [CommitOperationAdd("model.bin", b"secret"), CommitOperationAdd("config.json", b"{{}}")]
        return api.create_commit(repo, add, commit_message="add", token=token)
    write()
    cache = os.environ["HF_HOME"]
    for number, (token, status) in enumerate([(False, 401), ("{READER_TOKEN}", 404)]):
        for hidden in (repo, "tester/absent"):
            info = error_of(lambda: api.model_info(hidden, token=token))
            assert isinstance(info, RepositoryNotFoundError) and info.response.status_code == status
        folder = f"{{cache}}/other{{number}}"
        for path in ("model.bin", "config.json"):
            download = lambda: hf_hub_download(repo, path, token=token, cache_dir=folder)
            assert isinstance(error_of(download), RepositoryNotFoundError)
    read_only = "{READ_ONLY_TOKEN}"
    path = hf_hub_download(repo, "model.bin", token=read_only, cache_dir=f"{{cache}}/third")
    assert Path(path).read_bytes() == b"secret"
    assert status_of(lambda: write(read_only)) == 403
    assert status_of(lambda: api.create_repo("tester/other", token=read_only)) == 403
    assert status_of(lambda: api.create_repo("somebody/other")) == 403
    assert status_of(lambda: api.whoami(token="hf_unknown")) == 401
    """
    run_client(hub_server, code)
    assert set(hub_server.repositories) == {REPO}


def test_storage_gives_nothing_without_a_signed_link(hub_server):
    repository = hub_server.add_repository(REPO)
    oid = put_lfs_file(hub_server, repository, "model.safetensors", b"weights")
    assert ask(hub_server, "GET", f"/_lfs/{oid}", token=OWNER_TOKEN).status == 403
    redirect = ask(hub_server, "HEAD", f"/{REPO}/resolve/main/model.safetensors")
    assert redirect.status == 302
    assert redirect.headers["X-Repo-Commit"] == repository.branches["main"]
    assert redirect.headers["X-Linked-Size"] == "7"
    assert redirect.headers["X-Linked-ETag"] == f'"{oid}"'
    assert redirect.headers["Location"].startswith("http://localhost:")
    path = redirect.headers["Location"].removeprefix(hub_server.storage)
    assert ask(hub_server, "GET", path).content == b"weights"
    assert ask(hub_server, "PUT", path, body=b"weights").status == 403


def test_a_range_of_a_file_is_sent_alone(hub_server):
    repository = hub_server.add_repository(REPO)
    repository.add_commit("main", {"words.txt": StoredFile.regular(b"0123456789")}, "one file")
    path = f"/{REPO}/resolve/main/words.txt"
    part = ask(hub_server, "GET", path, Range="bytes=7-")
    assert (part.status, part.content, part.headers["Content-Range"]) == (206, b"789", "bytes 7-9/10")
    assert ask(hub_server, "GET", path, Range="bytes=2-4").content == b"234"
    assert ask(hub_server, "GET", path, Range="bytes=10-").status == 416
    assert ask(hub_server, "HEAD", path).headers["Content-Length"] == "10"


def test_a_cut_download_is_resumed_where_it_was_cut(hub_server):
    repository = hub_server.add_repository(REPO)
    weights = secrets.token_bytes(600_000)
    put_lfs_file(hub_server, repository, "model.safetensors", weights)
    hub_server.fail_next("lfs-download", after_bytes=400_000)
    code = """
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 50_000
    try:
        path = hf_hub_download(repo, "model.safetensors")
    except Exception:
        path = hf_hub_download(repo, "model.safetensors")
    print(path)
    """
    path = run_client(hub_server, code).strip()
    with open(path, "rb") as file:
        assert file.read() == weights
    downloads = [record for record in hub_server.requests if record.kind == "lfs-download"]
    assert [record.status for record in downloads] == [200, 206]
    assert downloads[1].byte_range == "bytes=400000-"


def test_an_upload_cut_in_the_middle_is_sent_again_whole(hub_server):
    repository = hub_server.add_repository(REPO)
    hub_server.fail_next("lfs-upload", after_bytes=100_000)
    code = """
    upload = lambda: api.upload_file(repo_id=repo, path_or_fileobj=bytes(3_000_000), path_in_repo="model.bin")
    try:  # newer clients try again by themselves
        upload()
    except Exception:
        assert api.list_repo_files(repo) == [".gitattributes"]
        upload()
    """
    run_client(hub_server, code)
    uploads = [record for record in hub_server.requests if record.kind == "lfs-upload"]
    assert [record.status for record in uploads] == [None, 200]
    assert hub_server.lfs_objects[repository.files()["model.bin"].sha256] == bytes(3_000_000)


def test_a_failed_upload_or_commit_leaves_the_repository_as_it_was(hub_server):
    repository = hub_server.add_repository(REPO)
    before = repository.branches["main"]
    hub_server.fail_next("lfs-upload", status=403)
    hub_server.fail_next("commit", status=400)
    hub_server.fail_next("commit", after_bytes=100)
    code = """
    def commit():
        add = [CommitOperationAdd("model.bin", bytes(100_000)), CommitOperationAdd("config.json", b"{}" * 5000)]
        api.create_commit(repo, add, commit_message="both")

    for _ in range(3):
        error_of(commit)
        assert api.list_repo_files(repo) == [".gitattributes"]
    commit()
    assert len(api.list_repo_files(repo)) == 3
    """
    run_client(hub_server, code)
    assert repository.commits[repository.branches["main"]].parent == before
    assert hub_server.num_requests("lfs-upload") == 2


def test_a_commit_whose_reply_is_lost_has_happened(hub_server):
    repository = hub_server.add_repository(REPO)
    hub_server.fail_next("commit", is_applied=True)
    code = """
    upload = lambda: api.upload_file(repo_id=repo, path_or_fileobj=b"{}", path_in_repo="config.json")
    error_of(upload)
    upload()
    """
    run_client(hub_server, code)
    assert len(repository.commits) == 2
    assert repository.files()["config.json"].data == b"{}"


@pytest.mark.parametrize(
    "refused",
    [
        ("deletedFile", {"path": "absent.txt"}),
        ("lfsFile", {"path": "model.bin", "oid": "0" * 64, "size": 3}),
        ("renamedFile", {"path": "config.json"}),
    ],
)
def test_one_refused_operation_refuses_the_whole_commit(hub_server, refused):
    repository = hub_server.add_repository(REPO)
    before = repository.branches["main"]
    add = ("file", {"path": "config.json", "content": base64.b64encode(b"{}").decode()})
    path = f"/api/models/{REPO}/commit/main"
    assert ask(hub_server, "POST", path, token=OWNER_TOKEN, body=commit_lines(add, refused)).status in (400, 404)
    assert repository.branches["main"] == before
    assert set(repository.files()) == {".gitattributes"}
    assert ask(hub_server, "POST", path, token=OWNER_TOKEN, body=commit_lines(add)).status == 200
    assert set(repository.files()) == {".gitattributes", "config.json"}


def test_an_upload_with_other_bytes_than_announced_is_refused(hub_server):
    hub_server.add_repository(REPO)
    wanted = {"operation": "upload", "objects": [{"oid": hashlib.sha256(b"right").hexdigest(), "size": 5}]}
    path = f"/{REPO}.git/info/lfs/objects/batch"
    batch = ask(hub_server, "POST", path, token=OWNER_TOKEN, body=json.dumps(wanted).encode())
    href = json.loads(batch.content)["objects"][0]["actions"]["upload"]["href"].removeprefix(hub_server.endpoint)
    assert ask(hub_server, "PUT", href, body=b"wrong").status == 400
    assert hub_server.lfs_objects == {}
    assert ask(hub_server, "PUT", href, body=b"right").status == 200


def test_faults_meet_the_requests_that_were_named(hub_server):
    hub_server.add_repository(REPO)
    hub_server.fail_next("info", status=503, num_to_pass=1, num_times=2)
    statuses = [ask(hub_server, "GET", f"/api/models/{REPO}").status for _ in range(5)]
    assert statuses == [200, 503, 503, 200, 200]
    assert ask(hub_server, "GET", "/api/unheard-of").status == 404
    assert (hub_server.requests[-1].kind, hub_server.requests[-1].status) == (None, 404)
    with pytest.raises(ValueError, match=r"'lfs-uplaod'; kinds: .*lfs-upload"):
        hub_server.fail_next("lfs-uplaod")


def test_data_set_and_model_of_one_name_are_two_repositories(hub_server):
    code = """
    for kind in ("model", "dataset"):
        api.create_repo(repo, repo_type=kind)
        api.upload_file(repo_id=repo, repo_type=kind, path_or_fileobj=kind.encode(), path_in_repo="kind.txt")
    for kind in ("model", "dataset"):
        assert Path(hf_hub_download(repo, "kind.txt", repo_type=kind)).read_text() == kind
    """
    run_client(hub_server, code)
    assert set(hub_server.repositories) == {REPO, f"datasets/{REPO}"}
