"""How much an error in each element of a cut's tensors changes the network's output.

The gradients here are samples whose second moments are the Gauss-Newton matrix of the output's divergence:
for a classifier that of the KL divergence, which is the Fisher information (Martens, New insights and
perspectives on the natural gradient method, JMLR 2020, section 9), else that of the relative square error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from shared.graph.calls import SlotLayout, Step, call_of
from shared.graph.captured import CapturedModel
from shared.graph.ir import Cut, Op
from shared.graph.run import Program

__all__ = ["differentiable_tail", "output_gradients"]

Tail = Callable[[Sequence[torch.Tensor], int], list[torch.Tensor]]


def output_gradients(
    captured: CapturedModel,
    program: Program,
    cut: Cut,
    batches: Iterable[Sequence[torch.Tensor]],
    *,
    classifier: bool,
    draws: int = 4,
    seed: int = 0,
) -> list[torch.Tensor]:
    """For every tensor of ``cut.live`` the gradients by it, ``draws`` times as many samples as there are in
    ``batches`` of the network's inputs, in float32.

    ``classifier`` says that the network's one output is logits, batch x classes.  ``program`` is of
    ``captured``.  Costs ``draws`` passes back through the units above the cut for every batch.
    """
    tail = differentiable_tail(captured, cut)
    generator = torch.Generator().manual_seed(seed)
    found: list[list[torch.Tensor]] = [[] for _ in cut.live]
    for leaves in batches:
        state = program.start(leaves)
        program.run(state, cut.edge_units)
        # Copies: what was computed in inference mode has no gradients.
        live = [_leaf(tensor) for tensor in program.live(state, cut)]
        with torch.enable_grad():
            outputs = tail(live, state.batch)
            for _ in range(draws):
                score = (
                    _drawn_class(outputs[0], generator) if classifier else _drawn_error(outputs, generator)
                )
                by_tensor = torch.autograd.grad(
                    score, live, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for kept, gradient in zip(found, by_tensor, strict=True):
                    kept.append(gradient)
    return [torch.cat(gradients) for gradients in found]


def differentiable_tail(captured: CapturedModel, cut: Cut) -> Tail:
    """The units above ``cut``, from its live tensors and a batch size to those outputs that it computes."""
    graph = captured.graph
    layout = SlotLayout(graph.slot_count)
    layout.constants.update({slot: captured.weights[key].detach() for slot, key in graph.weights.items()})
    cpu = torch.device("cpu")

    def steps_of(ops: Iterable[Op]) -> list[Step]:
        return [layout.step(call_of(op, cpu, reshape=True)) for op in ops]

    preamble = steps_of(graph.preamble)
    replayed = steps_of(graph.flow.replay(cut.live, cut.edge_units))
    units = steps_of(op for unit in cut.cloud_units for op in graph.units[unit].ops)
    outputs = graph.output_slots_of(cut)

    def tail(live: Sequence[torch.Tensor], batch: int) -> list[torch.Tensor]:
        slots = layout.template(batch)
        with torch.no_grad():
            for step in preamble:
                step(slots)
        for slot, tensor in zip(cut.live, live, strict=True):
            slots[slot] = tensor
        for step in (*replayed, *units):
            step(slots)
        return [slots[slot] for slot in outputs]

    return tail


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    """A bytes image becomes floats, which the units take as well."""
    return tensor.to(torch.float32, copy=True).requires_grad_(True)


def _drawn_class(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    logits = logits.float()
    drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    return logits.log_softmax(1).gather(1, drawn).sum()


def _drawn_error(outputs: Sequence[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Every output relative to its own size, sample by sample, in a random direction."""
    score = torch.zeros(())
    for output in outputs:
        if not output.is_floating_point():
            continue
        rows = output.float().reshape(output.shape[0] if output.dim() else 1, -1)
        size = rows.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
        direction = torch.randn(rows.shape, generator=generator)
        score = score + (rows * direction / size).sum()
    return score
