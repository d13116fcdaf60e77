"""The pretraining recipe on transformers' Trainer.

What the recipe adds to it: the global order of clips and their masks, the scheduled weight decay and EMA momentum,
clipping by part, checkpoints that a kill cannot break, a stop at a loss that is not finite, measures of health, and
the published form of what was trained.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import HubStrategy, get_last_checkpoint, rotate_checkpoints

from ..core.checkpoints import require_readable
from ..core.distributed import join_processes
from ..core.files import folder_written_whole
from ..core.run_files import RunFile
from ..data.clip_order import ClipOrder, ClipRequest
from ..data.collation import CLIP_KEYS, MASK_KEYS, MaskCollator, model_inputs
from ..data.loader import ProcessBatches, require_place, with_positions
from ..data.masking import LONG_RANGE, SHORT_RANGE, MaskKind, TokenGrid
from ..data.quarantine import FailureShare, KilledWorkerError
from ..data.streaming import ClipStream
from ..hub.default_processor import default_processor
from ..model.configuration_vjepa import VJEPAConfig
from ..model.modeling_vjepa import VJEPAForPreTraining, as_mask_list
from ..publishing.card import CardOptions, write_card
from ..publishing.publishing import publish
from .arguments import CHECKPOINTING, VJEPATrainingArguments
from .callbacks import HealthCallback
from .checkpoints import INCOMPLETE, find_checkpoint, save_published, trained_origin
from .ema import TargetEncoderCallback
from .estimate import step_flops
from .finite import FiniteWatch, NonFiniteLossError
from .initial import begin_with
from .objectives import prediction_loss
from .optimizer import RecipeScheduler, clip_by_part, parameter_groups
from .probe import OnlineProbe
from .run_record import measured, record_training

logger = logging.getLogger(__name__)

# What transformers' Trainer takes and a pretraining has no use for
_NOT_TAKEN = {
    "model_init": "pass model=model_init(): trials would be compared by the loss, which falls in a collapse",
    "compute_loss_func": "the loss is the paper's, or the one that args.objective names",
    "compute_metrics": "no predictions are gathered: measures beside the loss are health's, or those of probe=",
    "preprocess_logits_for_metrics": "no predictions are gathered: measures beside the loss are those of probe=",
}
# Health is measured on clips of the data set that the run itself comes to in no realistic time
HEALTH_POSITION = 1 << 40


class VJEPATrainer(Trainer):
    """Pretrains a `VJEPAForPreTraining`.

    Args:
        model: Encoder, predictor and target encoder.
        args: The recipe's numbers.
        train_dataset: A `VideoClipDataset`, a `ClipStream`, or any map-style data set whose items have
            `pixel_values_videos` (num_frames, channels, height, width), normalised.
        data_collator: Makes batches of its items. By default clips are augmented and get masks of `mask_kinds`. A
            batch that carries `context_mask` and `target_mask` is used as it is.
        mask_kinds: The kinds of masks, one for each mask token of the predictor.
        probe: Labelled clips to probe the target encoder with while it trains.
        data_description: Sentence on what it is trained on, for the model card.
        kwargs: What transformers' Trainer takes; `processing_class` is the model's video processor by default. An
            optimiser in `optimizers` follows the recipe's schedules if it is over `parameter_groups(model)`, or comes
            with a scheduler that is followed in their place.

    Raises:
        TypeError: `args` are no `VJEPATrainingArguments`.
        ValueError: Masks, model and arguments do not fit each other, or an argument is of no use to a pretraining.
    """

    args: VJEPATrainingArguments
    model: VJEPAForPreTraining
    train_dataset: Any
    eval_dataset: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: VJEPAForPreTraining,
        args: VJEPATrainingArguments,
        train_dataset: Any = None,
        data_collator: Callable[[list], dict] | None = None,
        *,
        mask_kinds: Sequence[MaskKind] = (SHORT_RANGE, LONG_RANGE),
        probe: OnlineProbe | None = None,
        data_description: str = "",
        **kwargs: Any,
    ):
        if not isinstance(args, VJEPATrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}, but has to be VJEPATrainingArguments")
        for name in kwargs:
            if name in _NOT_TAKEN and kwargs[name] is not None:
                raise ValueError(f"{name} was given, but VJEPATrainer has no use for it; {_NOT_TAKEN[name]}")
        _require_context_predictions(model.config, args)
        if model.config.image_tokenizer or model.config.modality_embeddings:
            # A process that has only images, or only video, leaves parameters of the other without a gradient
            args.ddp_find_unused_parameters = True
        self.mask_kinds, self.probe, self.data_description = tuple(mask_kinds), probe, data_description
        kwargs.setdefault("processing_class", default_processor(model.config))
        self._has_own_collator = data_collator is None
        if data_collator is None:
            data_collator = self._mask_collator(model.config, args, args.clips_per_step)
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        _refuse_first_fsdp(getattr(self.accelerator.state, "fsdp_plugin", None))
        self.health: HealthCallback | None = None
        self._order: ClipOrder | None = None
        self._norms: dict[str, torch.Tensor] = {}
        self._parts_of_loss: list[torch.Tensor] = []  # of each batch since the last log, (2,)
        reader = getattr(train_dataset, "reader", None)
        self._failures = FailureShare(args.max_bad_share, quarantine=getattr(reader, "quarantine", None))
        self._finite = FiniteWatch(args.device)
        self._is_writing_checkpoint = False
        self._push: Any = None
        record = record_training(args, self.mask_kinds, data=data_description)
        self.run_file = RunFile(self.output_dir, record, is_writer=self.is_world_process_zero())
        self.add_callback(_EpochCallback(self))
        if args.health_steps and train_dataset is not None:
            self.health = HealthCallback(
                self._health_batch, every=args.health_steps, log=self._log_beside, probe=probe
            )
            self.add_callback(self.health)

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return Path(str(self.args.output_dir))

    # ------------------------------------------------------------------------------------------------ data

    def _mask_collator(self, config: VJEPAConfig, args: VJEPATrainingArguments, clips_per_step: int) -> MaskCollator:
        in_worker = args.resize == "worker" or (args.resize == "auto" and args.device.type == "cpu")
        return MaskCollator(
            TokenGrid.from_config(config),
            self.mask_kinds,
            seed=args.data_draw_seed,
            clips_per_step=clips_per_step,
            resize_to=config.crop_size if in_worker else None,
        )

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process. Their order is a function of the seed and of the global position alone."""
        if self.train_dataset is None:
            raise ValueError("there is no train_dataset: pass one to VJEPATrainer")
        if isinstance(self.train_dataset, IterableDataset):
            return self._stream_loader(self.train_dataset)
        weights = getattr(self.train_dataset, "weights", None)
        self._order = ClipOrder(
            len(self.train_dataset),
            clips_per_step=self.args.clips_per_step,
            steps_per_epoch=self.args.steps_per_epoch,
            seed=self.args.data_draw_seed,
            weights=weights,
            is_shuffled=self.args.train_sampling_strategy != "sequential",
        )
        batches = ProcessBatches(
            self._order,
            batch_size=self._train_batch_size,
            rank=self.args.process_index,
            num_processes=self.args.world_size,
        )
        return DataLoader(with_positions(self.train_dataset), batch_sampler=batches, **self._loader_settings())

    def _stream_loader(self, stream: IterableDataset) -> DataLoader:
        batch_size, args = self._train_batch_size, self.args
        require_place(stream, batch_size=batch_size, rank=args.process_index, num_processes=args.world_size)
        return DataLoader(stream, batch_size=batch_size, **self._loader_settings())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Clips of the evaluation set in their order, the same at each call; block sizes are those of step 0."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # the name of one of several
            dataset = self.eval_dataset[dataset]
        if dataset is None:
            raise ValueError("there is no eval_dataset: pass one to VJEPATrainer, or to evaluate()")
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"the eval_dataset is a {type(dataset).__name__}, which has no end; evaluate on a VideoClipDataset"
            )
        batch_size, num_processes = self.args.eval_batch_size, self.args.world_size
        num_clips = math.ceil(len(dataset) / (batch_size * num_processes)) * batch_size * num_processes
        order = ClipOrder(len(dataset), clips_per_step=num_clips, seed=self.args.data_draw_seed, is_shuffled=False)
        batches = ProcessBatches(
            order, batch_size=batch_size, rank=self.args.process_index, num_processes=num_processes
        )
        settings = self._loader_settings()
        if self._has_own_collator:
            settings["collate_fn"] = self._mask_collator(self.model.config, self.args, num_clips)
        return DataLoader(with_positions(dataset), batch_sampler=batches, **settings)

    def _loader_settings(self) -> dict[str, Any]:
        args, num_workers = self.args, self.args.dataloader_num_workers
        silence = args.train_batch_size * getattr(getattr(self.train_dataset, "reader", None), "item_timeout", 0)
        return {
            "collate_fn": self.data_collator,
            "num_workers": num_workers,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
            "persistent_workers": args.dataloader_persistent_workers and num_workers > 0,
            "prefetch_factor": args.dataloader_prefetch_factor if num_workers > 0 else None,
            # A worker lives that gives up a silent video for each of its clips.
            "timeout": args.batch_timeout and args.batch_timeout + silence if num_workers > 0 else 0,
            "generator": torch.Generator().manual_seed(args.data_draw_seed),  # leaves torch's own alone
        }

    def _health_batch(self) -> dict[str, Any]:
        """The fixed clips and masks that health is measured on, on the device."""
        size = self.args.health_batch_size
        if isinstance(self.train_dataset, IterableDataset):
            stream = copy(self.train_dataset)
            stream.__dict__ |= {"batch_size": size, "rank": 0, "num_processes": 1, "_start_position": 0}
            samples = list(islice(stream, size))
        else:
            dataset, num_items = with_positions(self.train_dataset), len(self.train_dataset)
            samples = [dataset[ClipRequest(HEALTH_POSITION * size + i, i % num_items)] for i in range(size)]
        collator = self.data_collator
        if self._has_own_collator:
            collator = self._mask_collator(self.model.config, self.args, size)
        return self._prepare_inputs(collator(samples))

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the model, on its device: uint8 clips are resized, flipped and normalised there."""
        needed = {*CLIP_KEYS, "is_flipped", *MASK_KEYS}
        here = {name: _to_device(value, self.args.device) for name, value in inputs.items() if name in needed}
        return model_inputs(here, crop_size=self.model.config.crop_size)

    # ------------------------------------------------------------------------------------------------ step

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """The batches of one optimiser step.

        Raises:
            KilledWorkerError: A worker died, or was silent for too long, with what to do about it.
        """
        try:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
            raise KilledWorkerError(
                f"{error}. A video may have crashed or stalled its decoder: `vjepa-hub check-data` finds it; a slow "
                f"disk may take longer than batch_timeout, which is {self.args.batch_timeout} s"
            ) from error

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward pass of one batch. Counts its unreadable videos, and stops above the allowed share."""
        if "num_failures" in inputs:
            self._failures.add(inputs["num_failures"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._finite.watch(loss, self.state.global_step)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch=None
    ) -> Any:
        """The paper's objective, or the one that the arguments name, between predictions and targets."""
        outputs = model(**inputs, **self._context_loss_settings(inputs["pixel_values_videos"]))
        if outputs.context_loss is not None and model.training:
            self._parts_of_loss.append(torch.stack([outputs.target_loss, outputs.context_loss]).detach())
        loss = outputs.loss
        if self.args.objective != "l1":
            loss = prediction_loss(outputs.predictions, outputs.targets, self.args.objective)
        return (loss, outputs) if return_outputs else loss

    def _context_loss_settings(self, pixel_values_videos: torch.Tensor) -> dict[str, Any]:
        """Keywords of the forward pass for models that have a loss at the context tokens."""
        config, args = self.model.config, self.args
        if not config.pred_predicts_context:
            return {}
        is_image = config.image_tokenizer and pixel_values_videos.shape[1] == 1
        return {
            "context_loss_weight": args.context_loss_weight_at(self.state.global_step, is_image=is_image),
            "context_loss_by_distance": args.context_loss_by_distance,
        }

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of a batch of the evaluation set."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().mean(), None, None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not here: there are no labels to predict.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "VJEPATrainer predicts no labels; evaluate(dataset) gives the loss of a data set, extract_features its "
            "features, and the model's predict() those of hidden tokens"
        )

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """FLOPs of a batch, forward and backward pass, by the count of `--estimate`; transformers logs their sum.

        Its own count takes pixels for tokens, and needs clips of one size.
        """
        masks = (as_mask_list(name, inputs[name]) for name in ("context_mask", "target_mask"))
        counts = [(context.shape[1], targets.shape[1]) for context, targets in zip(*masks, strict=True)]
        flops = step_flops(
            self.model.config,
            counts,
            is_checkpointed=bool(getattr(self.args, CHECKPOINTING)),
            predicts_pixels=self.args.targets == "pixels",
        )
        return int(len(inputs.get("frames", inputs.get("pixel_values_videos"))) * flops.total)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or the optimiser of the arguments, over the recipe's four groups."""
        if self.optimizer is None:
            groups = parameter_groups(self.model if model is None else model)
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            optimizer_class, settings = chosen
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's curves; the target encoder follows from here on too, since only now the steps are known."""
        self.schedules = self.args.schedules(num_training_steps)
        if self.lr_scheduler is None:
            optimizer = self.create_optimizer() if optimizer is None else optimizer
            self.lr_scheduler = RecipeScheduler(optimizer, self.schedules)
            self._created_lr_scheduler = True
        self.remove_callback(TargetEncoderCallback)
        self.add_callback(TargetEncoderCallback(self.accelerator.unwrap_model(self.model), self.schedules))
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        steps_per_epoch = self._order.steps_per_epoch if self._order else self.args.steps_per_epoch or 0
        first_clipped = self.args.first_clipped_step(self.state.max_steps, steps_per_epoch)
        is_clipped = self.args.max_grad_norm > 0 and self.state.global_step >= first_clipped
        self.accelerator.unscale_gradients()
        trained = self.accelerator.unwrap_model(model)
        self._norms = clip_by_part(trained, self.args.max_grad_norm if is_clipped else float("inf"))
        total = torch.stack(list(self._norms.values())).norm()
        if self.accelerator.scaler is None:  # with one, an overflow of the gradients only skips the step
            self._finite.watch(total, self.state.global_step)
        return total

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        return self._clip_grad_norm(model) if grad_norm is None else grad_norm

    def require_finite(self) -> None:
        """Raise where a loss or gradient of the run so far was not finite.

        Raises:
            NonFiniteLossError: With the first such step, and the last good checkpoint.
        """
        first = nested_gather(self._finite.first_step(), self.args.parallel_mode).reshape(-1)
        bad = first[first >= 0]
        if len(bad) == 0:
            return
        kept = get_last_checkpoint(self.output_dir) if self.output_dir.is_dir() else None
        remedy = f"resume from {kept}" if kept else "start again"
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite at step {int(bad.min())} (counted from 0), so the run stops and "
            f"nothing after it is saved; {remedy} with a lower learning rate, with bf16 in place of fp16, or after "
            "looking at the clips of that step"
        )

    # ------------------------------------------------------------------------------------------------ logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does; beside each loss stand the recipe's own numbers of that step."""
        if "loss" in logs and "learning_rate" in logs:
            self.require_finite()
            step = self.state.global_step - 1
            if self._created_lr_scheduler:
                logs["weight_decay"] = self.schedules.weight_decay_at(step)
            logs["momentum"] = self.schedules.momentum_at(step)
            logs |= self._take_parts_of_loss(step)
            logs |= {f"{part}_grad_norm": norm.item() for part, norm in self._norms.items()}
            if self._failures.num_failures:
                logs["bad_videos"] = self._failures.num_failures
        super().log(logs, start_time)

    def _take_parts_of_loss(self, step: int) -> dict[str, float]:
        """Loss at targets and at context tokens, the mean since the last log over all processes, and its weight."""
        if not self._parts_of_loss:
            return {}
        parts = torch.stack(self._parts_of_loss).mean(dim=0)
        self._parts_of_loss = []
        target_loss, context_loss = nested_gather(parts, self.args.parallel_mode).reshape(-1, 2).mean(dim=0).tolist()
        weight = self.args.context_loss_weight_at(step)
        logs = {"target_loss": target_loss, "context_loss": context_loss, "context_loss_weight": weight}
        if self.args.image_context_loss_weight is not None:
            logs["image_context_loss_weight"] = self.args.context_loss_weight_at(step, is_image=True)
        return logs

    def _log_beside(self, logs: dict[str, float]) -> None:
        """Log in the course of a step, without its own log being taken for done."""
        should_log = self.control.should_log
        self.log(logs)
        self.control.should_log = should_log

    # ------------------------------------------------------------------------------------------------ checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint=True` from the newest checkpoint of the output folder.

        Raises:
            CheckpointError: The checkpoint lacks a part, or has a damaged one.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(find_checkpoint(self.output_dir))
        if resume_from_checkpoint:
            join_processes().from_first(partial(require_readable, resume_from_checkpoint))
        if resume_from_checkpoint and self._failures_file(resume_from_checkpoint).is_file():
            self._failures.load_state_dict(json.loads(self._failures_file(resume_from_checkpoint).read_text()))
        if resume_from_checkpoint and isinstance(self.train_dataset, ClipStream):
            state = _read_state(resume_from_checkpoint)
            self.train_dataset.start_position = state.global_step * self.args.clips_per_step
            self.args.ignore_data_skip = True  # the stream goes on by itself, without decoding what it passes
        if resume_from_checkpoint:
            self._require_steps_left(Path(resume_from_checkpoint))
        elif self.args.initial_checkpoint:
            begin_with(self.model, self.args.initial_checkpoint)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        self.require_finite()
        return result

    def load_initial_optimizer(self) -> None:
        """Take the optimiser's state of `initial_checkpoint`, where it has one, under the schedules of this run.

        Raises:
            CheckpointError: The checkpoint lacks a part, or has a damaged one.
        """
        initial = self.args.initial_checkpoint
        if not initial or next(Path(initial).glob("optimizer*"), None) is None:
            return
        join_processes().from_first(partial(require_readable, initial))
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        beginning = self.lr_scheduler.state_dict()
        self._load_optimizer_and_scheduler(initial)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self.lr_scheduler.load_state_dict(beginning)

    def _require_steps_left(self, checkpoint: Path) -> None:
        """Refuse a finished run, of which transformers would train one more step."""
        state = _read_state(checkpoint)
        max_steps = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        if state.global_step >= max_steps:
            raise ValueError(
                f"{checkpoint} is at step {state.global_step} of {max_steps}: there is nothing left to train; set "
                "max_steps higher for a longer run, or load what was published in the folder above"
            )

    def _failures_file(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / f"failures-{self.args.process_index}.json"

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(self._checkpoint_parent) if self._is_writing_checkpoint else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.require_finite()
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        wait = self.accelerator.wait_for_everyone
        workplace = folder.with_name(INCOMPLETE)
        with folder_written_whole(folder, workplace, is_writer=self.args.should_save, wait=wait) as temporary:
            with self._writing_below(temporary.parent):
                super()._save_checkpoint(model, trial)
            self._failures_file(temporary).write_text(json.dumps(self._failures.state_dict()))
        if self.args.should_save:
            rotate_checkpoints(output_dir=str(folder.parent), save_total_limit=self.args.save_total_limit)
        if self.args.push_to_hub:
            self._push_progress()

    @contextmanager
    def _writing_below(self, parent: Path) -> Iterator[None]:
        self._checkpoint_parent, self._is_writing_checkpoint = parent, True
        try:
            yield
        finally:
            self._is_writing_checkpoint = False

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from the unfinished folder: `_push_progress` follows."""

    def _push_progress(self) -> None:
        """Publish what has been trained so far, unless only the end is to be published."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.model.config.weights_origin = trained_origin(self.state.global_step)
        if self._is_writing_checkpoint:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self._finish_current_push()
            folder = Path(output_dir or self.output_dir)
            model = self.accelerator.unwrap_model(self.model)
            save_published(folder, model.config, model.state_dict() if state_dict is None else state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish what was trained so far, with its processor, recipe, log and card: what `vjepa-hub publish` sends.

        Args:
            commit_message: Title of the commit.
            blocking: Whether to wait until it is published.
            token: Of the Hub; by default `hub_token`.
            revision: Branch; by default `hub_revision`.
            private: Make a new repository private; by default `hub_private_repo`.
            kwargs: Not used: the card is this package's own.

        Returns:
            A `PublishResult`, or without `blocking` its future; None in all processes but the first.

        Raises:
            UnpublishableError: The card or a file has problems; all are named.
            HubAccessError: The name, token, rights or network do not allow it, or the server failed.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        token = token or self.args.hub_token
        send = partial(
            publish,
            self.output_dir,
            self.hub_model_id or self.args.hub_model_id or self.output_dir.resolve().name,
            private=bool(self.args.hub_private_repo if private is None else private),
            token=token,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            card_options=CardOptions(requires_license=False),
        )
        if blocking:
            return send()
        self._push = HfApi(token=token).run_as_future(send)
        return self._push

    def _finish_current_push(self) -> None:
        """Wait for a publication that is under way, since its files must not change meanwhile; its errors come up."""
        if self._push is not None:
            push, self._push = self._push, None
            push.result()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write `run.json` and the card of the published model, unless a person wrote one there."""
        if self.is_world_process_zero():
            self.run_file.update(**measured(self.state, self.health.warnings if self.health else []))
            write_card(self.output_dir, self.args.hub_model_id or self.output_dir.resolve().name)


class _EpochCallback(TrainerCallback):
    """Begins a run with its optimiser's first state, and tells the global order which epoch begins.

    transformers tells only loaders that accelerate has wrapped.
    """

    def __init__(self, trainer: VJEPATrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self.trainer.load_initial_optimizer()

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        order = self.trainer._order
        if order is not None:
            order.set_epoch(state.global_step // order.steps_per_epoch)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.device.type == "cpu" and args.world_size == 1:  # there is no device to wait for
            self.trainer.require_finite()


def _read_state(checkpoint: str | Path) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))


def _refuse_first_fsdp(plugin: Any) -> None:
    """FSDP1 flattens weights into one vector, in which encoder and predictor cannot be clipped apart."""
    version = 2 if plugin is None else getattr(plugin, "fsdp_version", 1)
    if version != 2:
        raise ValueError(
            f"fsdp_version is {version}, but encoder and predictor are clipped apart, which takes FSDP2: set "
            "fsdp_version to 2 in accelerate's configuration, as in vjepa_hub/pretraining/launch/fsdp2.yaml"
        )


def _require_context_predictions(config: VJEPAConfig, args: VJEPATrainingArguments) -> None:
    """Refuse a loss at context tokens that the model has not, and objectives that this loss has not."""
    weights = {name: getattr(args, name) for name in ("context_loss_weight", "image_context_loss_weight")}
    for name, weight in weights.items():
        if weight and not config.pred_predicts_context:
            raise ValueError(
                f"{name} is {weight}, but the model predicts no context tokens; leave it out, or set "
                "pred_predicts_context=True in its configuration, as in V-JEPA 2.1"
            )
    if config.pred_predicts_context and args.objective != "l1":
        raise ValueError(
            f"objective is '{args.objective}', but a model that predicts context tokens too is trained with l1"
        )


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return [_to_device(entry, device) for entry in value]
