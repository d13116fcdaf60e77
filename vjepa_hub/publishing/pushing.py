"""`push_to_hub` of the family's models: the same repository as `publish` makes of a saved folder.

transformers' own method sends neither processor nor a card that says anything.
"""

import logging
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..hub.default_processor import default_processor
from ..model.modeling_vjepa import VJEPAForVideoClassification, VJEPAPreTrainedModel

if TYPE_CHECKING:
    from .publishing import PublishResult

logger = logging.getLogger(__name__)

NO_LICENSE = (
    "%s is published without a licence, so that nobody may use it; name one in its card, or publish by "
    "`vjepa-hub publish --license ...`"
)


def push_to_hub(
    model: VJEPAPreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
) -> "PublishResult":
    """Publish the model with its processor, the code for remote loading and a card, in one commit.

    Args:
        model: The model.
        repo_id: `owner/name`, or a name alone, of the token's account.
        commit_message: Title of the commit.
        commit_description: More on it; it is joined to the title.
        private: Make a new repository private.
        token: Of the Hub; by default that of `hf auth login` or HF_TOKEN.
        revision: Branch to commit to; made if it is missing.
        create_pr: Not supported: name a branch instead.
        max_shard_size: Of a file of weights.
        tags: More tags for the card.

    Returns:
        What was sent; `oid` and `commit_url` are as in huggingface_hub's `CommitInfo`.

    Raises:
        ValueError: `create_pr`, or a model that cannot be published; the message names all problems.
        HubAccessError: The name, token, rights or network do not allow it, or the server failed. An OSError.
    """
    from .card import read_card
    from .publishing import CardOptions, publish

    if create_pr:
        raise ValueError("create_pr is True, but models are published to a branch; name it (revision=...)")
    options = CardOptions(tags=tuple(tags or ()), requires_license=False)
    with tempfile.TemporaryDirectory(prefix="vjepa_hub-") as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        is_classifier = isinstance(model, VJEPAForVideoClassification)
        default_processor(model.config, is_classifier=is_classifier).save_pretrained(folder)
        result = publish(
            folder,
            repo_id,
            private=bool(private),
            token=token if isinstance(token, str) else None,
            revision=revision,
            commit_message=". ".join(filter(None, (commit_message, commit_description))) or None,
            card_options=options,
        )
    if read_card(result.publication.card).data.license is None:
        logger.warning(NO_LICENSE, result.repo_id)
    return result


def publish_when_pushed() -> None:
    """Give the models of the family this method in place of transformers' own."""
    VJEPAPreTrainedModel.push_to_hub = push_to_hub  # type: ignore[assignment]
