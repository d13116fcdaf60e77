"""Heads on frozen features: the paper's attentive probe, and average pooling with a linear layer.

Both take the tokens of a video, of all its segments one after the other, and are in float32. They start from the
model's own rules of initialisation, under which the depth rescaling of the probe's MLP is in effect (as released).

Shapes: B videos, N tokens, D features.
"""

import copy
from typing import Literal, cast

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from ..core.settings import Settings
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAAttentivePooler, VJEPAForVideoClassification, VJEPAPreTrainedModel

Pooling = Literal["attentive", "average"]


class HeadSettings(Settings):
    """One of the heads that are trained side by side.

    Args:
        pooling: "attentive", the paper's probe, or "average", the mean of all tokens.
        learning_rate: At the first step.
        weight_decay: At the first step.

    Raises:
        SettingsError: An unknown pooling, a rate that is not positive, or a negative decay.
    """

    pooling: Pooling
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat

    def __str__(self) -> str:
        return f"{self.pooling}, learning rate {self.learning_rate:g}, weight decay {self.weight_decay:g}"


class AttentiveHead(VJEPAPreTrainedModel):
    """The paper's probe: one learned query that attends to all tokens, then a linear layer (Bardes et al. 2024, 4.1).

    The probes of V-JEPA 2 and 2.1 have three blocks of self-attention over the tokens before.

    Args:
        config: Width, heads, number of pooler layers and of labels are read.
    """

    def __init__(self, config: VJEPAConfig):
        super().__init__(config)
        self.pooler = VJEPAAttentivePooler(config)
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()

    @classmethod
    def of_classifier(cls, model: VJEPAForVideoClassification) -> "AttentiveHead":
        """The probe of a classifier, without its encoder; the weights are shared."""
        with torch.device("meta"):
            head = cls(model.config)
        head.pooler, head.classifier = model.pooler, model.classifier
        return head.eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Classify tokens, `(batch_size, num_tokens, hidden_size)`; logits `(batch_size, num_labels)`."""
        return self.classifier(self.pooler(tokens))


class AverageHead(nn.Module):
    """The mean of all tokens, then a linear layer: the comparison of the paper's table on pooling.

    Args:
        config: Width, number of labels and the deviation of the first weights are read.
    """

    def __init__(self, config: VJEPAConfig):
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        nn.init.trunc_normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Classify tokens, `(batch_size, num_tokens, hidden_size)`; logits `(batch_size, num_labels)`."""
        return self.classifier(tokens.mean(1))


def build_head(
    pooling: Pooling,
    *,
    hidden_size: int,
    num_attention_heads: int,
    num_pooler_layers: int = 1,
    num_classes: int,
    seed: int,
) -> AttentiveHead | AverageHead:
    """A head with its first weights, a function of the seed.

    Args:
        pooling: Which.
        hidden_size: Width of the tokens.
        num_attention_heads: Of the attentive probe; the encoder's number in V-JEPA, 16 in V-JEPA 2 and 2.1.
        num_pooler_layers: Of the attentive probe, as `VJEPAConfig` counts them.
        num_classes: Logits.
        seed: Of the first weights. torch's global generators are left as they were.
    """
    config = VJEPAConfig(
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        num_pooler_layers=num_pooler_layers,
        num_labels=num_classes,  # type: ignore[call-arg]  # a keyword of every configuration
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return AttentiveHead(config) if pooling == "attentive" else AverageHead(config)


def attach_head(
    head: AttentiveHead, encoder: nn.Module, config: VJEPAConfig, class_names: tuple[str, ...] | None
) -> VJEPAForVideoClassification:
    """A classifier of an encoder and the probe that was trained on it, for `save_pretrained` and pipelines.

    Args:
        head: The probe.
        encoder: The `VJEPAEncoder`; its weights are copied as they are.
        config: Of the encoder's model; it is copied, with the classes of the head.
        class_names: Names of the classes. None: LABEL_0, LABEL_1, ...

    Raises:
        ValueError: The probe is for another width than the encoder's.
    """
    if head.config.hidden_size != config.hidden_size:
        raise ValueError(
            f"the probe is for tokens of width {head.config.hidden_size}, but the encoder's have "
            f"{config.hidden_size}; take the encoder that the probe was trained on"
        )
    own = copy.deepcopy(config)
    own.num_pooler_layers = head.config.num_pooler_layers
    own.num_pooler_heads = head.config.num_pooler_heads or head.config.num_attention_heads
    own.pooler_mlp_ratio = head.config.pooler_mlp_ratio
    own.num_labels = cast(int, head.config.num_labels)
    if class_names is not None:
        own.id2label = dict(enumerate(class_names))
        own.label2id = {name: number for number, name in enumerate(class_names)}
    with torch.device("meta"):
        model = VJEPAForVideoClassification(own)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    state |= {name: value.detach().cpu() for name, value in head.state_dict().items()}
    model.load_state_dict({name: value.cpu() for name, value in state.items()}, assign=True)
    return model.eval()
