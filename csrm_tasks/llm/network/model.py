"""Loading a base model, putting LoRA on it, and getting it off again (A5, A14)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrm_tasks.base_models import base_digest, pretrained
from csrm_tasks.errors import ArtifactError, ConfigError
from csrm_tasks.file_state import folder_digest
from csrm_tasks.llm.network.head import check_read_out
from csrm_tasks.llm.network.identity import other_base, read_card, read_pretraining
from csrm_tasks.llm.network.shard import shard_layers
from csrm_tasks.llm.prompt.encoding import PromptEncoder
from csrm_tasks.llm.prompt.label_tokens import label_ids
from csrm_tasks.llm.prompt.prompts import LABEL_SPACES, TASK_SPACES, ProductFields, QueryFields
from csrm_tasks.sections import Lora
from csrm_tasks.training.precision import cast, choose_device, choose_dtype


@dataclass
class Model:
    """A causal LM on its device, with its tokenizer and label rows.

    ``causal`` is the Hugging Face model itself; with LoRA, ``peft`` is its wrapper, which is used
    to save and load adapters only (its forward is not on the hot path).
    """

    causal: Any
    tokenizer: Any
    labels: dict[str, Tensor]  # label space → token ids (K,)
    device: torch.device
    dtype: torch.dtype
    base: str  # as in the market file
    base_digest: str
    pretraining: str = ""  # digest of the stage 0 that is merged into the base; "": none
    peft: Any = None

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16`` as recorded with a model."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def load_base(
    base: str,
    *,
    sharded: bool = False,
    dtype: torch.dtype | None = None,
    pretraining: Path | None = None,
) -> Model:
    """Load ``base`` (folder or hub name) from safetensors and check that labels can be read out.

    ``dtype``: of its weights; by default the one that pays on this machine (A13). ``sharded``: each
    of the processes that train together keeps a slice of it. On its way to the device it is mapped
    from its files, not read: the processes of a machine share one copy there, if the files have the
    number format that it is used in. ``pretraining``: the folder of stage 0's adapter, which is
    merged into it, in fp32.

    Raises :class:`ConfigError` where it cannot be loaded, splits a label (A1) or transforms its
    logits; :class:`ArtifactError` where stage 0 was done on another base.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = pretrained(base)
    device = choose_device()
    try:
        width = AutoConfig.from_pretrained(**source).hidden_size
        dtype = dtype or choose_dtype(device, width)
        causal = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (OSError, ValueError) as e:
        reason = str(e).strip().split("\n")[0]
        raise ConfigError(f"llm.base {base!r} cannot be loaded: {reason}") from e
    causal.eval().requires_grad_(False)
    digest = base_digest(base)
    if pretraining is not None:
        _check_pretraining(pretraining, base, digest)
        causal = _merged(causal, pretraining, dtype)
    if sharded:
        shard_layers(causal, device)
    else:
        causal.to(device)
    labels = {
        space.name: torch.tensor(label_ids(tokenizer, space), device=device)
        for space in (LABEL_SPACES | TASK_SPACES).values()
    }
    stage0 = "" if pretraining is None else folder_digest(pretraining)
    model = Model(causal, tokenizer, labels, device, dtype, base, digest, stage0)
    _check(model)
    return model


def _check_pretraining(folder: Path, base: str, digest: str) -> None:
    card = read_pretraining(folder)
    if card.base_digest != digest:
        raise ArtifactError(
            f"{folder}: stage 0 was done on another base ({card.base!r}, {card.base_digest[:12]}) "
            f"than the {base!r} here ({digest[:12]}); run pretrain_llm again, or restore that base"
        )


def _check(model: Model) -> None:
    encoder = PromptEncoder(model.tokenizer, max_length=64)
    for space in LABEL_SPACES.values():
        ids = encoder.prompt(space, QueryFields("water"), ProductFields("water 500ml"))
        probe = torch.from_numpy(ids).long()[None].to(model.device)
        check_read_out(model.causal, probe)


