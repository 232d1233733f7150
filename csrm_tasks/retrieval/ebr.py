"""Training the embedding-based retriever (A22, A23): one trainer for RQA and RQA*.

A step's batch (:mod:`csrm_tasks.retrieval.batches`) depends on (seed, step) alone and dropout is
seeded per step, so a run that was killed goes on from its last checkpoint to the very same weights.
Every distinct text of a step is encoded once, in chunks of like length; all titles of the step are
everybody's candidates, minus the pairs known of the same query.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from csrm_tasks.retrieval.batches import Batch, draw
from csrm_tasks.retrieval.classes import TitleClasses
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
from csrm_tasks.training.checkpoints import Checkpoints
from csrm_tasks.training.optimizer import EncoderOptimizer
from csrm_tasks.training.schedule import warmed

log = logging.getLogger("csrm")

WARMUP = 0.06  # share of the steps
LINES = 10  # progress lines of a run
CHUNK = 64  # texts encoded together
CACHE_ABOVE = 1024  # pairs and pool of a step above which gradients are cached, to bound memory


class EbrTrainer:
    """Trains ``model`` in place; ``work`` keeps the checkpoint of this very run."""

    def __init__(
        self,
        model: BiEncoder,
        data: TrainingPairs,
        config: Ebr,
        seed: int,
        work: Path,
        classes: TitleClasses | None = None,
    ) -> None:
        self.model, self.data, self.config, self.seed = model, data, config, seed
        self._classes = classes
        self._queries = model.queries(data.queries)
        self._titles = model.titles(data.titles)
        schedule = warmed(config.lr, config.steps, WARMUP)
        self._optimizer = EncoderOptimizer(model, schedule, config.rates)
        self._cache = GradCache(model)
        self._masked = 0.0  # share of the last batch's negatives that were held to be false ones
        self._checkpoints = Checkpoints(work / "ebr.safetensors")
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
        every = max(1, self.config.steps // LINES)
        self.model.train()
        while self.step < self.config.steps:
            self.losses[self.step] = self._update()
            self.step += 1
            if self.step % every == 0:
                self._say(every)
            if self._checkpoints.due():
                progress = {"step": self.step}
                extra = {"losses": self.losses}
                self._checkpoints.save(self.model, self._optimizer, progress, extra)
        self._optimizer.finish()
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
        loss = sum(within, contrastive + self.config.mse_weight * mse)
        loss.backward()  # type: ignore[no-untyped-call]
        self._cache.backward()
        self._optimizer.update(self.step)
        masked = [] if self.config.false_negative is None else [torch.tensor(self._masked)]
        return torch.stack([contrastive, mse, *within, *masked]).detach()

    def batch_losses(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return the batch's contrastive and MSE losses, and the one within queries (A22)."""
        cosine, positive = self.cosines(batch)
        weight, allowed = torch.from_numpy(batch.weight), torch.from_numpy(batch.allowed)
        if self._classes is not None:
            rows = (batch.queries, batch.titles, batch.query_of, batch.title_of)
            allowed = allowed & ~torch.from_numpy(self._classes.masked(*rows))
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

    def restore(self) -> None:
        """Go on from the newest usable checkpoint, if there is one."""
        extra = {"losses": self.losses}
        progress = self._checkpoints.restore(self.model, self._optimizer, extra)
        if progress is not None:
            self.step = progress["step"]
            log.info("ebr: training resumes at step %d of %d", self.step, self.config.steps)

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
