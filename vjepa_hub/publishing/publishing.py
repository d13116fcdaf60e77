"""From a folder or a model to a repository on the Hub: all is checked first, then sent in one commit.

    publish("runs/tiny", "me/vjepa-tiny", card_options=CardOptions(license="apache-2.0"))

What is sent, says `publication`. A file that the repository has already is not sent again, and where nothing differs
no commit is made. Whatever fails: the commit is made as a whole or not at all, and the same command goes on from
there.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..model.modeling_vjepa import VJEPAPreTrainedModel
from ..model.video_processing_vjepa import VJEPAVideoProcessor
from .card import complete_card
from .facts import CardOptions
from .hub_errors import NO_TOKEN, HubAccessError, HubUnavailableError, hub_errors
from .model_folder import CARD_FILE
from .publication import Publication, PublishedFile, UnpublishableError, folder_of, plan_publication

__all__ = ["CardOptions", "PublishResult", "UnpublishableError", "plan_publication", "publish"]

MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_AGAIN = (
    "A commit is made as a whole or not at all: run the same command again, which finds out, and sends what is "
    "missing, nothing twice"
)


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """Outcome of a publication.

    Attributes:
        repo_id: The repository, with its owner.
        url: Its address.
        commit: The new commit; None where nothing differed, and for a dry run.
        head: The newest commit of the branch after it; None: there is none.
        sent: Paths that were sent, or would be.
        unchanged: Paths that the repository had already.
        removed: Weights of an earlier publication that were taken away, since they would be loaded beside the new.
        notes: What the publisher should know.
        publication: What was sent.
    """

    repo_id: str
    url: str
    commit: str | None
    head: str | None
    sent: Sequence[str]
    unchanged: Sequence[str]
    removed: Sequence[str]
    notes: Sequence[str]
    publication: Publication

    @property
    def oid(self) -> str | None:
        """The newest commit, by huggingface_hub's name for it."""
        return self.head

    @property
    def commit_url(self) -> str:
        """Address of the newest commit."""
        return f"{self.url.split('/tree/')[0]}/commit/{self.head}"


def publish(
    source: str | Path | VJEPAPreTrainedModel,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    card_options: CardOptions | None = None,
    replace_card: bool = False,
    with_plots: bool = False,
    extra_files: Sequence[str | Path] = (),
    processor: VJEPAVideoProcessor | None = None,
    api: HfApi | None = None,
) -> PublishResult:
    """Publish a model of the family, in one commit.

    Args:
        source: A folder of `pretrain`, `probe`, `finetune`, `convert` or `save_pretrained`; a model; or the name of
            one, as for `open_model`.
        repo_id: `owner/name`, or a name alone, of the token's account. The repository is made if it is missing.
        private: Make a new repository private.
        revision: Branch to commit to; made from main if it is missing.
        dry_run: Check all, compare with what is there, and send nothing.
        token: Of the Hub; by default that of `hf auth login` or HF_TOKEN.
        commit_message: Title of the commit.
        card_options: What the files do not say of the model.
        replace_card: Replace a card that was edited in the repository too.
        with_plots: Send the plots of the run too.
        extra_files: More files; they go beside the others by their names.
        processor: Of a model that is passed itself; by default that of its crop size.
        api: Client of the Hub, with its endpoint and token.

    Raises:
        UnpublishableError: The folder or its card has problems; all are named. A ValueError.
        HubAccessError: The name, token, rights or network do not allow it, or the server failed. An OSError.
        FileNotFoundError: The folder holds no model.
    """
    api = api or HfApi(token=token, library_name="vjepa_hub", library_version=__version__)
    repository = _Repository.open(api, repo_id, revision, private=private, is_dry_run=dry_run)
    with folder_of(source, processor) as folder:
        publication = plan_publication(
            folder,
            repository.repo_id,
            card_options=card_options,
            with_plots=with_plots,
            extra_files=extra_files,
        )
        publication = repository.merge_card(publication, replace_card=replace_card)
        if publication.problems and not dry_run:
            raise UnpublishableError(
                folder if isinstance(source, VJEPAPreTrainedModel) else source, publication.problems
            )
        message = commit_message or f"Publish a {publication.run.kind} model by vjepa_hub {__version__}"
        return repository.send(publication, message, is_dry_run=dry_run)


