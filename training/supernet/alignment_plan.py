"""The schedule of alignment in a training, used by both the trainer and the prediction of its cost."""

from dataclasses import dataclass
from typing import Self

from modeling_magic import MagicConfig

from ..space.search_space import Architecture
from .supernet_options import SupernetOptions


@dataclass(frozen=True)
class AlignmentPlan:
    """Which steps of a run align children, in which layers, and after which steps the anchor is reviewed.

    Steps count from 1. Rounds of shrinking are ignored: they may replace an anchor but never remove it.

    Attributes:
        alignment: one of `supernet_options.ALIGNMENTS`.
        warmup_steps: steps on the prediction loss alone.
        challenge_every: steps between two comparisons of a child with the anchor, for `anchor` (section 4).
        blocks: the layers that challengers take from the child, in turn; the other layers are the anchor's. A single
            block if the child itself is the challenger.
        rank_every: steps between two rankings from which the anchor is picked, for `top_percent` (5.2), else 0.
        aligned_layers: indices n of the H_n that Eq. (1) sums over, ascending; empty for `none`.
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
            args: arguments of the run.
            num_layers: number of layers of the super-net.
            epoch_steps: optimizer steps per epoch; `None` for a streamed data set, which has no epochs.

        Raises:
            ValueError: the warm start or the rankings are given in epochs, but the data set has none.
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
            has_anchor: whether there is an anchor when the step begins.
        """
        return self.alignment != "none" and step > self.warmup_steps and (has_anchor or self.alignment == "average")

    def anchor_is_due(self, step: int, has_anchor: bool) -> bool:
        """Returns whether the anchor is reviewed after a step: challenged by its child, or picked from a ranking.

        Args:
            step: the completed step.
            has_anchor: whether there is an anchor so far. Without one, the child at the end of the warm start becomes
                the anchor.
        """
        if self.alignment == "anchor":
            return step % self.challenge_every == 0 or (not has_anchor and step == self.warmup_steps)
        return self.rank_every > 0 and step % self.rank_every == 0

    def challenger(self, step: int, child: Architecture, anchor: Architecture | None) -> Architecture:
        """Returns the challenger of the anchor after a step: the child, or the anchor with one block of the child.

        Args:
            step: the completed step.
            child: the child of the step.
            anchor: the current anchor; if there is none, the child becomes the anchor.
        """
        if anchor is None or len(self.blocks) == 1:
            return child
        block = self.blocks[step // self.challenge_every % len(self.blocks)]
        return anchor[: block.start] + child[block.start : block.stop] + anchor[block.stop :]

    @property
    def first_step(self) -> int | None:
        """The first step that aligns its child, if the run is long enough; `None` if no step ever does."""
        if self.alignment == "none":
            return None
        if self.alignment == "anchor":
            return (self.warmup_steps or self.challenge_every) + 1
        return max(self.warmup_steps, self.rank_every) + 1

    def num_aligned_steps(self, num_steps: int) -> int:
        """Returns how many of the first `num_steps` steps align their child."""
        return 0 if self.first_step is None else max(0, num_steps - self.first_step + 1)

    def num_anchor_looks(self, num_steps: int) -> int:
        """Returns after how many of the first `num_steps` steps the anchor is reviewed."""
        if self.alignment == "anchor":
            comes_early = 0 < self.warmup_steps < min(self.challenge_every, num_steps + 1)
            return num_steps // self.challenge_every + comes_early
        return num_steps // self.rank_every if self.rank_every else 0

    def shares_bottoms(self, config: MagicConfig) -> bool:
        """Returns whether the bottom layers that child and anchor share give both the same states.

        They do without dropout, which the anchor never has. A mean of children has no layers to compare.
        """
        drops = config.hidden_dropout_prob or config.attention_probs_dropout_prob
        return self.alignment != "average" and not drops

    def warnings(self, num_steps: int) -> list[str]:
        """Returns the reasons why a run of `num_steps` steps aligns nothing; empty if it aligns."""
        found = []
        if self.alignment != "none" and self.warmup_steps >= num_steps:
            found.append(
                f"nothing will be aligned: the warm start takes {self.warmup_steps} of {num_steps} steps; train "
                f"longer, or set alignment_warmup_steps lower"
            )
        elif self.alignment == "anchor" and not self.warmup_steps and self.challenge_every >= num_steps:
            found.append(
                f"nothing will be aligned: the first anchor is set after {self.challenge_every} of {num_steps} steps; "
                f"train longer, or set anchor_eval_steps lower"
            )
        if self.alignment == "top_percent" and self.rank_every >= num_steps:
            found.append(
                f"nothing will be aligned: the anchor is picked every {self.rank_every} steps, but the run has only "
                f"{num_steps}; train longer, or set anchor_rank_steps lower"
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
        raise ValueError("a streamed data set has no epochs after which to pick the anchor; set anchor_rank_steps")
    return every
