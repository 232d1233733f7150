"""Training the embedding-based retriever (A22, A23): one trainer for RQA and RQA*.

A step's batch (:mod:`csrm_tasks.retrieval.batches`) depends on (seed, step) alone and dropout is
seeded per step, so a run that was killed goes on from its last checkpoint to the very same weights.
Every distinct text of a step is encoded once, in chunks of like length; all titles of the step are
everybody's candidates, minus the pairs known of the same query.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from csrm_tasks.retrieval.batches import Batch, draw
from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.gradcache import GradCache
from csrm_tasks.retrieval.losses import (
    contrastive_loss,
    false_negatives,
    margin_mse_loss,
    mse_loss,
    within_query_kl,
)
from csrm_tasks.retrieval.pairs import Rows, TrainingPairs
from csrm_tasks.retrieval.tokenised import TokenisedTexts
from csrm_tasks.sections import Ebr

log = logging.getLogger("csrm")

CHECKPOINT_SECONDS = 60.0
WARMUP = 0.06  # share of the steps
WEIGHT_DECAY = 0.01
CLIP = 1.0
LINES = 10  # progress lines of a run
CHUNK = 64  # texts encoded together
CACHE_ABOVE = 1024  # pairs and pool of a step above which gradients are cached, to bound memory


class EbrTrainer:
    """Trains ``model`` in place; ``work`` keeps the checkpoint of this very run."""

    def __init__(
        self, model: BiEncoder, data: TrainingPairs, config: Ebr, seed: int, work: Path
    ) -> None:
        self.model, self.data, self.config, self.seed = model, data, config, seed
        self._queries = model.tokenise(data.queries)
        self._titles = model.tokenise(data.titles)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.lr, weight_decay=WEIGHT_DECAY
        )
        self._cache = GradCache(model)
        self._masked = 0.0  # share of the last batch's negatives that were held to be false ones
        self._checkpoint = work / "ebr.safetensors"
        self.names = ["contrastive", "mse"]
        if config.within_query:
            self.names.append(config.within_query)
        if config.false_negative is not None:
            self.names.append("masked")
        self.losses = torch.zeros(config.steps, len(self.names))  # of every step
        self.step = 0

    def run(self) -> None:
        """Train to the last step, from the checkpoint where there is one."""
        self.restore()
        saved = time.monotonic()
        every = max(1, self.config.steps // LINES)
        self.model.train()
        while self.step < self.config.steps:
            self.losses[self.step] = self._update()
            self.step += 1
            if self.step % every == 0:
                self._say(every)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        self.model.eval()

    def _say(self, every: int) -> None:
        means = self.losses[self.step - every : self.step].mean(dim=0).tolist()
        parts = ", ".join(f"{n} {m:.4f}" for n, m in zip(self.names, means, strict=True))
        log.info("ebr: step %d of %d, %s", self.step, self.config.steps, parts)

    def _update(self) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + self.step)  # dropout of this step
        rng = np.random.default_rng([self.seed, self.step])
        by_query = self.config.within_query is not None
        batch = draw(self.data, self.config.batch, self.config.pool, rng, by_query=by_query)
        contrastive, mse, *within = self.batch_losses(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.step, self.config.steps)
        self._optimizer.zero_grad(set_to_none=True)
        loss = sum(within, contrastive + self.config.mse_weight * mse)
        loss.backward()  # type: ignore[no-untyped-call]
        self._cache.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        masked = [] if self.config.false_negative is None else [torch.tensor(self._masked)]
        return torch.stack([contrastive, mse, *within, *masked]).detach()

    def batch_losses(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the batch's contrastive and MSE losses, and the one within queries (A22)."""
        cosine, positive = self.cosines(batch)
        weight, allowed = torch.from_numpy(batch.weight), torch.from_numpy(batch.allowed)
        allowed = self._without_false(cosine, positive, allowed)
        contrastive = contrastive_loss(cosine, positive, allowed, weight, self.config.temperature)
        mse = mse_loss(cosine.gather(1, positive[:, None]).squeeze(1), weight)
        if self.config.within_query is None:
            return contrastive, mse
        first = np.unique(batch.query_of, return_index=True)[1]  # (Q,) a pair of each query
        by_query = cosine.index_select(0, torch.from_numpy(first))
        teacher = torch.from_numpy(batch.teacher)
        if self.config.within_query == "margin_mse":
            return contrastive, mse, margin_mse_loss(by_query, teacher)
        return contrastive, mse, within_query_kl(by_query, teacher, self.config.temperature)

    def _without_false(self, cosine: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
        """Take false negatives out, in the second half: by then the model is a judge of its own."""
        share = self.config.false_negative
        if share is None or self.step < self.config.steps // 2:
            self._masked = 0.0
            return allowed
        false = false_negatives(cosine, positive, share) & allowed
        self._masked = int(false.sum()) / max(1, int(allowed.sum()))
        return allowed & ~false

    def cosines(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return every pair's query against every title (B, P), and its own title's column (B,)."""
        queries = self._encode(self._queries, batch.queries)  # (Q, dim)
        titles = self._encode(self._titles, batch.titles)  # (P, dim)
        # Not queries[…]: its gradient is summed by several threads in no fixed order.
        cosine = (queries @ titles.T).index_select(0, torch.from_numpy(batch.query_of))
        return cosine, torch.from_numpy(batch.title_of)

    def _encode(self, texts: TokenisedTexts, rows: Rows) -> Tensor:
        """Embed ``rows`` with gradient, (len(rows), dim), in chunks of like length."""
        order = np.argsort(texts.lengths[rows], kind="stable")
        parts = np.array_split(rows[order], -(-len(rows) // CHUNK))
        chunks = [texts.batch(part) for part in parts]
        if self.config.batch + self.config.pool > CACHE_ABOVE and torch.is_grad_enabled():
            encoded = self._cache.encode(chunks)
        else:
            encoded = torch.cat([self.model(ids, mask) for ids, mask in chunks])
        return encoded.index_select(0, torch.from_numpy(np.argsort(order)))

    def save(self) -> None:
        """Write the checkpoint atomically: weights, optimizer moments, losses, step."""
        state = self._optimizer.state_dict()["state"]
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"adam.{i}.{k}": v for i, s in state.items() for k, v in s.items()}
        tensors["losses"] = self.losses
        part = self._checkpoint.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        copied = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        save_file(copied, part, metadata={"step": json.dumps(self.step)})
        part.replace(self._checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self._checkpoint.exists():
            return
        with safe_open(self._checkpoint, framework="pt") as f:
            self.step = json.loads(f.metadata()["step"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
        self.losses = tensors.pop("losses")
        weights = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        self.model.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        log.info("ebr: going on from the checkpoint at step %d", self.step)

    def metrics(self) -> dict[str, float]:
        """Return the mean losses of the last tenth of the steps."""
        tail = self.losses[-max(1, self.config.steps // LINES) :].mean(dim=0)
        return dict(zip(self.names, tail.tolist(), strict=True))

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return at most 100 points a curve, each the mean since the point before."""
        width = max(1, self.config.steps // 100)
        points = torch.split(self.losses, width)
        return {
            name: [((i + 1) * width, float(p[:, column].mean())) for i, p in enumerate(points)]
            for column, name in enumerate(self.names)
        }


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over :data:`WARMUP`, then linear to 0."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
