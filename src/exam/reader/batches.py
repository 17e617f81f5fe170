"""Batches of like length that take the same number of tokens each."""

import math
import random
from collections.abc import Iterator
from itertools import cycle, islice

from transformers.trainer_pt_utils import BatchRebalanceSampler


class TokenBatches(BatchRebalanceSampler):
    """As many batches as of `batch_size` questions each, with about the same number of tokens.

    Questions of like length come together, so that little is padded; equal lengths fall as the
    seed has it. The batches are the same in every epoch, their order is not when shuffled. Of
    several processes each takes every n-th batch; the first ones are repeated until all have as
    many. The Trainer takes a sampler of this base class for one of whole batches, shared out.
    """

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Cut the places of `lengths` (tokens of each question) into batches."""
        wanted = math.ceil(len(lengths) / batch_size)
        budget = batch_size * sum(lengths) / max(1, len(lengths))
        while len(batches := _cut(lengths, budget, seed)) > wanted:
            budget *= 1.01
        self.batches = batches
        self.mean_size = len(lengths) / max(1, len(self.batches))
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batches)
        if self.shuffle:
            random.Random(f"{self.seed}:{self.epoch}").shuffle(order)
        shared = islice(cycle(order), len(self) * self.world_size)
        return islice(shared, self.rank, None, self.world_size)


def _cut(lengths: list[int], budget: float, seed: int) -> list[list[int]]:
    """Places of `lengths` in batches, longest first; one longer than the budget stays alone."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda place: -lengths[place])
    batches: list[list[int]] = []
    for place in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