def add_lora(model: Model, config: Lora, seed: int) -> None:
    """Put a fresh LoRA on the model (A5, A17); the adapter is fp32 and the only trainable part.

    Raises :class:`ConfigError` where the base has no layers of the configured names, or where they
    are the embeddings: the label rows are read from these weights, past any adapter on them.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from csrm_tasks.llm.network.lora import compute_in_bf16

    targets = config.targets
    torch.manual_seed(seed)
    try:
        model.peft = get_peft_model(
            model.causal,
            LoraConfig(
                r=config.r,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                use_rslora=config.rslora,
                target_modules=targets if isinstance(targets, str) else list(targets),
                task_type="CAUSAL_LM",
            ),
        )
        # peft writes down where the base lies on this machine; the market file's name is portable
        model.peft.peft_config["default"].base_model_name_or_path = model.base
    except ValueError as e:
        reason = str(e).split(". ")[0]
        raise ConfigError(f"llm.lora.targets does not fit the base model: {reason}") from e
    rows = (model.causal.get_input_embeddings(), model.causal.get_output_embeddings())
    if any(isinstance(layer, BaseTunerLayer) for layer in rows):
        raise ConfigError(
            f"llm.lora.targets {targets!r} takes in the embeddings, whose rows the "
            "labels are read from; name layers of the trunk only"
        )
    compute_in_bf16(model.causal)


def checkpoint_activations(causal: Any) -> None:
    """Keep only each layer's input for the backward pass, and compute the rest again there.

    Not the last layer: its feed-forward part runs on a few tokens only, by a hook that is gone
    when the backward pass comes (``packed.run_packed``), and its memory is one layer's.
    """
    causal.gradient_checkpointing_enable({"use_reentrant": False})
    causal.base_model.layers[-1].gradient_checkpointing = False


def adapter_state(model: Model) -> dict[str, Tensor]:
    """Return a copy of the adapter's weights, on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model.peft)
    return {k: v.detach().cpu().clone() for k, v in state.items()}


def start_from(model: Model, folder: Path) -> None:
    """Give the adapter the weights of a trained model's, ``folder`` with ``llm.json``, as a start.

    Raises :class:`ConfigError` where that was trained on another base or is a LoRA of another
    shape.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    card = read_card(folder)
    if what := other_base(card, model):
        raise ConfigError(
            f"llm.warm_start: the live adapter {folder} is one of another {what} than this "
            f"market's (of {card.base!r}, here {model.base!r}); set it to none for the first "
            "training on another"
        )
    given: Any = PeftConfig.from_pretrained(str(folder / "adapter"))
    own = model.peft.peft_config["default"]
    for key, read in _SHAPE.items():
        if read(given) != read(own):
            raise ConfigError(
                f"llm.warm_start: the live adapter {folder} has {key} {read(given)}, this market "
                f"{read(own)}; set it to none for the first training with another llm.lora"
            )
    set_adapter_state(model, load_file(str(folder / "adapter" / "adapter_model.safetensors")))


_SHAPE: dict[str, Callable[[Any], object]] = {  # of a LoRA: what its weights mean
    "rank": lambda config: config.r,
    "alpha": lambda config: config.lora_alpha,
    "rslora": lambda config: config.use_rslora,
    "targets": lambda config: sorted(config.target_modules),
}


def set_adapter_state(model: Model, state: dict[str, Tensor]) -> None:
    """Put weights from :func:`adapter_state` back."""
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model.peft, state)
    if result.unexpected_keys:
        raise ArtifactError(
            f"adapter has a weight {result.unexpected_keys[0]!r} unknown to llm.base"
        )


def save_adapter(model: Model, state: dict[str, Tensor], folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, peft's own layout."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.peft.peft_config["default"].save_pretrained(str(folder))
    save_file(state, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def merge_adapter(model: Model, folder: Path) -> None:
    """Load the adapter of ``folder`` and merge it into the base weights, in fp32 (A14)."""
    model.causal = _merged(model.causal, folder, model.dtype)


def _merged(causal: Any, folder: Path, dtype: torch.dtype) -> Any:
    cast(causal, torch.float32)
    merged = _with_adapter(causal, folder).merge_and_unload()
    cast(merged, dtype)
    return merged.eval().requires_grad_(False)


def put_adapter(model: Model, folder: Path) -> None:
    """Load the adapter of ``folder`` beside the base weights, as in training."""
    from csrm_tasks.llm.network.lora import compute_in_bf16

    model.peft = _with_adapter(model.causal, folder).eval()
    compute_in_bf16(model.causal)


def _with_adapter(causal: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(causal, str(folder))
    except (ValueError, RuntimeError, OSError) as e:
        reason = str(e).strip().split("\n")[0]
        raise ArtifactError(f"adapter {folder} does not fit its base model: {reason}") from e
