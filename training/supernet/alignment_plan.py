"""When alignment happens in a training; both the trainer and the prediction of its cost go by this plan."""

from dataclasses import dataclass
from typing import Self

from modeling_magic import MagicConfig

from ..space.search_space import Architecture
from .supernet_options import SupernetOptions


@dataclass(frozen=True)
class AlignmentPlan:
    """Which steps of a run align children, in which layers, and after which ones the anchor is looked at.

    Steps count from 1. Rounds of shrinking, which may replace an anchor but never leave none, play no part.

    Attributes:
        alignment: one of `supernet_options.ALIGNMENTS`.
        warmup_steps: steps on the prediction loss alone.
        challenge_every: steps between two children that are compared with the anchor, with `anchor` (section 4).
        blocks: the layers that a challenger has from the child, by turns; else those of the anchor stay. One block
            where the child itself challenges.
        rank_every: steps between two rankings that the anchor is picked from, with `top_percent` (5.2), else 0.
        aligned_layers: indices n of the H_n that Eq. (1) sums over, ascending; none with `none`.
    """

    alignment: str
    warmup_steps: int
    challenge_every: int
    blocks: tuple[range, ...]
    rank_every: int
    aligned_layers: tuple[int, ...]

    @classmethod
    def of(cls, args: SupernetOptions, num_layers: int, epoch_steps: int | None) -> Self:
        """Returns the plan of a run.

        Args:
            args: the run's.
            num_layers: of the super-net.
            epoch_steps: optimizer steps of an epoch; `None` for a streamed data set, which has none.

        Raises:
            ValueError: the warm start or the rankings go by epochs, but there are none.
        """
        if args.alignment == "none":
            return cls("none", 0, args.anchor_eval_steps, (range(num_layers),), 0, ())
        every = args.alignment_every_n_layers
        block = every if args.anchor_challenger == "block" else num_layers
        return cls(
            args.alignment,
            _warmup_steps(args, epoch_steps),
            args.anchor_eval_steps,
            tuple(range(start, min(start + block, num_layers)) for start in range(0, num_layers, block)),
            _rank_every(args, epoch_steps) if args.alignment == "top_percent" else 0,
            tuple(range(every, num_layers + 1, every)),
        )

    def aligns(self, step: int, has_anchor: bool) -> bool:
        """Returns whether a step aligns its child.

        Args:
            step: the step, from 1.
            has_anchor: whether there is one when the step begins.
        """
        return self.alignment != "none" and step > self.warmup_steps and (has_anchor or self.alignment == "average")

    def anchor_is_due(self, step: int, has_anchor: bool) -> bool:
        """Returns whether the anchor is looked at after a step: challenged by its child, or picked from a ranking.

        Args:
            step: the step that was done.
            has_anchor: whether there is one so far; without one, the child at the end of the warm start becomes it.
        """
        if self.alignment == "anchor":
            return step % self.challenge_every == 0 or (not has_anchor and step == self.warmup_steps)
        return self.rank_every > 0 and step % self.rank_every == 0

    def challenger(self, step: int, child: Architecture, anchor: Architecture | None) -> Architecture:
        """Returns what the anchor is compared with after a step: the child, or the anchor with one block of it.

        Args:
            step: the step that was done.
            child: that of the step.
            anchor: the one so far; without one the child becomes it.
        """
        if anchor is None or len(self.blocks) == 1:
            return child
        block = self.blocks[step // self.challenge_every % len(self.blocks)]
        return anchor[: block.start] + child[block.start : block.stop] + anchor[block.stop :]

    @property
    def first_step(self) -> int | None:
        """The first step that aligns its child, in a run that gets there; `None` where there is none in any run."""
        if self.alignment == "none":
            return None
        if self.alignment == "anchor":
            return (self.warmup_steps or self.challenge_every) + 1
        return max(self.warmup_steps, self.rank_every) + 1

    def num_aligned_steps(self, num_steps: int) -> int:
        """Returns how many of the first `num_steps` steps align their child."""
        return 0 if self.first_step is None else max(0, num_steps - self.first_step + 1)

    def num_anchor_looks(self, num_steps: int) -> int:
        """Returns after how many of the first `num_steps` steps the anchor is looked at."""
        if self.alignment == "anchor":
            comes_early = 0 < self.warmup_steps < min(self.challenge_every, num_steps + 1)
            return num_steps // self.challenge_every + comes_early
        return num_steps // self.rank_every if self.rank_every else 0

    def shares_bottoms(self, config: MagicConfig) -> bool:
        """Returns whether layers that child and anchor have in common from the bottom up give them the same states.

        Without dropout they do, since the anchor has none; a mean of children has no layers to compare.
        """
        drops = config.hidden_dropout_prob or config.attention_probs_dropout_prob
        return self.alignment != "average" and not drops

    def warnings(self, num_steps: int) -> list[str]:
        """Returns why a run of `num_steps` steps aligns nothing, each reason in a line; empty where it does."""
        found = []
        if self.alignment != "none" and self.warmup_steps >= num_steps:
            found.append(
                f"nothing will be aligned: the warm start takes {self.warmup_steps} of {num_steps} steps; train "
                f"longer, or set alignment_warmup_steps lower"
            )
        elif self.alignment == "anchor" and not self.warmup_steps and self.challenge_every >= num_steps:
            found.append(
                f"nothing will be aligned: the first anchor comes after {self.challenge_every} of {num_steps} steps; "
                f"train longer, or set anchor_eval_steps lower"
            )
        if self.alignment == "top_percent" and self.rank_every >= num_steps:
            found.append(
                f"nothing will be aligned: the anchor is picked after every {self.rank_every} of {num_steps} steps; "
                f"train longer, or set anchor_rank_steps lower"
            )
        return found


def _warmup_steps(args: SupernetOptions, epoch_steps: int | None) -> int:
    if args.alignment_warmup_steps is not None:
        return args.alignment_warmup_steps
    if epoch_steps is None and args.alignment_warmup_epochs:
        raise ValueError("a streamed data set has no epochs; set alignment_warmup_steps")
    return round(args.alignment_warmup_epochs * (epoch_steps or 0))


def _rank_every(args: SupernetOptions, epoch_steps: int | None) -> int:
    every = args.anchor_rank_steps or epoch_steps
    if every is None:
        raise ValueError("a streamed data set has no epochs to pick the anchor at; set anchor_rank_steps")
    return every
