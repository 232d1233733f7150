"""Training the embedding-based retriever (A22, A23): one trainer for RQA and RQA*.

A step draws one locale (in proportion to its pairs), B pairs of it, and a pool of random titles of
the same locale. A title costs several times what a query costs, so pairs are drawn in groups that
share one: B/4 at random, then at most four pairs of each one's title. Every distinct text of the
step is encoded once, in chunks of like length; all titles of the step are everybody's candidates,
minus the pairs known of the same query. The batch of a step depends on
(seed, step) alone and dropout is seeded per step, so a run that was killed goes on from its last
checkpoint to the very same weights.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from csrm_tasks.retrieval.encoder import BiEncoder
from csrm_tasks.retrieval.gradcache import GradCache
from csrm_tasks.retrieval.losses import contrastive_loss, mse_loss
from csrm_tasks.retrieval.pairs import LocalePairs, Mask, Rows, TrainingPairs
from csrm_tasks.retrieval.tokenised import TokenisedTexts
from csrm_tasks.sections import Ebr

log = logging.getLogger("csrm")

CHECKPOINT_SECONDS = 60.0
WARMUP = 0.06  # share of the steps
WEIGHT_DECAY = 0.01
CLIP = 1.0
LINES = 10  # progress lines of a run
PER_TITLE = 4  # pairs of a title in one step, at most
CHUNK = 64  # texts encoded together
CACHE_ABOVE = 1024  # pairs and pool of a step above which gradients are cached, to bound memory


@dataclass(frozen=True)
class Batch:
    """One step's rows: B pairs over Q distinct queries and P distinct titles."""

    queries: Rows  # (Q,) distinct query rows
    titles: Rows  # (P,) distinct title rows: positives and pool
    query_of: Rows  # (B,) into queries
    title_of: Rows  # (B,) into titles
    allowed: Mask  # (B, P) may this title be a negative of this pair?
    weight: npt.NDArray[np.float32]  # (B,)


def draw(data: TrainingPairs, size: int, pool: int, rng: np.random.Generator) -> Batch:
    """Draw one batch of at most ``size`` pairs and ``pool`` random titles of one locale."""
    share = np.array([len(part.query) for part in data.locales], float)
    part: LocalePairs = data.locales[rng.choice(len(share), p=share / share.sum())]
    seeds = rng.choice(len(part.query), min(-(-size // PER_TITLE), len(part.query)), replace=False)
    pairs = part.around(seeds, PER_TITLE, rng)
    random = rng.choice(part.catalogue, min(pool, len(part.catalogue)), replace=False)
    titles, title_of = np.unique(np.concatenate([part.title[pairs], random]), return_inverse=True)
    queries, query_of = np.unique(part.query[pairs], return_inverse=True)
    allowed = ~part.is_pair(part.query[pairs], titles, len(data.titles))
    return Batch(queries, titles, query_of, title_of[: len(pairs)], allowed, part.weight[pairs])


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
        self._checkpoint = work / "ebr.safetensors"
        self.losses = torch.zeros(config.steps, 2)  # contrastive, MSE of every step
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
        contrastive, mse = self.losses[self.step - every : self.step].mean(dim=0).tolist()
        log.info(
            "ebr: step %d of %d, contrastive %.4f, mse %.4f",
            self.step, self.config.steps, contrastive, mse,
        )  # fmt: skip

    def _update(self) -> Tensor:
        torch.manual_seed(self.seed * 1_000_003 + self.step)  # dropout of this step
        rng = np.random.default_rng([self.seed, self.step])
        batch = draw(self.data, self.config.batch, self.config.pool, rng)
        contrastive, mse = self.batch_losses(batch)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr * schedule(self.step, self.config.steps)
        self._optimizer.zero_grad(set_to_none=True)
        (contrastive + self.config.mse_weight * mse).backward()  # type: ignore[no-untyped-call]
        self._cache.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimizer.step()
        return torch.stack([contrastive, mse]).detach()

    def batch_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the batch's contrastive and MSE losses (A22)."""
        cosine, positive = self.cosines(batch)
        weight, allowed = torch.from_numpy(batch.weight), torch.from_numpy(batch.allowed)
        contrastive = contrastive_loss(cosine, positive, allowed, weight, self.config.temperature)
        return contrastive, mse_loss(cosine.gather(1, positive[:, None]).squeeze(1), weight)

    def cosines(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return every pair's query against every title (B, P), and its own title's column (B,)."""
        queries = self._encode(self._queries, batch.queries)  # (Q, dim)
        titles = self._encode(self._titles, batch.titles)  # (P, dim)
        cosine = (queries @ titles.T)[torch.from_numpy(batch.query_of)]
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
        return encoded[torch.from_numpy(np.argsort(order))]

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
        return {"contrastive": float(tail[0]), "mse": float(tail[1])}

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return at most 100 points a curve, each the mean since the point before."""
        width = max(1, self.config.steps // 100)
        points = torch.split(self.losses, width)
        return {
            name: [((i + 1) * width, float(p[:, column].mean())) for i, p in enumerate(points)]
            for column, name in enumerate(("contrastive", "mse"))
        }


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up over :data:`WARMUP`, then linear to 0."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