@dataclass(frozen=True, kw_only=True)
class _Repository:
    """A repository as it was found.

    Attributes:
        api: Client.
        repo_id: With its owner.
        branch: That is written to.
        is_private: For a new one.
        commit: Newest of the branch, or of main where there is no such branch; None: there is no repository.
        has_branch: Whether the branch is there.
        files: What it holds, by path.
        notes: What could not be found out, in a dry run.
    """

    api: HfApi
    repo_id: str
    branch: str
    is_private: bool
    commit: str | None = None
    has_branch: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @classmethod
    def open(cls, api: HfApi, repo_id: str, revision: str | None, *, private: bool, is_dry_run: bool) -> "_Repository":
        """Find out, by requests that change nothing, whether the repository can be written to."""
        _check_repo_id(repo_id)
        branch = revision or MAIN
        if _COMMIT.fullmatch(branch):
            raise HubAccessError(f"the revision {branch} is a commit, which nothing can be added to; name a branch")
        new = cls(api=api, repo_id=repo_id, branch=branch, is_private=private)
        try:
            return new._identified()._found()
        except HubUnavailableError as error:
            if not is_dry_run:
                raise
            return replace(new, notes=[f"not compared with the repository: {error}"])

    @property
    def url(self) -> str:
        address = f"{self.api.endpoint}/{self.repo_id}"
        return address if self.branch == MAIN else f"{address}/tree/{self.branch}"

    def _identified(self) -> "_Repository":
        """With the owner's name, after a look at the token."""
        if self.api.token is False:
            raise HubUnavailableError(f"could not publish to {self.repo_id}: {NO_TOKEN}")
        with hub_errors(f"publish to {self.repo_id}"):
            account = self.api.whoami()
        role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise HubAccessError(
                f"could not publish to {self.repo_id}: the token of {account['name']} may only read; make one with "
                "the role write at https://huggingface.co/settings/tokens"
            )
        repo_id = self.repo_id if "/" in self.repo_id else f"{account['name']}/{self.repo_id}"
        owners = [account["name"], *(entry["name"] for entry in account.get("orgs") or [])]
        if repo_id.split("/")[0] not in owners:
            raise HubAccessError(
                f"could not publish to {repo_id}: the token belongs to {account['name']}, who may write to "
                f"{', '.join(f'{owner}/...' for owner in owners)}; name one of these, or log in as another account"
            )
        return replace(self, repo_id=repo_id)

    def _found(self) -> "_Repository":
        """With what the repository holds."""
        with hub_errors(f"look at {self.repo_id}"):
            try:
                info = self.api.model_info(self.repo_id, files_metadata=True)
            except RepositoryNotFoundError:
                self._require_no_other_type()
                return self
            if self.is_private and not info.private:
                raise HubAccessError(
                    f"{self.repo_id} is there and public, but a private one was asked for; make it private in its "
                    "settings first, or take another name"
                )
            has_branch = True
            if self.branch != MAIN:
                try:
                    info = self.api.model_info(self.repo_id, revision=self.branch, files_metadata=True)
                except RevisionNotFoundError:
                    has_branch = False
        files = {file.rfilename: file for file in info.siblings or []}
        return replace(self, commit=info.sha, has_branch=has_branch, files=files)

    def _require_no_other_type(self) -> None:
        for kind in ("dataset", "space"):
            if self.api.repo_exists(self.repo_id, repo_type=kind):
                raise HubAccessError(
                    f"{self.repo_id} is a {kind} on the Hub, not a model; give the model another name"
                )

    def merge_card(self, publication: Publication, *, replace_card: bool) -> Publication:
        """The publication with a card that keeps what a person wrote in the repository."""
        if CARD_FILE not in self.files or replace_card:
            return publication
        with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as cache, hub_errors(f"read the card of {self.repo_id}"):
            file = self.api.hf_hub_download(self.repo_id, CARD_FILE, revision=self.commit, cache_dir=cache)
            present = PublishedFile(CARD_FILE, Path(file).read_bytes())
        try:
            merged = complete_card(present.read_text(), publication.card)
        except ValueError as error:
            raise UnpublishableError(self.repo_id, [f"{CARD_FILE} of the repository: {error}"]) from error
        if merged == publication.card:
            return publication
        note = f"{CARD_FILE} was written or edited in the repository: its prose stays, its metadata are completed"
        return publication.with_card(merged, notes=[note])

    def send(self, publication: Publication, message: str, *, is_dry_run: bool) -> PublishResult:
        """Commit what differs, if anything does."""
        is_there = {
            file.path: file.path in self.files and file.is_same_as(self.files[file.path]) for file in publication.files
        }
        paths = [file.path for file in publication.files]
        removed = sorted(name for name in self.files if _WEIGHTS.fullmatch(name) and name not in paths)
        sent = [path for path in paths if not is_there[path]]
        commit = None
        if (sent or removed) and not is_dry_run:
            changed = [file for file in publication.files if file.path in sent]
            commit = self._commit(changed, removed, message)
        return PublishResult(
            repo_id=self.repo_id,
            url=self.url,
            commit=commit,
            head=commit or self.commit,
            sent=sent,
            unchanged=[path for path in paths if is_there[path]],
            removed=removed,
            notes=[*self.notes, *publication.notes],
            publication=publication,
        )

    def _commit(self, changed: Sequence[PublishedFile], removed: Sequence[str], message: str) -> str:
        additions = [CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.content) for file in changed]
        deletions = [CommitOperationDelete(path_in_repo=path) for path in removed]
        self._make_ready()
        with hub_errors(f"publish to {self.repo_id}", after=_AGAIN):
            made = self.api.create_commit(
                self.repo_id,
                [*additions, *deletions],
                commit_message=message,
                revision=self.branch,
                parent_commit=self.commit,
            )
        return made.oid

    def _make_ready(self) -> None:
        """Make what is missing of repository and branch; both stay empty until the commit."""
        if self.commit is None:
            with hub_errors(f"make the repository {self.repo_id}"):
                self.api.create_repo(self.repo_id, private=self.is_private or None, exist_ok=True)
        if not self.has_branch and self.branch != MAIN:
            with hub_errors(f"make the branch {self.branch} of {self.repo_id}"):
                self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubAccessError(
            f"'{repo_id}' is no name of a repository ({error}); give owner/name, of letters, digits, '-', '_' and '.'"
        ) from error
